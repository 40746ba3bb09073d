"""Training targets: which location learns from which instance, and the masks on the grid (paper, section 3.4).

Shape legend: ``P`` locations of all levels, ``N`` instances of an image, ``h, w`` cells of the mask grid. Boxes are
``(x1, y1, x2, y2)`` and points ``(x, y)``, both in input pixels. Box sizes count ``x2 - x1 + 1`` as in the reference.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from mmdet.structures.mask import BaseInstanceMasks
from mmengine.structures import InstanceData
from torch import Tensor

from embedmask_mmdet.cropped_masks import CroppedMasks

NO_INSTANCE = -1


def gt_masks(gt_instances: InstanceData) -> BaseInstanceMasks | Tensor:
    """Return the ground-truth masks of an image.

    Args:
        gt_instances: Of an image.

    Returns:
        Its ``masks``.

    Raises:
        ValueError: If it has none.
    """
    if 'masks' not in gt_instances:
        raise ValueError('the training data have no masks. Set with_mask=True in LoadAnnotations of train_pipeline.')
    return gt_instances.masks


def masks_as_tensor(masks: BaseInstanceMasks | Tensor) -> Tensor:
    """View the masks of an image as one tensor, on their device, without a copy of bitmaps.

    Args:
        masks: MMDetection's bitmaps or polygons, or a tensor already, of ``N`` instances.

    Returns:
        Bool or integer tensor ``(N, H, W)``, nonzero inside.
    """
    masks = masks if isinstance(masks, Tensor) else torch.from_numpy(masks.to_ndarray())
    # Cells are combined bit by bit, which numbers with a fraction lack.
    return masks != 0 if masks.is_floating_point() else masks


def inside_crops(masks: CroppedMasks, points: Tensor) -> Tensor:
    """Find the points inside each mask as :func:`inside_masks` does, without bitmaps of the complete image."""
    x, y = points.long().cpu().numpy().T
    inside = np.zeros((len(masks), len(points)), bool)
    for row, ((left, top), bitmap) in zip(inside, masks.crops):
        (height, width), column, line = bitmap.shape, x - left, y - top
        in_box = np.flatnonzero((column >= 0) & (column < width) & (line >= 0) & (line < height))
        row[in_box] = bitmap[line[in_box], column[in_box]]
    return torch.from_numpy(inside).t().to(points.device)


def inside_masks(masks: BaseInstanceMasks | Tensor, points: Tensor) -> Tensor:
    """Find the points inside each mask.

    Args:
        masks: Of ``N`` instances, in input pixels.
        points: ``(P, 2)``; points beyond the masks are outside of all.

    Returns:
        Bool tensor ``(P, N)`` on the device of ``points``.
    """
    if isinstance(masks, CroppedMasks):
        return inside_crops(masks, points)
    masks = masks_as_tensor(masks)
    height, width = masks.shape[-2:]
    x, y = points.long().to(masks.device).unbind(dim=1)
    in_image = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    inside = torch.zeros(len(masks), len(points), dtype=torch.bool, device=masks.device)
    inside[:, in_image] = masks[:, y[in_image], x[in_image]] != 0
    return inside.t().to(points.device)


def assign_locations(
    points: Tensor,
    radii: Tensor,
    regress_ranges: Tensor,
    bboxes: Tensor,
    allowed: Tensor | None = None,
) -> Tensor:
    """Assign each location to at most one instance (FCOS, arXiv 1904.01355, section 3.1, with center sampling).

    A location may learn from an instance if it lies inside the box, within its radius around the center of the box, and
    if the distance to the farthest side of the box is in the range of its level. Of several, the smallest box wins.

    Args:
        points: ``(P, 2)``.
        radii: ``(P,)``, input pixels along each axis; infinite without center sampling.
        regress_ranges: ``(P, 2)``, input pixels.
        bboxes: ``(N, 4)``.
        allowed: Bool ``(P, N)``, an additional condition.

    Returns:
        Int64 tensor ``(P,)``: index of the instance, -1 for background.
    """
    if len(bboxes) == 0:
        return points.new_full((len(points),), NO_INSTANCE, dtype=torch.long)
    left_top = points[:, None] - bboxes[None, :, :2]
    right_bottom = bboxes[None, :, 2:] - points[:, None]
    nearest_side = torch.minimum(left_top, right_bottom).amin(dim=2)
    farthest_side = torch.maximum(left_top, right_bottom).amax(dim=2)
    off_center = (left_top - right_bottom).abs().amax(dim=2) / 2
    candidate = (nearest_side > 0) & (off_center < radii[:, None])
    candidate &= (farthest_side >= regress_ranges[:, :1]) & (farthest_side <= regress_ranges[:, 1:])
    if allowed is not None:
        candidate &= allowed
    areas = (bboxes[:, 2:] - bboxes[:, :2] + 1).prod(dim=1)
    smallest, matched_gt = areas.expand(len(points), -1).masked_fill(~candidate, torch.inf).min(dim=1)
    return matched_gt.masked_fill(smallest.isinf(), NO_INSTANCE)


def best_candidates(gt_inds: Tensor, quality: Tensor, num_gts: int, num_best: int = 1) -> Tensor:
    """Choose the best candidates of each instance.

    Args:
        gt_inds: Int64 ``(K,)``, the instance of each candidate.
        quality: ``(K,)``; of equal candidates the first is chosen.
        num_gts: ``N``.
        num_best: Candidates to choose for each instance, or all if it has fewer.

    Returns:
        Int64 tensor of at most ``N * num_best`` indices of candidates, by instance, the best of each first.
    """
    order = quality.argsort(descending=True, stable=True)
    order = order[gt_inds[order].argsort(stable=True)]
    counts = gt_inds.new_zeros(num_gts).index_add(0, gt_inds, torch.ones_like(gt_inds))
    firsts = counts.cumsum(0) - counts
    ranks = torch.arange(len(order), device=order.device) - firsts[gt_inds[order]]
    return order[ranks < num_best]


def combine_middles(masks: Tensor, dim: int, num_cells: int, stride: int) -> Tensor:
    """Combine the middle rows (``dim=1``) or columns (``dim=2``) of each cell; beyond the masks there is 0."""
    merged = masks.new_zeros(*masks.shape[:dim], num_cells, *masks.shape[dim + 1 :])
    for middle in {(stride - 1) // 2, stride // 2}:
        sample = masks[(slice(None),) * dim + (slice(middle, num_cells * stride, stride),)]
        merged.narrow(dim, 0, sample.shape[dim]).bitwise_or_(sample)
    return merged


def resize_crops(
    resize: Callable[[Tensor, tuple[int, int], int], Tensor],
    masks: CroppedMasks,
    mask_size: tuple[int, int],
    mask_stride: int,
) -> Tensor:
    """Resize masks to the grid inside the boxes around them.

    Args:
        resize: :func:`mask_targets` or :func:`mask_coverage`.
        masks: Of ``N`` instances, in input pixels.
        mask_size: ``(h, w)`` of the grid in cells.
        mask_stride: Input pixels per cell.

    Returns:
        What ``resize`` returns.
    """
    corners = np.array([crop.corner[::-1] for crop in masks.crops], np.int64).reshape(-1, 2)
    shapes = np.array([crop.bitmap.shape for crop in masks.crops], np.int64).reshape(-1, 2)
    cells, rests = np.divmod(corners, mask_stride)
    # All boxes get the same number of whole cells.
    rows, columns = ((rests + shapes + mask_stride - 1) // mask_stride).max(axis=0, initial=0)
    boxes = np.zeros((len(masks), rows * mask_stride, columns * mask_stride), np.uint8)
    for box, (top, left), (height, width), crop in zip(boxes, rests, shapes, masks.crops):
        box[top : top + height, left : left + width] = crop.bitmap
    small = resize(torch.from_numpy(boxes), (rows, columns), mask_stride)
    resized = small.new_zeros(len(masks), *mask_size)
    for target, values, (top, left) in zip(resized.numpy(), small.numpy(), cells):
        part = target[top : top + rows, left : left + columns]
        part[:] = values[: part.shape[0], : part.shape[1]]
    return resized


def mask_targets(masks: BaseInstanceMasks | Tensor, mask_size: tuple[int, int], mask_stride: int) -> Tensor:
    """Resize masks to the grid as the authors' code does: bilinear, everything above 0 is foreground.

    Bilinear resizing by an integer factor, ``align_corners=False``, reads the two middle rows and columns of a cell, or
    the single middle one if the factor is odd. So a cell is foreground if any of these pixels is.

    Args:
        masks: Of ``N`` instances, in input pixels, nonzero inside; beyond them there is background.
        mask_size: ``(h, w)`` of the grid in cells.
        mask_stride: Input pixels per cell.

    Returns:
        Bool tensor ``(N, h, w)`` on the device of the masks.
    """
    if isinstance(masks, CroppedMasks):
        return resize_crops(mask_targets, masks, mask_size, mask_stride)
    # Rows first: they are contiguous, and fewer pixels are left to be picked one by one.
    masks = combine_middles(masks_as_tensor(masks), 1, mask_size[0], mask_stride)
    return combine_middles(masks, 2, mask_size[1], mask_stride) != 0


def sum_over_cells(counts: Tensor, dim: int, num_cells: int, stride: int) -> Tensor:
    """Add up the rows (``dim=1``) or columns (``dim=2``) of each cell; beyond the counts there is 0."""
    total = counts.new_zeros(*counts.shape[:dim], num_cells, *counts.shape[dim + 1 :], dtype=torch.int16)
    for first in range(stride):
        sample = counts[(slice(None),) * dim + (slice(first, num_cells * stride, stride),)]
        total.narrow(dim, 0, sample.shape[dim]).add_(sample)
    return total


def mask_coverage(masks: BaseInstanceMasks | Tensor, mask_size: tuple[int, int], mask_stride: int) -> Tensor:
    """Compute the part of each cell that a mask covers, which shows outlines more finely than whole cells.

    Args:
        masks: As in :func:`mask_targets`.
        mask_size: ``(h, w)`` of the grid in cells.
        mask_stride: Input pixels per cell.

    Returns:
        Float32 tensor ``(N, h, w)`` from 0 to 1, on the device of the masks.
    """
    if isinstance(masks, CroppedMasks):
        return resize_crops(mask_coverage, masks, mask_size, mask_stride)
    counts = sum_over_cells(masks_as_tensor(masks) != 0, 1, mask_size[0], mask_stride)
    return sum_over_cells(counts, 2, mask_size[1], mask_stride) / mask_stride**2
