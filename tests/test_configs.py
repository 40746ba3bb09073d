"""The configs say what algorithm and schedule say, and what they inherit is MMDetection's FCOS."""

import pytest
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper

from tests.tiny import ROOT, tiny_detector

CONFIGS = sorted((ROOT / 'configs').glob('*.py'))


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_config_builds(path):
    cfg = Config.fromfile(path)
    cfg.model.backbone.init_cfg = None
    model = tiny_detector(cfg.model)
    assert type(model).__name__ == 'EmbedMask'


def test_r50_is_the_reference():
    cfg = Config.fromfile(ROOT / 'configs' / 'embedmask_r50_1x_coco.py')
    assert cfg.model.data_preprocessor.mean == [102.9801, 115.9465, 122.7717]
    assert cfg.model.data_preprocessor.std == [1.0, 1.0, 1.0]
    assert cfg.model.backbone.init_cfg.checkpoint == 'open-mmlab://detectron/resnet50_caffe'
    assert cfg.model.test_cfg.nms == dict(type='nms', iou_threshold=0.6, offset=1)
    assert (cfg.model.test_cfg.score_thr, cfg.model.test_cfg.nms_pre, cfg.model.test_cfg.max_per_img) == (
        0.05,
        1000,
        100,
    )
    assert cfg.train_dataloader.batch_size == 4
    assert cfg.auto_scale_lr == dict(enable=False, base_batch_size=16)
    assert cfg.train_cfg.max_epochs == 12
    warm_up, steps = cfg.param_scheduler
    assert (warm_up.type, warm_up.end, warm_up.factor) == ('ConstantLR', 500, 1 / 3)
    assert steps.milestones == [8, 11]


def test_r101_is_the_reference():
    cfg = Config.fromfile(ROOT / 'configs' / 'embedmask_r101_ms-3x_coco.py')
    assert cfg.model.backbone.depth == 101
    assert cfg.model.backbone.init_cfg.checkpoint == 'open-mmlab://detectron/resnet101_caffe'
    assert cfg.train_cfg.max_epochs == 36
    assert cfg.param_scheduler[1].milestones == [28, 34]
    assert cfg.train_dataloader.dataset.pipeline[2].scales == [(1333, 640), (1333, 800)]


def test_biases_learn_at_twice_the_rate_without_decay():
    cfg = Config.fromfile(ROOT / 'configs' / 'embedmask_r50_1x_coco.py')
    model = tiny_detector()
    groups = build_optim_wrapper(model, cfg.optim_wrapper).optimizer.param_groups
    names = {id(p): name for name, p in model.named_parameters()}
    for group in groups:
        (param,) = group['params']
        is_bias = names[id(param)].endswith('.bias')
        assert group['lr'] == (0.02 if is_bias else 0.01), names[id(param)]
        assert group['weight_decay'] == (0.0 if is_bias else 1e-4), names[id(param)]
        assert group['momentum'] == 0.9
