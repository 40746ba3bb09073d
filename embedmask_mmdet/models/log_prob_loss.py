"""What the mask losses have in common: pixels that cost something, and the way from instances to a batch."""

from __future__ import annotations

from abc import ABCMeta, abstractmethod

from mmdet.models.losses.utils import weight_reduce_loss
from torch import Tensor, nn


def pick_pixels(log_prob: Tensor, target: Tensor, picked: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Pick the pixels that cost something, so that memory and time grow with those alone.

    Args:
        log_prob: ``(N, K)``.
        target: ``(N, K)``.
        picked: Bool ``(N, K)``.

    Returns:
        Of all instances' picked pixels, one instance after the other: log-probability, with gradients, target, and row.
    """
    pixels = picked.flatten().nonzero().squeeze(1)
    rows = pixels // max(picked.shape[1], 1)
    return log_prob.flatten().gather(0, pixels), target.flatten()[pixels], rows


def sum_by_row(values: Tensor, rows: Tensor, num_rows: int) -> Tensor:
    """Sum up values ``(K,)`` by their rows, to ``(num_rows,)``."""
    return values.new_zeros(num_rows).index_add(0, rows, values)


class LogProbLoss(nn.Module, metaclass=ABCMeta):
    """Base of losses between log-probabilities and masks.

    Args:
        loss_weight: What the reduced loss is multiplied by.
        reduction: ``'none'``, ``'mean'`` or ``'sum'`` over instances.
    """

    def __init__(self, loss_weight: float, reduction: str) -> None:
        super().__init__()
        self.loss_weight = loss_weight
        self.reduction = reduction

    @abstractmethod
    def instance_losses(self, log_prob: Tensor, target: Tensor) -> Tensor:
        """Compute the loss of each instance, ``(N,)``; arguments are those of :meth:`forward`."""

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
            target: Bool ``(N, h, w)``, or, where the loss says so, float from 0 to 1.
            weight: ``(N,)``, a factor for each instance.
            avg_factor: Divides the sum over instances in place of their number.
            reduction_override: Replaces ``reduction``.

        Returns:
            Float32 scalar, or ``(N,)`` without reduction.
        """
        losses = self.instance_losses(log_prob, target)
        return self.loss_weight * weight_reduce_loss(losses, weight, reduction_override or self.reduction, avg_factor)
