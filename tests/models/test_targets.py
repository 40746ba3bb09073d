"""Targets against plain loops and plain resizing."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmdet.structures.mask import BitmapMasks
from mmengine.structures import InstanceData
from torch.nn.functional import avg_pool2d, interpolate, pad

from embedmask_mmdet.targets import (
    assign_locations,
    best_candidates,
    gt_masks,
    inside_masks,
    mask_coverage,
    mask_targets,
)

seeds = st.integers(0, 2**32 - 1)


def random_boxes(rng, count, size=64):
    corners = np.sort(rng.uniform(0, size, (count, 2, 2)).round(), axis=1)
    return torch.from_numpy(corners.reshape(count, 4)).float()


def fit_to_grid(masks, grid, stride):
    """Pad masks with background, or cut them, to the area that the grid's cells cover."""
    (rows, columns), (height, width) = masks.shape[1:], (cells * stride for cells in grid)
    return pad(torch.from_numpy(masks).float(), (0, max(width - columns, 0), 0, max(height - rows, 0)))[
        :, :height, :width
    ]


# Cells of a grid that ends with the masks, beyond them or before.
extra_cells = st.sampled_from([1, 0, -1])


@given(seeds, st.integers(1, 40), st.integers(1, 40), st.integers(1, 9), st.integers(0, 3), extra_cells)
@settings(max_examples=60, deadline=None)
def test_mask_targets_are_resized_masks(seed, rows, columns, stride, count, extra):
    masks = (np.random.default_rng(seed).random((count, rows, columns)) < 0.3).astype(np.uint8)
    grid = tuple(max(-(-size // stride) + extra, 1) for size in (rows, columns))
    padded = fit_to_grid(masks, grid, stride)
    expected = interpolate(padded[None], grid, mode='bilinear', align_corners=False)[0] > 0 if count else padded > 0
    actual = mask_targets(BitmapMasks(masks, rows, columns), grid, stride)
    assert actual.shape == (count, *grid)
    assert torch.equal(actual, expected) if count else True


@given(
    seeds,
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(1, 20),
    st.integers(0, 3),
    st.sampled_from([1, 255]),
    extra_cells,
)
@settings(max_examples=60, deadline=None)
def test_mask_coverage_is_the_mean_over_each_cell(seed, rows, columns, stride, count, foreground, extra):
    masks = (np.random.default_rng(seed).random((count, rows, columns)) < 0.3).astype(np.uint8)
    grid = tuple(max(-(-size // stride) + extra, 1) for size in (rows, columns))
    padded = fit_to_grid(masks, grid, stride)
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
    # Whole numbers, as of boxes: points on a box's side and at the ends of ranges are frequent.
    points = torch.from_numpy(rng.integers(-4, 68, (50, 2))).float()
    radii = torch.from_numpy(rng.choice([6.0, 12.0, np.inf], 50)).float()
    ranges = torch.tensor([[-1.0, 16.0], [16.0, 1e8]])[torch.from_numpy(rng.integers(2, size=50))]
    allowed = torch.from_numpy(rng.random((50, count)) < 0.7) if with_masks else None
    matched = assign_locations(points, radii, ranges, bboxes, allowed)
    assert matched.dtype == torch.int64
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


def assign_one(point, bboxes, radius=torch.inf, regress_range=(-1.0, 1e8)):
    return int(assign_locations(*(torch.tensor([values]) for values in (point, radius, regress_range)), bboxes))


@pytest.mark.parametrize(
    'point, expected', [((2.0, 5.0), -1), ((3.0, 5.0), 0), ((5.0, 2.0), -1), ((5.0, 8.0), -1), ((8.0, 5.0), -1)]
)
def test_a_location_on_a_side_of_a_box_is_outside(point, expected):
    assert assign_one(point, torch.tensor([[2.0, 2.0, 8.0, 8.0]])) == expected


@pytest.mark.parametrize(
    'regress_range, expected', [((-1.0, 5.9), -1), ((-1.0, 6.0), 0), ((6.0, 9.0), 0), ((6.1, 9.0), -1)]
)
def test_both_ends_of_a_level_belong_to_it(regress_range, expected):
    # The farthest side is 6 pixels away.
    assert assign_one((4.0, 5.0), torch.tensor([[2.0, 2.0, 10.0, 8.0]]), regress_range=regress_range) == expected


@pytest.mark.parametrize('radius, expected', [(1.5, -1), (1.6, 0)])
def test_a_location_at_the_radius_is_too_far_from_the_center(radius, expected):
    assert assign_one((6.5, 5.0), torch.tensor([[2.0, 2.0, 8.0, 8.0]]), radius) == expected


@pytest.mark.parametrize('other, expected', [((2.0, 1.0, 7.0, 5.0), 1), ((2.0, 0.0, 7.0, 6.0), 0)])
def test_sizes_of_boxes_count_pixels_at_both_ends(other, expected):
    # The first box has 20 x 2 pixels, more than 6 x 5 but less than 6 x 7. Sides of 19 x 1 would be the smallest.
    assert assign_one((5.0, 2.5), torch.tensor([[0.0, 2.0, 19.0, 3.0], other])) == expected


def test_points_outside_of_the_image_lie_in_no_mask():
    masks = BitmapMasks(np.ones((2, 4, 6), np.uint8), 4, 6)
    points = torch.tensor([[0.0, 0.0], [5.9, 3.9], [6.0, 0.0], [0.0, 4.0], [-1.0, 0.0], [0.0, -1.0]])
    assert inside_masks(masks, points).tolist() == [[True, True]] * 2 + [[False, False]] * 4


def test_points_lie_in_the_masks_whose_pixel_is_set():
    masks = torch.zeros(2, 4, 6, dtype=torch.uint8)
    masks[0, 1, 4], masks[1, :, 5] = 255, 1
    inside = inside_masks(masks, torch.tensor([[4.5, 1.9], [1.0, 4.0], [5.0, 2.0], [3.9, 1.0]]))
    assert inside.dtype == torch.bool
    assert inside.tolist() == [[True, False], [False, False], [False, True], [False, False]]


def test_masks_that_were_not_loaded_are_named():
    with pytest.raises(ValueError, match='with_mask=True'):
        gt_masks(InstanceData(bboxes=torch.zeros(1, 4)))
    assert gt_masks(InstanceData(masks=torch.ones(1, 2, 2))).shape == (1, 2, 2)


@given(seeds, st.integers(0, 30), st.integers(1, 5), st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_best_candidates_of_each_instance(seed, count, num_gts, num_best):
    rng = np.random.default_rng(seed)
    gt_inds = rng.integers(num_gts, size=count)
    quality = rng.integers(4, size=count) / 4
    expected = []
    for gt in range(num_gts):
        expected += sorted(np.flatnonzero(gt_inds == gt), key=lambda i: (-quality[i], i))[:num_best]
    arguments = torch.from_numpy(gt_inds), torch.from_numpy(quality), num_gts
    assert best_candidates(*arguments, num_best).tolist() == expected
    if num_best == 1:
        assert best_candidates(*arguments).tolist() == expected
