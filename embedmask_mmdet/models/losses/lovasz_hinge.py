"""The mask loss of the paper: a Lovász hinge (section 3.4)."""

from __future__ import annotations

import math

import torch
from mmdet.registry import MODELS
from mmdet.structures.mask import BaseInstanceMasks
from torch import Tensor

from embedmask_mmdet.models.losses.log_prob_loss import LogProbLoss, pick_pixels, sum_by_row
from embedmask_mmdet.targets import mask_targets

# The authors' code clamps probabilities to this and to 1 minus this. In float32 the latter is 1, hence logarithms here.
MIN_PROB = 1e-9


def logit_of_log_prob(log_prob: Tensor) -> Tensor:
    """Turn log-probabilities into logits.

    Args:
        log_prob: Any shape, below 0.

    Returns:
        Tensor of the same shape.
    """
    return log_prob - torch.log(-torch.expm1(log_prob))


def clamp_log_prob(log_prob: Tensor, keep_saturated_grad: bool = False) -> Tensor:
    """Clamp log-probabilities where their logits would be infinite.

    Args:
        log_prob: Any shape, at most 0.
        keep_saturated_grad: Whether gradients flow where values are clamped.

    Returns:
        Tensor of the same shape, between ``log(1e-9)`` and ``log(1 - 1e-9)``.
    """
    clamped = log_prob.clamp(math.log(MIN_PROB), -MIN_PROB)
    # The difference is exactly 0, however far away the clamped value is.
    return clamped.detach() + (log_prob - log_prob.detach()) if keep_saturated_grad else clamped


def hinge_errors(log_prob: Tensor, target: Tensor) -> Tensor:
    """Compute by how much each pixel's logit falls short of 1 on its own side, at least 0."""
    logit = logit_of_log_prob(log_prob)
    return (1 - torch.where(target, logit, -logit)).relu()


def has_error(log_prob: Tensor, target: Tensor) -> Tensor:
    """Find the pixels whose hinge error is above 0 or NaN, which must show in the loss."""
    enough, too_much = -math.log1p(math.exp(-1)), -math.log1p(math.exp(1))
    return ~((log_prob >= enough) & target | (log_prob <= too_much) & ~target)


def descending_order(errors: Tensor, rows: Tensor) -> Tensor:
    """Sort each row's errors, the largest first.

    Args:
        errors: Float32 ``(K,)``, at least 0.
        rows: Int64 ``(K,)``, the row of each error, ascending.

    Returns:
        Int64 ``(K,)``, indices that sort the errors of each row and leave the rows in place.
    """
    # Nonnegative floats have the order of their bits. Integers with the row in the upper bits sort fastest.
    bits = errors.view(torch.int32).long()
    return ((rows << 32) + (torch.iinfo(torch.int32).max - bits)).argsort()


def cumsum_by_row(values: Tensor, rows: Tensor, num_rows: int) -> Tensor:
    """Compute the cumulative sum of integers ``(K,)`` within each row; ``rows`` as in :func:`descending_order`."""
    sums = sum_by_row(values, rows, num_rows)
    before = sums.cumsum(0) - sums
    return values.cumsum(0) - before[rows]


def jaccard_steps(target: Tensor, rows: Tensor, totals: Tensor) -> Tensor:
    """Compute how much each further misclassified pixel adds to the Jaccard loss (Lovász extension's gradient).

    Args:
        target: Bool ``(K,)``, pixels in the order in which they are taken to be misclassified, row after row.
        rows: Int64 ``(K,)``, the row of each pixel, ascending.
        totals: Int64 ``(N,)``, foreground pixels of each row, those among them that are not misclassified as well.

    Returns:
        Float32 ``(K,)``, not negative; a row's sum is at most 1.
    """
    missed = cumsum_by_row(target.long(), rows, len(totals))
    added = cumsum_by_row((~target).long(), rows, len(totals))
    # An instance without foreground is the limit of a small one: its first pixel counts 1, the others 0.
    total = totals.float().clamp(min=1e-30)[rows]
    union = total + added
    background_step = (total - missed) / (union * (total + (added - 1)).clamp(min=1e-30))
    return torch.where(target, 1 / union, background_step)


def lovasz_hinge(log_prob: Tensor, target: Tensor, keep_saturated_grad: bool = False) -> Tensor:
    """Compute each instance's Lovász hinge (Berman et al., arXiv 1705.08790, equation 12).

    Args:
        log_prob: ``(N, ...)``, log-probability of each pixel.
        target: Bool, same shape.
        keep_saturated_grad: See :class:`LovaszHingeLoss`.

    Returns:
        Float32 tensor ``(N,)``.
    """
    log_prob, target = log_prob.float().flatten(1), target.flatten(1)
    totals = target.sum(dim=1)
    # Pixels without error would come last, and change neither the loss nor the steps of those before them.
    log_prob, target, rows = pick_pixels(log_prob, target, has_error(log_prob.detach(), target))
    with torch.no_grad():
        # Saturated pixels have equal errors after the clamp, so they are sorted by their errors before it.
        order = descending_order(hinge_errors(log_prob.clamp(max=-MIN_PROB), target), rows)
        steps = torch.empty_like(log_prob).scatter_(0, order, jaccard_steps(target[order], rows, totals))
    errors = hinge_errors(clamp_log_prob(log_prob, keep_saturated_grad), target)
    return sum_by_row(errors * steps, rows, len(totals))


@MODELS.register_module()
class LovaszHingeLoss(LogProbLoss):
    """Lovász hinge on the logits of log-probabilities, finite with finite gradients for every input.

    Memory and time grow with the pixels that are not yet classified with a margin; only those are sorted.

    Args:
        loss_weight: Factor on the reduced loss.
        reduction: ``'none'``, ``'mean'`` or ``'sum'`` over instances.
        keep_saturated_grad: Whether pixels whose probability is below ``1e-9``, where the authors' code clamps it,
            keep a gradient. The value of the loss is the same. Without it, a model whose margins became so sharp that
            every pixel saturates never learns masks again.

    Raises:
        TypeError: When called with a target that is not bool.
    """

    def __init__(self, loss_weight: float = 0.5, reduction: str = 'mean', keep_saturated_grad: bool = False) -> None:
        super().__init__(loss_weight, reduction)
        self.keep_saturated_grad = keep_saturated_grad

    def make_target(self, masks: BaseInstanceMasks | Tensor, grid_size: tuple[int, int], mask_stride: int) -> Tensor:
        """Make bool targets with :func:`mask_targets`; see :class:`LogProbLoss`."""
        return mask_targets(masks, grid_size, mask_stride)

    def instance_losses(self, log_prob: Tensor, target: Tensor) -> Tensor:
        """Compute the loss of each instance, see :class:`LogProbLoss`."""
        if target.dtype != torch.bool:
            raise TypeError(f'LovaszHingeLoss needs bool targets, got {target.dtype}. Make them with its make_target.')
        return lovasz_hinge(log_prob, target, self.keep_saturated_grad)
