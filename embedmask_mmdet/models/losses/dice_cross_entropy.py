"""A mask loss with bounded gradients: Dice on probabilities plus their cross-entropy."""

from __future__ import annotations

import math

import torch
from mmdet.registry import MODELS
from mmdet.structures.mask import BaseInstanceMasks
from torch import Tensor

from embedmask_mmdet.models.losses.log_prob_loss import LogProbLoss, pick_pixels, sum_by_row
from embedmask_mmdet.targets import mask_coverage

# Cross-entropy of a pixel above which it is damped.
FULL_ERROR = 10.0
# Background pixels above get no gradient, which would be unbounded.
MAX_LOG_PROB = -math.exp(-FULL_ERROR)
# Background pixels below are left out: a million of them cost as much as one wrong pixel.
SURELY_BACKGROUND = math.log(1e-6)
MIN_PIXELS = 4


def damp(errors: Tensor) -> Tensor:
    """Let errors above ``FULL_ERROR`` grow as their logarithm, whose gradient is never 0 and never large."""
    return torch.where(errors > FULL_ERROR, FULL_ERROR * (1 + (errors / FULL_ERROR).clamp(min=1).log()), errors)


def cross_entropy(log_prob: Tensor, target: Tensor) -> Tensor:
    """Compute each pixel's cross-entropy, at least 0.

    That of a foreground pixel is the weighted distance between the embeddings, so its gradient does not vanish with the
    probability.

    Args:
        log_prob: ``(K,)``, at most 0.
        target: ``(K,)`` from 0 to 1; where it is 0, ``log_prob`` is finite.

    Returns:
        ``(K,)``.
    """
    background = -torch.log(-torch.expm1(log_prob.clamp(max=MAX_LOG_PROB)))
    return target * damp(-log_prob) + (1 - target) * background


@MODELS.register_module()
class DiceCrossEntropyLoss(LogProbLoss):
    """Dice loss plus cross-entropy of log-probabilities, finite with finite gradients for every input.

    Both are smallest where probabilities equal the targets: the part of each cell that the mask covers. Cross-entropy
    is summed over pixels and divided by the area of the mask. Memory and time grow with the pixels that are foreground
    or might be taken for it.

    EmbedMask plus uses it instead of the paper's :class:`LovaszHingeLoss`, whose gradient grows with the sharpness of
    the margins and, in the first iterations, is much larger than that of the detector.

    Args:
        loss_weight: Factor on the reduced loss.
        reduction: ``'none'``, ``'mean'`` or ``'sum'`` over instances.
    """

    def make_target(self, masks: BaseInstanceMasks | Tensor, grid_size: tuple[int, int], mask_stride: int) -> Tensor:
        """Make targets from 0 to 1 with :func:`mask_coverage`; see :class:`LogProbLoss`."""
        return mask_coverage(masks, grid_size, mask_stride)

    def instance_losses(self, log_prob: Tensor, target: Tensor) -> Tensor:
        """Compute the loss of each instance, see :class:`LogProbLoss`."""
        log_prob, target = log_prob.float().flatten(1), target.float().flatten(1)
        areas = target.sum(dim=1)
        # Written so that NaN is picked, and shows in the loss.
        picked = (target > 0) | ~(log_prob.detach() < SURELY_BACKGROUND)
        log_prob, target, rows = pick_pixels(log_prob, target, picked)
        prob = log_prob.exp()
        overlaps, squares, entropies = (
            sum_by_row(values, rows, len(areas))
            for values in (prob * target, prob.square() + target.square(), cross_entropy(log_prob, target))
        )
        # Milletari et al., arXiv 1606.04797, section 3.
        dice = 1 - 2 * overlaps / squares.clamp(min=1e-3)
        return dice + entropies / areas.clamp(min=MIN_PIXELS)
