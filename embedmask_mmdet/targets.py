"""What EmbedMask is trained towards: which location answers for which instance, and its mask (paper, section 3.4).

Shape legend: ``P`` locations of all levels, ``N`` instances of an image, ``h, w`` cells of the mask grid. Boxes are
``(x1, y1, x2, y2)`` and points ``(x, y)``, both in input pixels. Box sizes count ``x2 - x1 + 1`` as in the reference.
"""

from __future__ import annotations

import torch
from mmdet.structures.mask import BaseInstanceMasks
from mmengine.structures import InstanceData
from torch import Tensor

NO_INSTANCE = -1


def gt_masks(gt_instances: InstanceData) -> BaseInstanceMasks | Tensor:
    """Return an image's ground-truth masks, or say how to get them.

    Args:
        gt_instances: Of an image.

    Returns:
        Its ``masks``.

    Raises:
        ValueError: If it has none.
    """
    if 'masks' not in gt_instances:
        raise ValueError('the training data have no masks: set with_mask=True in LoadAnnotations of train_pipeline')
    return gt_instances.masks


def masks_as_tensor(masks: BaseInstanceMasks | Tensor) -> Tensor:
    """View the masks of an image as one tensor, where they lie, without a copy of bitmaps.

    Args:
        masks: MMDetection's bitmaps or polygons, or a tensor already, of ``N`` instances.

    Returns:
        Tensor ``(N, H, W)``, not 0 inside.
    """
    return masks if isinstance(masks, Tensor) else torch.from_numpy(masks.to_ndarray())


def inside_masks(masks: BaseInstanceMasks | Tensor, points: Tensor) -> Tensor:
    """Tell which points lie on which instances' masks.

    Args:
        masks: Of ``N`` instances, in input pixels.
        points: ``(P, 2)``; points beyond the masks lie in none.

    Returns:
        Bool tensor ``(P, N)`` on the device of ``points``.
    """
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
    """Assign each location to at most one instance (FCOS, section 3.1, with centre sampling).

    A location may answer for an instance if it lies in its box, no farther than its radius from the box's centre,
    and if the farthest side of the box falls into its level's range; of several the smallest box wins.

    Args:
        points: ``(P, 2)``.
        radii: ``(P,)``, input pixels along each axis; infinite without centre sampling.
        regress_ranges: ``(P, 2)``, input pixels.
        bboxes: ``(N, 4)``.
        allowed: Bool ``(P, N)``, a further condition.

    Returns:
        Int64 tensor ``(P,)``: index of the instance, -1 for background.
    """
    if len(bboxes) == 0:
        return points.new_full((len(points),), NO_INSTANCE, dtype=torch.long)
    left_top = points[:, None] - bboxes[None, :, :2]
    right_bottom = bboxes[None, :, 2:] - points[:, None]
    nearest_side = torch.minimum(left_top, right_bottom).amin(dim=2)
    farthest_side = torch.maximum(left_top, right_bottom).amax(dim=2)
    off_centre = (left_top - right_bottom).abs().amax(dim=2) / 2
    candidate = (nearest_side > 0) & (off_centre < radii[:, None])
    candidate &= (farthest_side >= regress_ranges[:, :1]) & (farthest_side <= regress_ranges[:, 1:])
    if allowed is not None:
        candidate &= allowed
    areas = (bboxes[:, 2:] - bboxes[:, :2] + 1).prod(dim=1)
    smallest, matched_gt = areas.expand(len(points), -1).masked_fill(~candidate, torch.inf).min(dim=1)
    return matched_gt.masked_fill(smallest.isinf(), NO_INSTANCE)


def keep_allowed(matched_gt: Tensor, allowed: Tensor) -> Tensor:
    """Withdraw locations from instances for which they may not answer.

    Args:
        matched_gt: Int64 ``(P,)`` from :func:`assign_locations`.
        allowed: Bool ``(P, N)``.

    Returns:
        Int64 tensor ``(P,)``, -1 where it was or is not allowed.
    """
    if allowed.shape[1] == 0:
        return matched_gt
    is_allowed = allowed.gather(1, matched_gt.clamp(min=0)[:, None])[:, 0]
    return matched_gt.masked_fill(~is_allowed, NO_INSTANCE)


def aligned_ious(bboxes: Tensor, gt_bboxes: Tensor) -> Tensor:
    """Compute the IoU of each predicted box with the ground-truth box beside it, sizes counted with +1.

    Args:
        bboxes: ``(K, 4)``.
        gt_bboxes: ``(K, 4)``.

    Returns:
        ``(K,)``.
    """
    overlap = torch.minimum(bboxes[:, 2:], gt_bboxes[:, 2:]) - torch.maximum(bboxes[:, :2], gt_bboxes[:, :2]) + 1
    intersection = overlap.clamp(min=0).prod(dim=1)
    area, gt_area = ((box[:, 2:] - box[:, :2] + 1).prod(dim=1) for box in (bboxes, gt_bboxes))
    return intersection / (area + gt_area - intersection)


def best_candidates(gt_inds: Tensor, quality: Tensor, num_gts: int, num_best: int = 1) -> Tensor:
    """Choose for each instance the best of its candidates.

    Args:
        gt_inds: Int64 ``(K,)``, the instance of each candidate.
        quality: ``(K,)``; of equal ones the first is chosen.
        num_gts: ``N``.
        num_best: Candidates to choose for an instance; those with fewer keep all.

    Returns:
        Int64 tensor, at most ``N * num_best`` long: indices of candidates by instance, the best of each first.
    """
    order = quality.argsort(descending=True, stable=True)
    order = order[gt_inds[order].argsort(stable=True)]
    counts = gt_inds.new_zeros(num_gts).index_add(0, gt_inds, torch.ones_like(gt_inds))
    firsts = counts.cumsum(0) - counts
    ranks = torch.arange(len(order), device=order.device) - firsts[gt_inds[order]]
    return order[ranks < num_best]


def any_of_middles(masks: Tensor, dim: int, num_cells: int, stride: int) -> Tensor:
    """Merge the middle rows (``dim=1``) or columns (``dim=2``) of each cell; what is beyond the masks is 0."""
    merged = masks.new_zeros(*masks.shape[:dim], num_cells, *masks.shape[dim + 1 :])
    for middle in {(stride - 1) // 2, stride // 2}:
        sample = masks[(slice(None),) * dim + (slice(middle, num_cells * stride, stride),)]
        merged.narrow(dim, 0, sample.shape[dim]).bitwise_or_(sample)
    return merged


def mask_targets(masks: BaseInstanceMasks | Tensor, mask_size: tuple[int, int], mask_stride: int) -> Tensor:
    """Bring masks to the grid on which they are compared with probabilities.

    Bilinear resizing by a whole factor, ``align_corners=False``, reads the two middle rows and columns of a cell, or
    the one middle where the factor is odd. The reference counts all above 0 as foreground, so a cell is foreground
    if any of those pixels is.

    Args:
        masks: Of ``N`` instances, in input pixels, bool or integers; beyond them there is background.
        mask_size: Height and width of the grid in cells.
        mask_stride: Input pixels a cell.

    Returns:
        Bool tensor ``(N, h, w)`` where the masks lie.
    """
    # Rows first: they are contiguous, and leave fewer pixels to be picked one by one.
    masks = any_of_middles(masks_as_tensor(masks), 1, mask_size[0], mask_stride)
    return any_of_middles(masks, 2, mask_size[1], mask_stride) != 0


def sum_over_cells(counts: Tensor, dim: int, num_cells: int, stride: int) -> Tensor:
    """Add up the rows (``dim=1``) or columns (``dim=2``) of each cell; what is beyond the counts is 0."""
    total = counts.new_zeros(*counts.shape[:dim], num_cells, *counts.shape[dim + 1 :], dtype=torch.int16)
    for first in range(stride):
        sample = counts[(slice(None),) * dim + (slice(first, num_cells * stride, stride),)]
        total.narrow(dim, 0, sample.shape[dim]).add_(sample)
    return total


def mask_coverage(masks: BaseInstanceMasks | Tensor, mask_size: tuple[int, int], mask_stride: int) -> Tensor:
    """Compute which part of each cell masks cover, from which outlines can be told more finely than by cells.

    Args:
        masks: As in :func:`mask_targets`.
        mask_size: Height and width of the grid in cells.
        mask_stride: Input pixels a cell.

    Returns:
        Float32 tensor ``(N, h, w)`` from 0 to 1, where the masks lie.
    """
    counts = sum_over_cells(masks_as_tensor(masks) != 0, 1, mask_size[0], mask_stride)
    return sum_over_cells(counts, 2, mask_size[1], mask_stride) / mask_stride**2
