"""Modules that hold weights, registered in MMDetection."""

from embedmask_mmdet.models.bbox_head import EmbedMaskBBoxHead
from embedmask_mmdet.models.detector import EmbedMask
from embedmask_mmdet.models.dice_cross_entropy_loss import DiceCrossEntropyLoss
from embedmask_mmdet.models.lovasz_hinge_loss import LovaszHingeLoss
from embedmask_mmdet.models.mask_head import EmbedMaskMaskHead
from embedmask_mmdet.models.tta import EmbedMaskTTAModel

__all__ = [
    'DiceCrossEntropyLoss',
    'EmbedMask',
    'EmbedMaskBBoxHead',
    'EmbedMaskMaskHead',
    'EmbedMaskTTAModel',
    'LovaszHingeLoss',
]
