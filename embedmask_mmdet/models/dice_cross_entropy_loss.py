"""A mask loss with bounded gradients: Dice on probabilities plus their cross-entropy."""

from __future__ import annotations

import math

import torch
from mmdet.models.losses.dice_loss import dice_loss
from mmdet.models.losses.utils import weighted_loss
from mmdet.registry import MODELS
from torch import Tensor, nn

# Up to here a pixel's cross-entropy counts in full.
FULL_ERROR = 10.0
# Where background is taken for foreground beyond that, the gradient is that of the point where it is reached: none.
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


@weighted_loss
def dice_cross_entropy(log_prob: Tensor, target: Tensor, dice_weight: float, cross_entropy_weight: float) -> Tensor:
    """Weigh each instance's Dice loss (Milletari et al., arXiv 1606.04797, section 3) and its cross-entropy.

    Args:
        log_prob: ``(N, ...)``, log-probability of each pixel.
        target: Bool, same shape.
        dice_weight: What the Dice loss is multiplied by.
        cross_entropy_weight: What the cross-entropy is multiplied by.

    Returns:
        Float32 tensor ``(N,)``.
    """
    log_prob, target = log_prob.float().flatten(1), target.flatten(1)
    dice = dice_loss(log_prob.exp(), target.float(), reduction='none')
    return dice_weight * dice + cross_entropy_weight * cross_entropies(log_prob, target)


@MODELS.register_module()
class DiceCrossEntropyLoss(nn.Module):
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
        super().__init__()
        self.loss_weight = loss_weight
        self.dice_weight = dice_weight
        self.cross_entropy_weight = cross_entropy_weight
        self.reduction = reduction

    def forward(
        self,
        log_prob: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        avg_factor: float | None = None,
        reduction_override: str | None = None,
    ) -> Tensor:
        """Compute the loss.

        Args:
            log_prob: ``(N, h, w)``, log-probability of each pixel to belong to the instance.
            target: Bool ``(N, h, w)``.
            weight: ``(N,)``, a factor for each instance.
            avg_factor: Divides the sum over instances in place of their number.
            reduction_override: Replaces ``reduction``.

        Returns:
            Float32 scalar, or ``(N,)`` without reduction.
        """
        loss = dice_cross_entropy(
            log_prob,
            target,
            weight,
            reduction=reduction_override or self.reduction,
            avg_factor=avg_factor,
            dice_weight=self.dice_weight,
            cross_entropy_weight=self.cross_entropy_weight,
        )
        return self.loss_weight * loss
