"""The loss between an instance's probability map and its mask."""

from __future__ import annotations

import math

import torch
from mmdet.models.losses.utils import weighted_loss
from mmdet.registry import MODELS
from torch import Tensor, nn

# The reference clamps probabilities to this and to 1 minus this. In float32 the latter is 1, hence logarithms here.
MIN_PROB = 1e-9


def logit_of_log_prob(log_prob: Tensor) -> Tensor:
    """Turn log-probabilities into logits that are finite for every probability from 0 to 1.

    Args:
        log_prob: Any shape, at most 0.

    Returns:
        Float32 tensor of the same shape, between ``logit(1e-9)`` and ``logit(1 - 1e-9)``.
    """
    log_prob = log_prob.float().clamp(math.log(MIN_PROB), -MIN_PROB)
    return log_prob - torch.log(-torch.expm1(log_prob))


def jaccard_steps(target: Tensor) -> Tensor:
    """Compute how much each further misclassified pixel adds to the Jaccard loss (Lovász extension's gradient).

    Args:
        target: Bool ``(N, K)``, pixels in the order in which they are taken to be misclassified.

    Returns:
        Float32 ``(N, K)``, not negative; each row's sum is 1.
    """
    # An instance without foreground is the limit of a small one: its first pixel counts 1, the others 0.
    total = target.sum(dim=1, keepdim=True).float().clamp(min=1e-30)
    missed = target.cumsum(dim=1)
    added = (~target).cumsum(dim=1)
    union = total + added
    background_step = (total - missed) / (union * (total + (added - 1)).clamp(min=1e-30))
    return torch.where(target, 1 / union, background_step)


@weighted_loss
def lovasz_hinge(log_prob: Tensor, target: Tensor) -> Tensor:
    """Compute each instance's Lovász hinge (Berman et al., arXiv 1705.08790, equation 12).

    Args:
        log_prob: ``(N, ...)``, log-probability of each pixel.
        target: Bool, same shape.

    Returns:
        Float32 tensor ``(N,)``.
    """
    target = target.flatten(1)
    logit = logit_of_log_prob(log_prob).flatten(1)
    errors = 1 - torch.where(target, logit, -logit)
    errors, order = errors.sort(dim=1, descending=True)
    return (errors.relu() * jaccard_steps(target.gather(1, order))).sum(dim=1)


@MODELS.register_module()
class LovaszHingeLoss(nn.Module):
    """Lovász hinge on the logits of log-probabilities, finite with finite gradients for every input.

    Args:
        loss_weight: What the reduced loss is multiplied by.
        reduction: ``'none'``, ``'mean'`` or ``'sum'`` over instances.
    """

    def __init__(self, loss_weight: float = 0.5, reduction: str = 'mean') -> None:
        super().__init__()
        self.loss_weight = loss_weight
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
        reduction = reduction_override or self.reduction
        loss = lovasz_hinge(log_prob, target, weight, reduction=reduction, avg_factor=avg_factor)
        return self.loss_weight * loss
