"""Plain PyTorch versions of the op: what serves without the extension, and the oracle of the kernels' tests.

N: instances, D: embedding channels, (h, w): the pixel embedding's grid, cell: a cell of the grid after its resize.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pycocotools.mask
import torch
import torch.nn.functional as F
from torch import Tensor

BOX_PADDING = 2  # cells that a box is grown by on each side
OUTSIDE = -10.0  # log-probability of the cells outside the box


def at_least_float32(*tensors: Tensor) -> list[Tensor]:
    """Convert what is of half precision: distances between embeddings need more."""
    return [t if t.dtype == torch.float64 else t.float() for t in tensors]


class LogProb(torch.autograd.Function):
    """Goes channel by channel, forwards and backwards, so that no grid is held for each instance and channel."""

    @staticmethod
    def _channels(
        pixel_embed: Tensor, proposal_embed: Tensor, proposal_margin: Tensor
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield differences ``(N, h, w)`` and margins ``(N, 1, 1)`` of each channel."""
        for pixel, proposal, margin in zip(pixel_embed, proposal_embed.t(), proposal_margin.t()):
            yield pixel - proposal[:, None, None], margin[:, None, None]

    @staticmethod
    def forward(ctx, pixel_embed: Tensor, proposal_embed: Tensor, proposal_margin: Tensor) -> Tensor:  # noqa: D102
        ctx.save_for_backward(pixel_embed, proposal_embed, proposal_margin)
        dtype = torch.promote_types(pixel_embed.dtype, torch.promote_types(proposal_embed.dtype, proposal_margin.dtype))
        log_prob = pixel_embed.new_zeros(len(proposal_embed), *pixel_embed.shape[1:], dtype=dtype)
        for difference, margin in LogProb._channels(pixel_embed, proposal_embed, proposal_margin):
            log_prob.sub_(margin * difference.square_())
        return log_prob

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # noqa: D102
        grads = []
        for difference, margin in LogProb._channels(*ctx.saved_tensors):
            weighted = grad * difference
            pixel_grad = -2 * (margin * weighted).sum(0)
            proposal_grad = 2 * margin[:, 0, 0] * weighted.sum((1, 2))
            grads.append((pixel_grad, proposal_grad, -weighted.mul_(difference).sum((1, 2))))
        pixel_grads, proposal_grads, margin_grads = zip(*grads)
        return torch.stack(pixel_grads), torch.stack(proposal_grads, 1), torch.stack(margin_grads, 1)


def embedding_log_prob(pixel_embed: Tensor, proposal_embed: Tensor, proposal_margin: Tensor) -> Tensor:
    """See :func:`embedmask_mmdet.ops.embedding_log_prob`."""
    return LogProb.apply(*at_least_float32(pixel_embed, proposal_embed, proposal_margin))


def box_cells(bboxes: Tensor, grid_shape: tuple[int, int], cell: float, padding: int = BOX_PADDING) -> Tensor:
    """The cells that a mask may touch: its box in cells, truncated, grown and clipped to the grid.

    Args:
        bboxes: ``(N, 4)`` boxes ``x1, y1, x2, y2`` in input pixels.
        grid_shape: ``(h, w)`` of the grid in cells.
        cell: Input pixels a cell.
        padding: Cells that a box is grown by on each side.

    Returns:
        int64 ``(N, 4)``, right and bottom exclusive; all 0 for a box that holds a NaN.
    """
    size = bboxes.new_tensor(grid_shape[::-1] * 2, dtype=torch.float64)
    cells = (bboxes.double() / cell).trunc() + padding * size.new_tensor([-1, -1, 1, 1])
    cells[cells.isnan().any(1)] = 0
    return cells.clamp(min=0).minimum(size).long()


def inside_boxes(bboxes: Tensor, grid_shape: tuple[int, int], cell: float, padding: int = BOX_PADDING) -> Tensor:
    """Bool ``(N, h, w)``: which cells of the grid :func:`box_cells` gives to each box."""
    x1, y1, x2, y2 = box_cells(bboxes, grid_shape, cell, padding)[..., None].unbind(1)
    y, x = (torch.arange(cells, device=bboxes.device) for cells in grid_shape)
    return ((y1 <= y) & (y < y2))[:, :, None] & ((x1 <= x) & (x < x2))[:, None, :]


def outside_value(mask_thr: float, resize_prob: bool = False) -> float:
    """What is resized has this value outside a box, below every ``mask_thr``'s: a mask never leaves its box."""
    return 0.0 if resize_prob else min(OUTSIDE, 2 * math.log(mask_thr))


def resized_shape(
    grid_shape: tuple[int, int], stride: int, img_shape: tuple[int, int], ori_shape: tuple[int, int]
) -> tuple[int, int]:
    """``(h, w)`` in original pixels of a whole grid of ``stride`` input pixels a cell, rounded up."""
    return tuple(-(-cells * stride * ori // img) for cells, img, ori in zip(grid_shape, img_shape, ori_shape))


def image_log_probs(
    pixel_embed: Tensor,
    proposal_embed: Tensor,
    proposal_margin: Tensor,
    bboxes: Tensor,
    *,
    stride: int,
    img_shape: tuple[int, int],
    ori_shape: tuple[int, int],
    mask_thr: float,
    upscale: int,
    resize_prob: bool = False,
) -> Iterator[Tensor]:
    """Yields the log-probability ``ori_shape`` of each instance in original pixels; arguments as `instance_masks`."""
    pixel_embed, proposal_embed, proposal_margin = at_least_float32(pixel_embed, proposal_embed, proposal_margin)
    h, w = pixel_embed.shape[-2:]
    size = resized_shape((h, w), stride, img_shape, ori_shape)
    resized_embed = F.interpolate(pixel_embed[None], (h * upscale, w * upscale), mode='bilinear')[0]
    # One at a time, which stays in the caches, and all its channels together: that is few calls.
    for i in range(len(bboxes)):
        distance = (resized_embed - proposal_embed[i, :, None, None]).square_()
        log_prob = -torch.tensordot(proposal_margin[i].to(distance.dtype), distance, 1)[None]
        inside = inside_boxes(bboxes[i : i + 1], log_prob.shape[1:], stride / upscale)
        values = log_prob.exp() if resize_prob else log_prob
        values = values.masked_fill(~inside, outside_value(mask_thr, resize_prob))
        values = F.interpolate(values[None], size, mode='bilinear')[0, 0, : ori_shape[0], : ori_shape[1]]
        yield values.log() if resize_prob else values


def instance_masks(
    pixel_embed: Tensor,
    proposal_embed: Tensor,
    proposal_margin: Tensor,
    bboxes: Tensor,
    *,
    stride: int,
    img_shape: tuple[int, int],
    ori_shape: tuple[int, int],
    mask_thr: float,
    upscale: int,
    resize_prob: bool = False,
) -> Tensor:
    """See :func:`embedmask_mmdet.ops.instance_masks`."""
    kwargs = dict(stride=stride, img_shape=img_shape, ori_shape=ori_shape, mask_thr=mask_thr, upscale=upscale)
    kwargs['resize_prob'] = resize_prob
    masks = torch.empty((len(bboxes), *ori_shape), dtype=torch.bool, device=pixel_embed.device)
    log_probs = image_log_probs(pixel_embed, proposal_embed, proposal_margin, bboxes, **kwargs)
    for i, log_prob in enumerate(log_probs):
        masks[i] = log_prob > math.log(mask_thr)
    return masks


def instance_rles(*args, **kwargs) -> list[dict]:
    """See :func:`embedmask_mmdet.ops.instance_rles`."""
    masks = instance_masks(*args, **kwargs).cpu().numpy()
    return [pycocotools.mask.encode(np.asfortranarray(mask.view(np.uint8))) for mask in masks]
