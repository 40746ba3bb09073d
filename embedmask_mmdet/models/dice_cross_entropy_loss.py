"""A mask loss with bounded gradients: Dice on probabilities plus their cross-entropy."""

from __future__ import annotations

import math

import torch
from mmdet.models.losses.dice_loss import dice_loss
from mmdet.registry import MODELS
from torch import Tensor

from embedmask_mmdet.models.log_prob_loss import LogProbLoss

# Up to here a pixel's cross-entropy counts in full.
FULL_ERROR = 10.0
# Background that is more wrong than that has no gradient, as it would have no bound.
MAX_LOG_PROB = -math.exp(-FULL_ERROR)
MIN_PIXELS = 4


def damp(errors: Tensor) -> Tensor:
    """Let what is beyond ``FULL_ERROR`` grow as the logarithm, whose gradient is never 0 and never large."""
    return torch.where(errors > FULL_ERROR, FULL_ERROR * (1 + (errors / FULL_ERROR).clamp(min=1).log()), errors)


def cross_entropies(log_prob: Tensor, target: Tensor) -> Tensor:
    """Compute each instance's cross-entropy, summed over pixels and divided by the pixels of its mask.

    A foreground pixel's is the weighted distance between the embeddings itself, so its gradient does not vanish with
    the probability.

    Args:
        log_prob: ``(N, K)``, at most 0.
        target: Bool ``(N, K)``.

    Returns:
        ``(N,)``, at least 0.
    """
    background = -torch.log(-torch.expm1(log_prob.clamp(max=MAX_LOG_PROB)))
    errors = torch.where(target, damp(-log_prob), background)
    return errors.sum(dim=1) / target.sum(dim=1).clamp(min=MIN_PIXELS)


@MODELS.register_module()
class DiceCrossEntropyLoss(LogProbLoss):
    """Dice loss plus cross-entropy of log-probabilities, finite with finite gradients for every input.

    It takes the place of the reference's :class:`LovaszHingeLoss`. That one's gradient grows with the sharpness of the
    margins, so that in the first iterations it drowns the detector's, and an optimizer that remembers how large
    gradients were learns slowly long after.

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
        log_prob, target = log_prob.float().flatten(1), target.flatten(1)
        # Milletari et al., arXiv 1606.04797, section 3.
        dice = dice_loss(log_prob.exp(), target.float(), reduction='none')
        return self.dice_weight * dice + self.cross_entropy_weight * cross_entropies(log_prob, target)
