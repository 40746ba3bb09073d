"""`speed_up` and its hook: the same detections from folded and reordered weights."""

import copy

import pytest
import torch
from mmengine.runner import Runner
from torch import nn

from embedmask_mmdet.inference import speed_up
from tests.builders import COCO_CONFIG, PLUS_CONFIG, batch, build_responsive_detector, predict, tiny_cfg


def randomize_norms(model):
    """Give batch normalization statistics that matter."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.8, 1.2)
            nn.init.uniform_(module.bias, -0.1, 0.1)


@pytest.mark.parametrize('mask_format', ['bitmap', 'rle'])
@pytest.mark.parametrize('config', [COCO_CONFIG, PLUS_CONFIG], ids=['paper', 'plus'])
def test_detections_are_those_of_the_model(config, mask_format):
    model = build_responsive_detector(config, mask_format=mask_format).eval()
    torch.manual_seed(0)
    randomize_norms(model)
    data = batch([(96, 128)], [3])
    (expected,) = predict(copy.deepcopy(model), copy.deepcopy(data))
    fast = speed_up(model)
    assert fast is model and not any(isinstance(module, nn.BatchNorm2d) for module in fast.modules())
    assert model.bbox_head.cls_convs[0].conv.weight.is_contiguous(memory_format=torch.channels_last)
    (found,) = predict(fast, data)
    found, expected = found.pred_instances, expected.pred_instances
    assert len(found) == len(expected) > 5
    torch.testing.assert_close(found.scores, expected.scores, rtol=1e-3, atol=1e-6)
    masks = [each.masks if mask_format == 'bitmap' else each.masks.to_tensor() for each in (found, expected)]
    assert (masks[0] != masks[1]).float().mean() < 1e-3


def test_hook_changes_the_model_of_a_test_but_not_of_a_training(data_root, tmp_path):
    cfg = tiny_cfg(data_root, tmp_path)
    cfg.custom_hooks = [*cfg.get('custom_hooks', []), dict(type='EmbedMaskSpeedHook')]
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert any(isinstance(module, nn.BatchNorm2d) for module in runner.model.modules())
    runner.test()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in runner.model.modules())
