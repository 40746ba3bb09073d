"""Refinements change detections as they say, also when there are none."""

import math

import numpy as np
import pycocotools.mask
import pytest
import torch
from mmdet.registry import TASK_UTILS
from mmdet.structures.mask import mask2bbox
from mmengine.structures import InstanceData

from embedmask_mmdet.models import EmbedMaskBoxesFromMasks, EmbedMaskCertainty, EmbedMaskNMS
from embedmask_mmdet.models.refine import PixelGrid
from embedmask_mmdet.models.refine.certainty import mask_certainties
from embedmask_mmdet.structures import RLEMasks
from tests.builders import PLUS_CONFIG, batch, build_responsive_detector, plus_model_cfg, predict, tiny_detector

SIZE = (96, 128)
NO_PIXELS = PixelGrid(torch.zeros(16, 1, 1), 8, 0.5)
REFINEMENTS = {
    'certainty': dict(type='EmbedMaskCertainty'),
    'boxes from masks': dict(type='EmbedMaskBoxesFromMasks', weight=0.7),
    'nms': dict(type='EmbedMaskNMS', nms=dict(type='nms', iou_threshold=0.5)),
    'soft-nms': dict(type='EmbedMaskNMS', nms=dict(type='soft_nms', method='gaussian', sigma=0.5)),
}
FORMATS = pytest.mark.parametrize('mask_format', ['bitmap', 'rle'])


def in_format(masks, mask_format):
    """Return bitmaps ``(N, h, w)`` as they are, or as run lengths."""
    if mask_format == 'bitmap':
        return masks
    arrays = np.asfortranarray(masks.permute(1, 2, 0).byte().numpy())
    return RLEMasks(pycocotools.mask.encode(arrays), masks.shape[1:])


@FORMATS
def test_boxes_move_towards_masks_as_far_as_told(mask_format):
    masks = torch.zeros(2, 40, 60, dtype=torch.bool)
    masks[0, 10:30, 4:44] = True
    results = InstanceData(bboxes=torch.tensor([[0.0, 0, 20, 20], [0, 0, 8, 8]]), masks=in_format(masks, mask_format))
    refined = EmbedMaskBoxesFromMasks(weight=0.25)(results, NO_PIXELS)
    # The box of an empty mask stays.
    assert refined.bboxes.tolist() == [[1, 2.5, 26, 22.5], [0, 0, 8, 8]]


@FORMATS
def test_boxes_around_masks(mask_format):
    masks = torch.zeros(3, 40, 60, dtype=torch.bool)
    masks[0, 5:20, 10:50] = True
    masks[1, 30:35, 3] = True
    bboxes = torch.tensor([[0.0, 0, 20, 20], [0, 0, 9, 9], [1, 1, 2, 2]])
    results = InstanceData(bboxes=bboxes, masks=in_format(masks, mask_format))
    refined = EmbedMaskBoxesFromMasks()(results, NO_PIXELS)
    assert refined.bboxes.tolist() == [[10, 5, 50, 20], [3, 30, 4, 35], [1, 1, 2, 2]]


@FORMATS
def test_nms_keeps_the_best_of_the_detections_of_a_class_that_overlap(mask_format):
    masks = torch.zeros(4, 4, 4, dtype=torch.bool)
    for i in range(4):
        masks[i, 0, i] = True
    results = InstanceData(
        bboxes=torch.tensor([[0.0, 0, 20, 20], [0, 0, 20, 19], [0, 0, 20, 20], [30, 30, 50, 50]]),
        scores=torch.tensor([0.7, 0.8, 0.6, 0.9]),
        labels=torch.tensor([0, 0, 1, 0]),
        masks=in_format(masks, mask_format),
    )
    refined = EmbedMaskNMS(dict(type='nms', iou_threshold=0.5))(results, NO_PIXELS)
    assert refined.scores.tolist() == pytest.approx([0.9, 0.8, 0.6])
    assert refined.labels.tolist() == [0, 0, 1]
    assert np.argwhere(refined.masks.numpy())[:, 2].tolist() == [3, 1, 2]


def test_first_of_equal_scores_wins():
    results = InstanceData(
        bboxes=torch.tensor([[0.0, 0, 20, 20], [0, 0, 20, 19], [0, 0, 19, 20]]).repeat(3, 1),
        scores=torch.full((9,), 0.5),
        labels=torch.zeros(9, dtype=torch.long),
        number=torch.arange(9),
    )
    refined = EmbedMaskNMS(dict(type='nms', iou_threshold=0.5))(results, NO_PIXELS)
    assert refined.number.tolist() == [0]


@FORMATS
def test_second_class_of_an_object_ranks_below_others(mask_format):
    """Soft-NMS (Bodla et al., arXiv 1704.04503, equation 3) of boxes of all classes, of which the first two overlap."""
    masks = torch.zeros(3, 40, 60, dtype=torch.bool)
    masks[:2, 5:20, 10:50] = True
    masks[2, 30:35, 3:30] = True
    results = InstanceData(
        bboxes=mask2bbox(masks),
        scores=torch.tensor([0.8, 0.7, 0.5]),
        labels=torch.tensor([0, 1, 2]),
        masks=in_format(masks, mask_format),
    )
    (*_, nms) = plus_model_cfg().test_cfg.refine
    refined = TASK_UTILS.build(nms)(results, NO_PIXELS)
    assert refined.labels.tolist() == [0, 2, 1]
    assert refined.scores.tolist() == pytest.approx([0.8, 0.5, 0.7 * math.exp(-1 / 0.5)])
    assert refined.masks.numpy().sum((1, 2)).tolist() == [600, 135, 600]


def ellipses():
    """Two ellipses in boxes, of which one reaches beyond the image, and a detection without any pixel; see below."""
    y, x = torch.meshgrid(torch.arange(60) * 8.0 + 4, torch.arange(80) * 8.0 + 4, indexing='ij')
    pixel_embed = torch.cat([torch.stack([x, y]) / 100, torch.zeros(14, 60, 80)])
    bboxes = torch.tensor([[100.0, 50.0, 500.0, 400.0], [0.0, 0.0, 80.0, 240.0], [10.0, 10.0, 10.0, 10.0]])
    # The probability falls as 0.5 ** (r ** 2).
    center, half = (bboxes[:, :2] + bboxes[:, 2:]) / 200, (bboxes[:, 2:] - bboxes[:, :2]) / 200
    results = InstanceData(
        bboxes=torch.zeros(3, 4),
        crop_bboxes=bboxes,
        scores=torch.tensor([0.5, 0.8, 0.9]),
        proposal_embed=torch.nn.functional.pad(center, (0, 14)),
        proposal_margin=torch.nn.functional.pad(math.log(2) / half.clamp(min=0.01).square(), (0, 14)),
    )
    results.proposal_embed[2] += 10
    return pixel_embed, results


@pytest.mark.parametrize('mask_thr', [0.53, 0.7, 0.9])
def test_certainty_is_the_mean_probability_inside_the_mask(mask_thr):
    pixel_embed, results = ellipses()
    certainties = mask_certainties(results, PixelGrid(pixel_embed, 8, mask_thr))
    # The integral of the probability down to the threshold, divided by the area.
    expected = (1 - mask_thr) / -math.log(mask_thr)
    assert certainties[:2].tolist() == pytest.approx([expected] * 2, rel=0.02)
    assert certainties[2] == 0
    scores = results.scores.clone()
    refined = EmbedMaskCertainty()(results, PixelGrid(pixel_embed, 8, mask_thr))
    assert torch.equal(refined.scores, scores * certainties)


def test_certainty_does_not_depend_on_how_pixels_lie_in_memory():
    pixel_embed, results = ellipses()
    expected = mask_certainties(results, PixelGrid(pixel_embed, 8, 0.5))
    channels_last = pixel_embed[None].contiguous(memory_format=torch.channels_last)[0]
    permuted = pixel_embed.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    sliced = torch.cat([pixel_embed, pixel_embed], dim=2)[:, :, :80]
    for other in (channels_last, permuted, sliced):
        assert not other.is_contiguous()
        assert torch.equal(mask_certainties(results, PixelGrid(other, 8, 0.5)), expected)


@pytest.mark.parametrize('layout', ['channels_last model', 'permuted image'])
def test_plus_finds_the_same_however_images_lie_in_memory(layout):
    model = build_responsive_detector(PLUS_CONFIG)
    data = batch([SIZE], [3])
    (expected,) = predict(model, data)
    if layout == 'channels_last model':
        model = model.to(memory_format=torch.channels_last)
    else:
        data['inputs'] = [image.permute(1, 2, 0).contiguous().permute(2, 0, 1) for image in data['inputs']]
    (actual,) = predict(model, data)
    assert len(expected.pred_instances) > 5
    # Far above what rounding may change.
    assert expected.pred_instances.scores.max() > 0.005
    torch.testing.assert_close(actual.pred_instances.scores, expected.pred_instances.scores, rtol=1e-3, atol=1e-5)


@FORMATS
def test_scores_are_multiplied_with_certainties_and_sorted(mask_format):
    test_cfg = dict(mask_format=mask_format, keep_embed=True)
    (sample,) = predict(build_responsive_detector(**test_cfg), batch([SIZE], [3]))
    (refined,) = predict(build_responsive_detector(**test_cfg, refine=[REFINEMENTS['certainty']]), batch([SIZE], [3]))
    plain, refined = sample.pred_instances, refined.pred_instances
    certainties = mask_certainties(plain, PixelGrid(sample.pixel_embed, 8, 0.53))
    scores, order = (plain.scores * certainties).sort(descending=True, stable=True)
    assert torch.equal(refined.scores, scores)
    assert scores.max() > 0
    assert torch.equal(refined.bboxes, plain.bboxes[order])
    np.testing.assert_array_equal(refined.masks.numpy(), plain.masks.numpy()[order])


@pytest.mark.parametrize('rescale', [True, False])
@FORMATS
def test_boxes_from_masks_are_in_pixels_of_the_masks(mask_format, rescale):
    model = build_responsive_detector(mask_format=mask_format, refine=[dict(type='EmbedMaskBoxesFromMasks')])
    data = batch([SIZE], [3])
    data['data_samples'][0].set_metainfo(dict(ori_shape=(48, 64), scale_factor=(2.0, 2.0)))
    data = model.data_preprocessor(data)
    (sample,) = model.predict(data['inputs'], data['data_samples'], rescale=rescale)
    masks = torch.from_numpy(sample.pred_instances.masks.numpy())
    assert masks.shape[1:] == ((48, 64) if rescale else SIZE)
    filled = masks.flatten(1).any(1)
    assert filled.any()
    torch.testing.assert_close(sample.pred_instances.bboxes[filled], mask2bbox(masks[filled]))


@pytest.mark.parametrize('rescale', [True, False])
@pytest.mark.parametrize('name', REFINEMENTS)
def test_no_refinement_changes_the_boxes_that_cut_the_masks(name, rescale):
    results = []
    for refine in ([], [REFINEMENTS[name]]):
        model = build_responsive_detector(keep_embed=True, refine=refine)
        data = batch([SIZE], [3])
        data['data_samples'][0].set_metainfo(dict(ori_shape=(48, 64), scale_factor=(2.0, 2.0)))
        data = model.data_preprocessor(data)
        (sample,) = model.predict(data['inputs'], data['data_samples'], rescale=rescale)
        results.append(sample.pred_instances)
    plain, refined = results
    # They are the boxes before all refinements, in input pixels; points tell which detection is which.
    torch.testing.assert_close(plain.crop_bboxes, plain.bboxes * (2 if rescale else 1))
    assert len(refined)
    for point, label, crop_bbox in zip(refined.points, refined.labels, refined.crop_bboxes):
        same = (plain.points == point).all(dim=1) & (plain.labels == label)
        assert (plain.crop_bboxes[same] == crop_bbox).all(dim=1).any()


@pytest.mark.parametrize('rescale', [True, False])
def test_a_refinement_that_moves_boxes_in_place_leaves_those_that_cut_the_masks(rescale):
    def move(results, pixels):
        results.bboxes += 1000
        return results

    model = build_responsive_detector(keep_embed=True)
    model.mask_head.refinements.append(move)
    data = model.data_preprocessor(batch([SIZE], [3]))
    (sample,) = model.predict(data['inputs'], data['data_samples'], rescale=rescale)
    assert sample.pred_instances.bboxes.min() >= 1000
    assert sample.pred_instances.crop_bboxes.max() <= max(SIZE)


def sample_bin_centers(pixel_embed, bbox, stride):
    """Read a pixel embedding at the centers of 14 x 14 equal parts of a box, bilinearly: ``(D, 14, 14)``."""
    parts = (torch.arange(14) + 0.5) / 14
    x, y = bbox[0] + parts * (bbox[2] - bbox[0]), bbox[1] + parts * (bbox[3] - bbox[1])
    h, w = pixel_embed.shape[1:]
    grid = torch.stack(torch.meshgrid(2 * x / stride / w - 1, 2 * y / stride / h - 1, indexing='xy'), dim=-1)
    return torch.nn.functional.grid_sample(pixel_embed[None], grid[None], align_corners=False)[0]


def test_certainty_reads_one_point_in_each_part_of_the_box():
    rng = torch.Generator().manual_seed(0)
    pixel_embed = torch.randn(4, 12, 16, generator=rng)
    bbox = torch.tensor([13.0, 9.0, 101.0, 77.0])
    embed, margin = torch.randn(4, generator=rng), torch.full((4,), 0.1)
    points = sample_bin_centers(pixel_embed, bbox, 8)
    prob = torch.exp(-0.1 * (points - embed[:, None, None]).square().sum(0))
    results = InstanceData(crop_bboxes=bbox[None], proposal_embed=embed[None], proposal_margin=margin[None])
    certainty = mask_certainties(results, PixelGrid(pixel_embed, 8, 0.6))
    assert 20 < (prob > 0.6).sum() < 176
    torch.testing.assert_close(certainty[0], prob[prob > 0.6].mean())


def test_mask_of_a_single_point_is_certain():
    pixel_embed = torch.randn(4, 12, 16, generator=torch.Generator().manual_seed(0))
    bbox = torch.tensor([13.0, 9.0, 101.0, 77.0])
    embed = sample_bin_centers(pixel_embed, bbox, 8)[:, 5, 6]
    results = InstanceData(crop_bboxes=bbox[None], proposal_embed=embed[None], proposal_margin=torch.full((1, 4), 1e5))
    certainty = mask_certainties(results, PixelGrid(pixel_embed, 8, 0.5))
    torch.testing.assert_close(certainty, torch.ones(1))


@FORMATS
@pytest.mark.parametrize('name', REFINEMENTS)
def test_no_detection_is_refined_to_none(name, mask_format):
    model = build_responsive_detector(score_thr=0.9999, mask_format=mask_format, refine=[REFINEMENTS[name]])
    (sample,) = predict(model, batch([SIZE], [1]))
    assert len(sample.pred_instances) == 0
    assert sample.pred_instances.masks.shape == (0, *SIZE)
    assert isinstance(sample.pred_instances.masks, RLEMasks) == (mask_format == 'rle')


@FORMATS
@pytest.mark.parametrize('name', REFINEMENTS)
def test_refinements_after_one_that_removes_all_detections(name, mask_format):
    model = build_responsive_detector(mask_format=mask_format, refine=[REFINEMENTS[name]])
    model.mask_head.refinements.insert(0, lambda results, pixels: results[:0])
    (sample,) = predict(model, batch([SIZE], [1]))
    assert len(sample.pred_instances) == 0
    assert sample.pred_instances.masks.shape == (0, *SIZE)


@pytest.mark.parametrize(
    'refinement, message',
    [
        (dict(type='EmbedMaskBoxesFromMasks', weight=1.5), 'weight must be from 0 to 1, got 1.5'),
        (dict(type='EmbedMaskBoxesFromMasks', weight=-0.5), 'weight must be from 0 to 1, got -0.5'),
        (dict(type='EmbedMaskNMS', nms=dict(type='sof_nms')), "must be a config of mmcv's nms or soft_nms"),
        (dict(type='EmbedMaskNMS', nms=dict(type='nms', iou_threshold=0.5, method='linear')), 'fails with TypeError'),
        (dict(type='EmbedMaskNMS', nms=dict(type='soft_nms', method='gauss')), 'fails with AssertionError'),
    ],
)
def test_impossible_refinements_are_named_when_the_model_is_built(refinement, message):
    cfg = plus_model_cfg()
    cfg.test_cfg.refine = [refinement]
    with pytest.raises(ValueError, match=message):
        tiny_detector(cfg)
