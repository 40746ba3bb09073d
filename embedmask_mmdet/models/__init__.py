"""The model: detector, heads, and the parts that they are composed of, all registered in MMDetection."""

from embedmask_mmdet.models.bbox_head import EmbedMaskBBoxHead
from embedmask_mmdet.models.class_votes import EmbedMaskClassVotes
from embedmask_mmdet.models.detector import EmbedMask
from embedmask_mmdet.models.frames import EmbedMaskBoxFrame, EmbedMaskLocationFrame, EmbedMaskScaledBoxFrame
from embedmask_mmdet.models.losses import DiceCrossEntropyLoss, LogProbLoss, LovaszHingeLoss
from embedmask_mmdet.models.mask_head import EmbedMaskMaskHead
from embedmask_mmdet.models.pixel_branch import EmbedMaskPixelBranch
from embedmask_mmdet.models.refine import EmbedMaskBoxesFromMasks, EmbedMaskCertainty, EmbedMaskNMS
from embedmask_mmdet.models.sampling import EmbedMaskBoxSampling, EmbedMaskInMaskSampling
from embedmask_mmdet.models.tta import EmbedMaskTTAModel

__all__ = [
    'DiceCrossEntropyLoss',
    'EmbedMask',
    'EmbedMaskBBoxHead',
    'EmbedMaskBoxFrame',
    'EmbedMaskBoxSampling',
    'EmbedMaskBoxesFromMasks',
    'EmbedMaskCertainty',
    'EmbedMaskClassVotes',
    'EmbedMaskInMaskSampling',
    'EmbedMaskLocationFrame',
    'EmbedMaskMaskHead',
    'EmbedMaskNMS',
    'EmbedMaskPixelBranch',
    'EmbedMaskScaledBoxFrame',
    'EmbedMaskTTAModel',
    'LogProbLoss',
    'LovaszHingeLoss',
]
