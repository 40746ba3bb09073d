"""What the mask losses have in common: the interface, and sums over the pixels that matter."""

from __future__ import annotations

from abc import ABCMeta, abstractmethod

from mmdet.models.losses.utils import weight_reduce_loss
from mmdet.structures.mask import BaseInstanceMasks
from torch import Tensor, nn

# Log-probability of pixels that a loss must not look at. Its exponential is exactly 0, and unlike minus infinity it
# can be multiplied with 0.
SURELY_OUTSIDE = -1000.0


def pick_pixels(log_prob: Tensor, target: Tensor, picked: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Pick the pixels that contribute to a loss, so that memory and time grow with those alone.

    Args:
        log_prob: ``(N, K)``.
        target: ``(N, K)``.
        picked: Bool ``(N, K)``.

    Returns:
        Log-probability (with gradients), target and row of the picked pixels, by row.
    """
    pixels = picked.flatten().nonzero().squeeze(1)
    rows = pixels // max(picked.shape[1], 1)
    return log_prob.flatten().gather(0, pixels), target.flatten()[pixels], rows


def sum_by_row(values: Tensor, rows: Tensor, num_rows: int) -> Tensor:
    """Sum values ``(K,)`` by their rows, to ``(num_rows,)``."""
    return values.new_zeros(num_rows).index_add(0, rows, values)


class LogProbLoss(nn.Module, metaclass=ABCMeta):
    """Base of mask losses. A new one implements :meth:`make_target` and :meth:`instance_losses`.

    Args:
        loss_weight: Factor on the reduced loss.
        reduction: ``'none'``, ``'mean'`` or ``'sum'`` over instances.
    """

    def __init__(self, loss_weight: float = 1.0, reduction: str = 'mean') -> None:
        super().__init__()
        self.loss_weight = loss_weight
        self.reduction = reduction

    @abstractmethod
    def make_target(self, masks: BaseInstanceMasks | Tensor, grid_size: tuple[int, int], mask_stride: int) -> Tensor:
        """Make what this loss compares with, such as :func:`mask_targets` or :func:`mask_coverage` of ``targets``.

        Args:
            masks: Of ``N`` instances in input pixels.
            grid_size: ``(h, w)`` of the mask grid in cells.
            mask_stride: Input pixels per cell.

        Returns:
            ``(N, h, w)``.
        """

    @abstractmethod
    def instance_losses(self, log_prob: Tensor, target: Tensor) -> Tensor:
        """Compute the loss of each instance.

        Args:
            log_prob: Float32 ``(N, h, w)``, log-probability of each pixel to belong to the instance: at most 0, and
                finite for finite weights. It may be exactly 0, so clamp it before ``log(1 - exp(log_prob))``. Pixels
                that must not count have :data:`SURELY_OUTSIDE` and target 0; no gradient flows back from them.
            target: ``(N, h, w)`` of the dtype that :meth:`make_target` returns: bool from :func:`mask_targets`,
                float32 from :func:`mask_coverage`. ``N`` may be 0.

        Returns:
            Float32 tensor ``(N,)``.
        """

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
            log_prob: As in :meth:`instance_losses`.
            target: As in :meth:`instance_losses`.
            weight: ``(N,)``, a factor for each instance.
            avg_factor: Divides the sum over instances, instead of their number.
            reduction_override: Replaces ``reduction``.

        Returns:
            Float32 scalar, or ``(N,)`` without reduction.
        """
        losses = self.instance_losses(log_prob, target)
        return self.loss_weight * weight_reduce_loss(losses, weight, reduction_override or self.reduction, avg_factor)
