"""The grids of the mask stage: cells of boxes, the size of the resized grid, and defaults."""

import dataclasses
import math

import pytest
import torch

from embedmask_mmdet.ops import (
    DEFAULT_MASK_THR,
    inside_boxes,
    instance_log_probs,
    instance_masks,
    instance_rles,
    plain,
)
from embedmask_mmdet.ops.mask_stage import MaskStage, box_cells

from .strategies import encode, make_full_masks

INF, NAN = math.inf, math.nan


def make_stage(**kwargs):
    return MaskStage(**{**make_full_masks((5, 6), [[0, 0, 8, 8]], (20, 24)), **kwargs})


@pytest.mark.parametrize(
    'bbox, cells',
    [
        ((20, 24, 40, 36), (3, 4, 12, 11)),
        ((23.99, 27.99, 43.99, 39.99), (3, 4, 12, 11)),  # truncated, not rounded
        ((7, 7, -5, -5), (0, 0, 1, 1)),  # -1.25 becomes -1 cell, not -2
        ((-100, -100, -90, -90), (0, 0, 0, 0)),
        ((500, 500, 600, 600), (30, 20, 30, 20)),  # clipped to the grid, 30 cells wide and 20 high
        ((-INF, -INF, INF, INF), (0, 0, 30, 20)),
        ((-1e30, -1e30, 1e30, 1e30), (0, 0, 30, 20)),
        ((20, 24, 40, NAN), (0, 0, 0, 0)),
        ((NAN, 24, 40, 36), (0, 0, 0, 0)),
    ],
    ids=str,
)
def test_box_cells_are_truncated_grown_by_two_and_clipped(bbox, cells):
    bboxes = torch.tensor([(0, 0, 4, 4), bbox], dtype=torch.float32)
    result = box_cells(bboxes, (20, 30), 4.0)
    assert result.tolist() == [[0, 0, 3, 3], list(cells)]
    assert result.dtype == torch.int64


def test_box_cells_use_the_precision_of_float64():
    bboxes = torch.tensor([[0, 0, 32 - 1e-9, 32]], dtype=torch.float64)
    assert box_cells(bboxes, (20, 30), 4.0, 0).tolist() == [[0, 0, 7, 8]]
    # The float32 next to 11.2 lies below 7 cells of 1.6 pixels, but their quotient in float32 is 7.
    assert box_cells(torch.tensor([[0, 0, 11.2, 8]]), (20, 30), 1.6, 0).tolist() == [[0, 0, 6, 5]]


@pytest.mark.parametrize('padding, rows, cols', [(0, (2, 3), (1, 4)), (1, (1, 4), (0, 5)), (3, (0, 5), (0, 6))])
def test_inside_boxes_marks_the_box_grown_by_its_padding(padding, rows, cols):
    bboxes = torch.tensor([[8.0, 16, 32, 24], [NAN, 16, 32, 24]])
    expected = torch.zeros(2, 5, 6, dtype=torch.bool)
    expected[0, rows[0] : rows[1], cols[0] : cols[1]] = True
    assert torch.equal(inside_boxes(bboxes, (5, 6), 8, padding), expected)


def test_inside_boxes_grows_by_two_cells_unless_told_otherwise():
    bboxes = torch.tensor([[24.0, 24, 32, 32]])
    assert torch.equal(inside_boxes(bboxes, (9, 9), 8), inside_boxes(bboxes, (9, 9), 8, 2))
    assert inside_boxes(bboxes, (9, 9), 8).sum() == 25
    assert inside_boxes(bboxes[:0], (9, 9), 8).shape == (0, 9, 9)


@pytest.mark.parametrize(
    'img_shape, ori_shape, resized',
    [
        ((40, 48), (20, 24), (20, 24)),
        ((40, 48), (41, 47), (41, 47)),
        ((33, 41), (20, 24), (25, 29)),  # 24.2 and 28.1, rounded up
        ((39, 47), (39, 47), (40, 48)),
        ((1, 1), (1, 1), (40, 48)),
    ],
)
def test_resized_shape_is_rounded_up(img_shape, ori_shape, resized):
    stage = make_stage(img_shape=img_shape, ori_shape=ori_shape)
    assert stage.resized_shape == resized
    assert instance_masks(**vars(stage)).shape == (1, *ori_shape)


def test_cells_are_those_of_the_resized_grid():
    stage = make_stage(upscale=4)
    assert (stage.grid_shape, stage.cell_shape, stage.cell) == ((5, 6), (20, 24), 2.0)
    assert make_stage(stride=5, img_shape=(25, 30)).cell == 2.5


@pytest.mark.parametrize('mask_thr, outside', [(0.53, -10), (0.9, -10), (1e-7, 2 * math.log(1e-7))])
def test_outside_value_is_below_every_threshold(mask_thr, outside):
    assert make_stage(mask_thr=mask_thr).outside_value == pytest.approx(outside)
    assert make_stage(mask_thr=mask_thr, resize_prob=True).outside_value == 0
    assert make_stage(mask_thr=mask_thr).log_thr == math.log(mask_thr)


@pytest.mark.parametrize('mask_thr', [1e-7, 1e-30])
@pytest.mark.parametrize('resize_prob', [False, True])
def test_masks_stay_in_their_boxes_at_low_thresholds(mask_thr, resize_prob):
    # One pixel per cell and no upscaling: the box and its padding are cells 3 to 8 of 20.
    arguments = {**make_full_masks((20, 20), [[40, 40, 48, 48]], (20, 20)), 'upscale': 1}
    masks = instance_masks(**arguments, mask_thr=mask_thr, resize_prob=resize_prob)
    expected = torch.zeros(1, 20, 20, dtype=torch.bool)
    expected[:, 3:8, 3:8] = True
    assert torch.equal(masks, expected)


def test_masks_use_the_same_cells_as_their_boxes():
    # With 5 cells of 1.6 pixels per 8 pixels, the float32 next to 11.2 lies below 7 cells; the padding adds 2.
    arguments = {**make_full_masks((4, 4), [[0, 0, 11.2, 11.2]], (20, 20)), 'upscale': 5}
    masks = instance_masks(**arguments, resize_prob=True, mask_thr=1e-6)
    expected = torch.zeros(1, 20, 20, dtype=torch.bool)
    expected[:, :8, :8] = True
    assert torch.equal(masks, expected)


def test_pixels_at_the_threshold_are_off():
    arguments = make_full_masks((4, 4), [[0, 0, 32, 32]], (32, 32))
    arguments['pixel_embed'][0], arguments['proposal_margin'][:] = 1, -math.log(0.5)
    for implementation in (instance_masks, lambda **kwargs: plain.instance_masks(MaskStage(**kwargs))):
        assert not implementation(**arguments, mask_thr=0.5).any()
        assert implementation(**arguments, mask_thr=0.4999).all()


def test_results_are_on_the_device_of_the_arguments():
    arguments = make_full_masks((5, 6), [[0, 0, 8, 8]], (20, 24))
    arguments = {
        key: value.to('meta') if isinstance(value, torch.Tensor) else value for key, value in arguments.items()
    }
    assert plain.instance_masks(MaskStage(**arguments)).device.type == 'meta'
    assert inside_boxes(arguments['bboxes'], (5, 6), 8).device.type == 'meta'


def test_stages_are_immutable_and_compared_by_identity():
    stage = make_stage()
    assert stage == stage and stage != make_stage()
    with pytest.raises(dataclasses.FrozenInstanceError):
        stage.mask_thr = 0.4


def test_defaults_are_the_references():
    arguments = {**make_full_masks((12, 16), [[16, 16, 90, 80]], (96, 128))}
    arguments['pixel_embed'] += torch.linspace(-1.5, 1.5, 16)
    defaults = dict(mask_thr=0.53, upscale=2, resize_prob=False)
    assert DEFAULT_MASK_THR == 0.53
    for op in (instance_masks, instance_log_probs):
        masks = torch.stack(list(op(**arguments)))
        assert torch.equal(masks, torch.stack(list(op(**arguments, **defaults))))
        assert not torch.equal(masks, torch.stack(list(op(**arguments, **{**defaults, 'upscale': 1}))))
        assert not torch.equal(masks, torch.stack(list(op(**arguments, **{**defaults, 'resize_prob': True}))))
    assert instance_rles(**arguments) == encode(instance_masks(**arguments))
    stage = MaskStage(**arguments)
    assert dict(mask_thr=stage.mask_thr, upscale=stage.upscale, resize_prob=stage.resize_prob) == defaults
