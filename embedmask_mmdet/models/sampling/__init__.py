"""Sampling: which locations learn from an instance, and how many of them stand for it in the mask loss."""

from embedmask_mmdet.models.sampling.box_sampling import EmbedMaskBoxSampling
from embedmask_mmdet.models.sampling.in_mask_sampling import EmbedMaskInMaskSampling

__all__ = ['EmbedMaskBoxSampling', 'EmbedMaskInMaskSampling']
