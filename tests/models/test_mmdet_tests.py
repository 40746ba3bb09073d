"""What MMDetection's own tests of detectors and heads do with a model works with both designs."""

import pytest
import torch
from mmdet.testing import demo_mm_inputs

from tests.builders import COCO_CONFIG, PLUS_CONFIG, tiny_detector, tiny_model_cfg

SIZES = [[3, 128, 128], [3, 125, 130]]


@pytest.mark.parametrize('config', [COCO_CONFIG, PLUS_CONFIG], ids=['paper', 'plus'])
def test_loss_predict_and_tensor_of_drawn_inputs(config):
    model = tiny_detector(tiny_model_cfg(config))
    packed = demo_mm_inputs(2, SIZES, num_classes=2, with_mask=True)
    losses = model.forward(**model.data_preprocessor(packed, True), mode='loss')
    assert set(losses) == {'loss_cls', 'loss_bbox', 'loss_centerness', 'loss_mask'}
    assert all(torch.isfinite(loss).all() for loss in losses.values()) and losses['loss_mask'] > 0
    model.eval()
    packed = model.data_preprocessor(demo_mm_inputs(2, SIZES, num_classes=2, with_mask=True), False)
    with torch.no_grad():
        assert len(model.forward(**packed, mode='predict')) == 2
        assert len(model.forward(**packed, mode='tensor')) == 6


def test_heads_take_a_generator_of_features():
    model = tiny_detector().eval()
    feats = model.extract_feat(torch.rand(1, 3, 64, 64))
    expected = model.bbox_head(feats, model.frame)
    for maps, wanted in zip(model.bbox_head((feat for feat in feats), model.frame), expected):
        assert all(map(torch.equal, maps, wanted))
    assert torch.equal(model.mask_head((feat for feat in feats), model.frame), model.mask_head(feats, model.frame))


def test_masks_with_fractions_give_the_targets_of_bools():
    model = tiny_detector()
    inputs = [model.data_preprocessor(demo_mm_inputs(2, SIZES, num_classes=2, with_mask=True), True) for _ in range(2)]
    for sample in inputs[1]['data_samples']:
        sample.gt_instances.masks = torch.from_numpy(sample.gt_instances.masks.to_ndarray()).bool()
    losses = [model.forward(**each, mode='loss')['loss_mask'] for each in inputs]
    torch.testing.assert_close(*losses)
