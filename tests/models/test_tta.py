"""Several views of an image give one set of detections, their masks merged as probabilities."""

import copy

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from mmengine.runner import Runner

from embedmask_mmdet import ops
from embedmask_mmdet.models.tta import view_probs
from embedmask_mmdet.structures import RLEMasks
from tests.builders import (
    PLUS_CONFIG,
    batch,
    build_responsive_detector,
    tiny_cfg,
    tiny_detector,
    tiny_model_cfg,
    write_tiny_coco,
)

SIZE = (96, 128)
DIMS = {None: (), 'horizontal': (2,), 'vertical': (1,), 'diagonal': (1, 2)}


def build_tta(module, iou_threshold=0.6, max_per_img=10):
    nms = dict(type='nms', iou_threshold=iou_threshold, offset=1)
    tta_cfg = dict(nms=nms, max_per_img=max_per_img)
    return MODELS.build(dict(type='EmbedMaskTTAModel', module=module, tta_cfg=tta_cfg))


@pytest.fixture
def tta():
    """A test-time augmentation model around the tiny detector, which finds ten things in whatever it is shown."""
    return build_tta(tiny_detector(tiny_model_cfg(score_thr=0.0, max_per_img=10, keep_embed=True)).eval())


def view_of(tta, data, direction=None):
    """Return what the detector sees in an image, flipped or not."""
    data = copy.deepcopy(data)
    data['inputs'] = [image.flip(DIMS[direction]) for image in data['inputs']]
    for sample in data['data_samples']:
        sample.set_metainfo(dict(flip=direction is not None, flip_direction=direction))
    with torch.no_grad():
        return tta.module.test_step(data)[0]


@pytest.mark.parametrize('mask_format', ['bitmap', 'rle'])
def test_test_time_augmentation_reports_segm(tmp_path, mask_format):
    cfg = tiny_cfg(write_tiny_coco(tmp_path / 'data'), tmp_path / 'work')
    cfg.model.test_cfg.update(score_thr=0.0, mask_format=mask_format, max_per_img=10)
    cfg.tta_pipeline[1].transforms[0] = [dict(type='Resize', scale=(128, side), keep_ratio=True) for side in (64, 96)]
    # As `tools/test.py --tta` does it.
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
    metrics = Runner.from_cfg(cfg).test()
    assert {'coco/bbox_mAP', 'coco/segm_mAP'} <= metrics.keys()


@pytest.mark.parametrize('direction', DIMS)
def test_one_view_is_that_view_flipped_back(tta, direction):
    view = view_of(tta, batch([SIZE], [3]), direction)
    seen = copy.deepcopy(view.pred_instances)
    (merged,) = tta.merge_preds([[view]])
    assert torch.equal(merged.pred_instances.masks, seen.masks.flip(DIMS[direction]))
    assert torch.equal(merged.pred_instances.scores, seen.scores)
    x1, y1, x2, y2 = seen.bboxes.T
    if direction in ('horizontal', 'diagonal'):
        x1, x2 = SIZE[1] - x2, SIZE[1] - x1
    if direction in ('vertical', 'diagonal'):
        y1, y2 = SIZE[0] - y2, SIZE[0] - y1
    torch.testing.assert_close(merged.pred_instances.bboxes, torch.stack([x1, y1, x2, y2], dim=1), atol=1e-4, rtol=0)


def test_masks_of_two_views_are_averaged_as_probabilities_by_score(tta):
    first = view_of(tta, batch([SIZE], [3]))
    second = copy.deepcopy(first)
    second.pixel_embed = second.pixel_embed + torch.randn_like(second.pixel_embed)
    second.pred_instances.scores *= 0.8
    ids = torch.arange(len(first.pred_instances))
    probs = [torch.stack(list(view_probs(tta.module.mask_head, view, ids))) for view in (first, second)]
    expected = probs[0] / 1.8 + probs[1] * 0.8 / 1.8 > 0.53
    assert not torch.equal(expected, sum(probs) / 2 > 0.53)
    assert not torch.equal(expected, first.pred_instances.masks)
    (merged,) = tta.merge_preds([[first, second]])
    assert torch.equal(merged.pred_instances.masks, expected)
    torch.testing.assert_close(merged.pred_instances.scores, first.pred_instances.scores * 0.9**0.5)


def test_detection_that_one_view_alone_has_ranks_lower(tta):
    first = view_of(tta, batch([SIZE], [3]))
    first.pred_instances = first.pred_instances[[0, 1]]
    first.pred_instances.scores = torch.tensor([0.5, 0.4])
    other = copy.deepcopy(first)
    other.pred_instances = other.pred_instances[[1]]
    labels = first.pred_instances.labels.flip(0)
    (merged,) = tta.merge_preds([[first, other]])
    torch.testing.assert_close(merged.pred_instances.scores, torch.tensor([0.4, 0.5 * 0.5**0.5]))
    assert torch.equal(merged.pred_instances.labels, labels)


def test_detections_without_a_score_have_a_mask(tta):
    view = view_of(tta, batch([SIZE], [3]))
    view.pred_instances.scores.zero_()
    masks = view.pred_instances.masks.clone()
    (merged,) = tta.merge_preds([[view]])
    assert merged.pred_instances.masks.sum() == masks.sum() > 0


def test_a_view_without_the_object_does_not_count(tta):
    first = view_of(tta, batch([SIZE], [3]))
    other = copy.deepcopy(first)
    other.pred_instances = other.pred_instances[[0]]
    masks = first.pred_instances.masks.clone()
    (merged,) = tta.merge_preds([[first, other]])
    assert torch.equal(merged.pred_instances.masks, masks)


@pytest.mark.parametrize('mask_format', ['bitmap', 'rle'])
def test_no_detection_in_any_view(tta, mask_format):
    tta.module.mask_head.mask_format = mask_format
    tta.module.bbox_head.test_cfg.score_thr = 0.999
    views = [view_of(tta, batch([SIZE], [3]), direction) for direction in (None, 'horizontal')]
    (merged,) = tta.merge_preds([views])
    assert merged.pred_instances.masks.shape == (0, *SIZE)
    assert isinstance(merged.pred_instances.masks, RLEMasks) == (mask_format == 'rle')


@pytest.fixture(params=['bitmap', 'rle'])
def reaching_tta(request):
    """EmbedMask plus with wide masks, which only the boxes end. No detection is removed by the NMS between views."""
    model = build_responsive_detector(PLUS_CONFIG, keep_embed=True, mask_format=request.param)
    with torch.no_grad():
        model.bbox_head.conv_margin.bias -= 3
    return build_tta(model, iou_threshold=1.0, max_per_img=100)


def cut(tta, view, bboxes):
    """Make the masks of a view with other boxes."""
    head, results = tta.module.mask_head, view.pred_instances
    return ops.instance_masks(
        view.pixel_embed,
        results.proposal_embed,
        results.proposal_margin,
        bboxes,
        stride=head.stride,
        img_shape=SIZE,
        ori_shape=SIZE,
        mask_thr=head.mask_thr,
        upscale=head.mask_scale,
        resize_prob=head.resize_prob,
    ).numpy()


def test_one_view_of_plus_is_the_prediction(reaching_tta):
    view = view_of(reaching_tta, batch([SIZE], [3]))
    expected = copy.deepcopy(view.pred_instances)
    masks = expected.masks.numpy()
    assert len(expected) > 5
    # Boxes moved towards the masks, so cutting with them again would change masks.
    np.testing.assert_array_equal(cut(reaching_tta, view, expected.crop_bboxes), masks)
    assert not np.array_equal(cut(reaching_tta, view, expected.bboxes), masks)
    (merged,) = reaching_tta.merge_preds([[view]])
    actual = merged.pred_instances
    for name in ('bboxes', 'scores', 'labels'):
        assert torch.equal(actual[name], expected[name]), name
    np.testing.assert_array_equal(actual.masks.numpy(), masks)
    assert type(actual.masks) is type(expected.masks)


def test_merged_results_carry_no_embeddings(reaching_tta):
    (merged,) = reaching_tta.merge_preds([[view_of(reaching_tta, batch([SIZE], [3]))]])
    assert set(merged.pred_instances.keys()) == {'bboxes', 'scores', 'labels', 'masks'}
    assert 'pixel_embed' not in merged
    assert merged.img_id == 1


def test_detections_of_different_classes_are_different_objects(tta):
    first = view_of(tta, batch([SIZE], [3]))
    first.pred_instances = first.pred_instances[[0]]
    second = copy.deepcopy(first)
    second.pred_instances.labels = 1 - second.pred_instances.labels
    second.pred_instances.scores *= 0.9
    second.pixel_embed = second.pixel_embed + torch.randn_like(second.pixel_embed)
    masks = [next(view_probs(tta.module.mask_head, view, torch.tensor([0]))) > 0.53 for view in (first, second)]
    assert not torch.equal(*masks)
    labels = torch.cat([first.pred_instances.labels, second.pred_instances.labels])
    (merged,) = tta.merge_preds([[first, second]])
    assert torch.equal(merged.pred_instances.labels, labels)
    assert torch.equal(merged.pred_instances.masks, torch.stack(masks))


@pytest.mark.parametrize('max_per_img', [1, 3])
def test_best_detections_of_all_views_are_kept(max_per_img):
    tta = build_tta(build_responsive_detector(keep_embed=True), max_per_img=max_per_img)
    views = [view_of(tta, batch([SIZE], [3]), direction) for direction in (None, 'horizontal')]
    assert all(len(view.pred_instances) > max_per_img for view in views)
    (merged,) = tta.merge_preds([views])
    assert len(merged.pred_instances) == len(merged.pred_instances.masks) == max_per_img
    tta.tta_cfg['max_per_img'] = 1000
    (everything,) = tta.merge_preds([views])
    assert torch.equal(
        merged.pred_instances.scores, everything.pred_instances.scores.sort(descending=True)[0][:max_per_img]
    )


def test_box_without_area_keeps_its_mask(tta):
    view = view_of(tta, batch([SIZE], [3]))
    view.pred_instances = view.pred_instances[[0]]
    view.pred_instances.bboxes = torch.tensor([[5.0, 5, 5, 5]])
    masks = view.pred_instances.masks.clone()
    (merged,) = tta.merge_preds([[view]])
    assert torch.equal(merged.pred_instances.masks, masks)


def test_detector_from_a_config_keeps_its_embeddings():
    cfg = tiny_model_cfg()
    assert build_tta(cfg).module.mask_head.keep_embed
    assert 'keep_embed' not in cfg.test_cfg
    assert build_tta(dict(cfg)).module.mask_head.mask_thr == cfg.test_cfg.mask_thr


def test_detector_without_embeddings_is_refused():
    with pytest.raises(ValueError, match=r'build its module with test_cfg\.keep_embed=True'):
        build_tta(tiny_detector())


def test_nms_that_cannot_match_views_is_refused():
    tta_cfg = dict(nms=dict(type='soft_nms', sigma=0.5), max_per_img=10)
    with pytest.raises(ValueError, match='tta_cfg.nms needs iou_threshold'):
        MODELS.build(dict(type='EmbedMaskTTAModel', module=tiny_model_cfg(), tta_cfg=tta_cfg))
