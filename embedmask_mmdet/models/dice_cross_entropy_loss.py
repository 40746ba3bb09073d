"""A mask loss with bounded gradients: Dice on probabilities plus their cross-entropy."""

from __future__ import annotations

import math

import torch
from mmdet.registry import MODELS
from torch import Tensor

from embedmask_mmdet.models.log_prob_loss import LogProbLoss, pick_pixels, sum_by_row

# Up to here a pixel's cross-entropy counts in full.
FULL_ERROR = 10.0
# Background that is more wrong than that has no gradient, as it would have no bound.
MAX_LOG_PROB = -math.exp(-FULL_ERROR)
# Background below is left out: a million such pixels cost as much as one that is wrong.
SURELY_BACKGROUND = math.log(1e-6)
MIN_PIXELS = 4


def damp(errors: Tensor) -> Tensor:
    """Let what is beyond ``FULL_ERROR`` grow as the logarithm, whose gradient is never 0 and never large."""
    return torch.where(errors > FULL_ERROR, FULL_ERROR * (1 + (errors / FULL_ERROR).clamp(min=1).log()), errors)


def cross_entropy(log_prob: Tensor, target: Tensor) -> Tensor:
    """Compute each pixel's cross-entropy, at least 0.

    A foreground pixel's is the weighted distance between the embeddings itself, so its gradient does not vanish with
    the probability.

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

    Both are least where probabilities are the targets, which may be anything from 0 to 1. Cross-entropy is summed over
    pixels and divided by the mask's. Memory and time grow with the pixels that are foreground or might be taken for
    it.

    It takes the place of the reference's :class:`LovaszHingeLoss`, whose gradient grows with the sharpness of the
    margins and in the first iterations is larger than the detector's by far.

    Args:
        loss_weight: What the reduced loss is multiplied by.
        dice_weight: What the Dice loss is multiplied by.
        cross_entropy_weight: What the cross-entropy is multiplied by.
        reduction: ``'none'``, ``'mean'`` or ``'sum'`` over instances.
    """

    def __init__(
        self,
        loss_weight: float = 1.0,
        dice_weight: float = 1.0,
        cross_entropy_weight: float = 1.0,
        reduction: str = 'mean',
    ) -> None:
        super().__init__(loss_weight, reduction)
        self.dice_weight = dice_weight
        self.cross_entropy_weight = cross_entropy_weight

    def instance_losses(self, log_prob: Tensor, target: Tensor) -> Tensor:
        """See :class:`LogProbLoss`."""
        log_prob, target = log_prob.float().flatten(1), target.float().flatten(1)
        areas = target.sum(dim=1)
        # Written so that what is no number counts.
        picked = (target > 0) | ~(log_prob.detach() < SURELY_BACKGROUND)
        log_prob, target, rows = pick_pixels(log_prob, target, picked)
        prob = log_prob.exp()
        overlaps, squares, entropies = (
            sum_by_row(values, rows, len(areas))
            for values in (prob * target, prob.square() + target.square(), cross_entropy(log_prob, target))
        )
        # Milletari et al., arXiv 1606.04797, section 3.
        dice = 1 - 2 * overlaps / squares.clamp(min=1e-3)
        return self.dice_weight * dice + self.cross_entropy_weight * entropies / areas.clamp(min=MIN_PIXELS)
