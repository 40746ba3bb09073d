"""Frames of reference: the coordinates in which spatial embeddings and margins are expressed."""

from embedmask_mmdet.models.frames.box_frame import EmbedMaskBoxFrame
from embedmask_mmdet.models.frames.location_frame import EmbedMaskLocationFrame

__all__ = ['EmbedMaskBoxFrame', 'EmbedMaskLocationFrame']
