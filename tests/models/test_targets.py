"""Targets against plain loops and plain resizing."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmdet.structures.mask import BitmapMasks
from torch.nn.functional import avg_pool2d, interpolate, pad

from embedmask_mmdet.targets import (
    aligned_ious,
    assign_locations,
    best_candidates,
    inside_masks,
    mask_coverage,
    mask_targets,
)

seeds = st.integers(0, 2**32 - 1)


def random_boxes(rng, count, size=64):
    corners = np.sort(rng.uniform(0, size, (count, 2, 2)).round(), axis=1)
    return torch.from_numpy(corners.reshape(count, 4)).float()


@given(seeds, st.integers(1, 40), st.integers(1, 40), st.integers(1, 9), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_mask_targets_are_resized_masks(seed, rows, columns, stride, count):
    masks = (np.random.default_rng(seed).random((count, rows, columns)) < 0.3).astype(np.uint8)
    grid = (-(-rows // stride) + 1, -(-columns // stride) + 1)
    padded = pad(torch.from_numpy(masks).float(), (0, grid[1] * stride - columns, 0, grid[0] * stride - rows))
    expected = interpolate(padded[None], grid, mode='bilinear', align_corners=False)[0] > 0 if count else padded > 0
    actual = mask_targets(BitmapMasks(masks, rows, columns), grid, stride)
    assert actual.shape == (count, *grid)
    assert torch.equal(actual, expected) if count else True


@given(seeds, st.integers(1, 40), st.integers(1, 40), st.integers(1, 20), st.integers(0, 3), st.sampled_from([1, 255]))
@settings(max_examples=60, deadline=None)
def test_mask_coverage_is_the_mean_over_each_cell(seed, rows, columns, stride, count, foreground):
    masks = (np.random.default_rng(seed).random((count, rows, columns)) < 0.3).astype(np.uint8)
    grid = (-(-rows // stride) + 1, -(-columns // stride) + 1)
    padded = pad(torch.from_numpy(masks).float(), (0, grid[1] * stride - columns, 0, grid[0] * stride - rows))
    actual = mask_coverage(BitmapMasks(masks * foreground, rows, columns), grid, stride)
    torch.testing.assert_close(actual, avg_pool2d(padded, stride) if count else padded.new_zeros(0, *grid))


def test_outlines_are_told_finer_by_coverage_than_by_cells():
    y, x = np.mgrid[:64, :64]
    masks = np.stack([np.hypot(y - 31.3, x - 30.8) < radius for radius in (10, 15, 20)]).astype(np.uint8)
    ious = []
    for make_targets in (mask_targets, mask_coverage):
        target = make_targets(BitmapMasks(masks, 64, 64), (16, 16), 4).float()
        drawn = interpolate(target[None], (64, 64), mode='bilinear', align_corners=False)[0].numpy() > 0.5
        ious.append((drawn & masks).sum((1, 2)) / (drawn | masks).sum((1, 2)))
    assert (ious[1] > 0.9).all()
    assert (ious[1] > ious[0]).all()


@given(seeds, st.integers(0, 5), st.booleans())
@settings(max_examples=40, deadline=None)
def test_each_location_answers_for_the_smallest_box_that_allows_it(seed, count, with_masks):
    rng = np.random.default_rng(seed)
    bboxes = random_boxes(rng, count)
    points = torch.from_numpy(rng.uniform(-4, 68, (50, 2))).float()
    radii = torch.from_numpy(rng.choice([6.0, 12.0, np.inf], 50)).float()
    ranges = torch.tensor([[-1.0, 16.0], [16.0, 1e8]])[torch.from_numpy(rng.integers(2, size=50))]
    allowed = torch.from_numpy(rng.random((50, count)) < 0.7) if with_masks else None
    matched = assign_locations(points, radii, ranges, bboxes, allowed)
    for p, (x, y) in enumerate(points.tolist()):
        areas = {}
        for n, (x1, y1, x2, y2) in enumerate(bboxes.tolist()):
            sides = (x - x1, y - y1, x2 - x, y2 - y)
            off_centre = max(abs(x - (x1 + x2) / 2), abs(y - (y1 + y2) / 2))
            fits = min(sides) > 0 and off_centre < radii[p] and ranges[p, 0] <= max(sides) <= ranges[p, 1]
            if fits and (allowed is None or allowed[p, n]):
                areas[n] = (x2 - x1 + 1) * (y2 - y1 + 1)
        if not areas:
            assert matched[p] == -1
        else:
            assert areas[int(matched[p])] == min(areas.values())


def test_points_outside_of_the_image_lie_in_no_mask():
    masks = BitmapMasks(np.ones((2, 4, 6), np.uint8), 4, 6)
    points = torch.tensor([[0.0, 0.0], [5.9, 3.9], [6.0, 0.0], [0.0, 4.0], [-1.0, 0.0]])
    assert inside_masks(masks, points).tolist() == [[True, True]] * 2 + [[False, False]] * 3


@given(seeds, st.integers(0, 30), st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_best_candidate_of_each_instance(seed, count, num_gts):
    rng = np.random.default_rng(seed)
    gt_inds = rng.integers(num_gts, size=count)
    quality = rng.integers(4, size=count) / 4
    expected = [
        max(np.flatnonzero(gt_inds == gt), key=lambda i: (quality[i], -i)) for gt in range(num_gts) if gt in gt_inds
    ]
    actual = best_candidates(torch.from_numpy(gt_inds), torch.from_numpy(quality), num_gts)
    assert actual.tolist() == expected


def test_iou_counts_pixels_at_both_ends():
    bboxes = torch.tensor([[0.0, 0.0, 9.0, 9.0], [0.0, 0.0, 9.0, 9.0]])
    gt_bboxes = torch.tensor([[0.0, 0.0, 9.0, 4.0], [20.0, 20.0, 29.0, 29.0]])
    torch.testing.assert_close(aligned_ious(bboxes, gt_bboxes), torch.tensor([0.5, 0.0]))
