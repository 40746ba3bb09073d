"""Refinements: steps after the masks, each ``(results, pixels) -> results``, listed in ``test_cfg.refine``."""

from embedmask_mmdet.models.refine.boxes_from_masks import EmbedMaskBoxesFromMasks
from embedmask_mmdet.models.refine.certainty import EmbedMaskCertainty
from embedmask_mmdet.models.refine.nms import EmbedMaskNMS
from embedmask_mmdet.models.refine.pixels import PixelGrid

__all__ = ['EmbedMaskBoxesFromMasks', 'EmbedMaskCertainty', 'EmbedMaskNMS', 'PixelGrid']
