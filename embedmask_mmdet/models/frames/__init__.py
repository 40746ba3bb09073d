"""Frames of reference: the coordinates in which spatial embeddings and margins are expressed."""

from embedmask_mmdet.models.frames.box_frame import EmbedMaskBoxFrame
from embedmask_mmdet.models.frames.location_frame import EmbedMaskLocationFrame
from embedmask_mmdet.models.frames.scaled_box_frame import EmbedMaskScaledBoxFrame

__all__ = ['EmbedMaskBoxFrame', 'EmbedMaskLocationFrame', 'EmbedMaskScaledBoxFrame']
