"""Several views of an image give one set of detections, their masks merged as probabilities."""

import copy

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from mmengine.runner import Runner

from embedmask_mmdet.models.tta import view_probs
from embedmask_mmdet.structures import RLEMasks
from tests.tiny import batch, tiny_cfg, tiny_detector, tiny_model_cfg, write_tiny_coco

SIZE = (96, 128)
DIMS = {None: (), 'horizontal': (2,), 'vertical': (1,), 'diagonal': (1, 2)}


@pytest.fixture
def tta():
    """A test-time augmentation model around the tiny detector, which finds ten things in whatever it is shown."""
    detector = tiny_detector(tiny_model_cfg(score_thr=0.0, max_per_img=10)).eval()
    nms = dict(type='nms', iou_threshold=0.6, offset=1)
    return MODELS.build(dict(type='EmbedMaskTTAModel', module=detector, tta_cfg=dict(nms=nms, max_per_img=10)))


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
    widths, back = ((boxes[:, 2:] - boxes[:, :2]) for boxes in (seen.bboxes, merged.pred_instances.bboxes))
    torch.testing.assert_close(widths, back, atol=1e-4, rtol=0)


def test_masks_of_two_views_are_averaged_as_probabilities(tta):
    first = view_of(tta, batch([SIZE], [3]))
    second = copy.deepcopy(first)
    pixel_embed = second.pred_instances.pixel_embed
    second.pred_instances.set_metainfo(dict(pixel_embed=pixel_embed + torch.randn_like(pixel_embed)))
    second.pred_instances.scores *= 0.9
    ids = torch.arange(len(first.pred_instances))
    probs = [torch.stack(list(view_probs(tta.module.mask_head, view, ids))) for view in (first, second)]
    expected = sum(probs) / 2 > 0.53
    assert not torch.equal(expected, first.pred_instances.masks)
    (merged,) = tta.merge_preds([[first, second]])
    assert torch.equal(merged.pred_instances.masks, expected)


def test_a_view_without_the_object_has_no_say(tta):
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
