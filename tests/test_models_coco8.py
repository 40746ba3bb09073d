"""Every COCO config trains on 8 real COCO images and gives them masks: 11 to 50 seconds each on a busy core."""

import math
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

from tests.builders import ROOT

COCO8 = ROOT.parent / 'shared' / 'data' / 'coco8'
LIGHT = 'embedmask_r18_light-ms-3x_coco'
CONFIGS = [
    pytest.param(path, id=path.stem, marks=[] if path.stem == LIGHT else pytest.mark.slow)
    for path in sorted((ROOT / 'configs').glob('embedmask*_coco.py'))
]

pytestmark = pytest.mark.skipif(not COCO8.is_dir(), reason='the 8 COCO images are not beside this repository')


class Watch(Hook):
    """Keeps losses, the names of parameters that got no gradient, and the shapes of masks beside those of images."""

    def __init__(self):
        self.losses, self.unused, self.shapes = [], [], []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.losses.append({name: float(value.detach()) for name, value in outputs.items()})
        stepped = runner.optim_wrapper.optimizer.state
        self.unused += [name for name, p in runner.model.named_parameters() if p.requires_grad and p not in stepped]

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        for sample in outputs:
            self.shapes.append((tuple(sample.pred_instances.masks.shape), (100, *sample.ori_shape)))


def shrink_images(transforms):
    """Let whatever resizes, however deep inside other transforms, do so to a short side of 192."""
    for transform in transforms:
        if isinstance(transform, list):
            shrink_images(transform)
            continue
        if transform.type == 'Resize':
            transform.scale = (288, 192)
        elif transform.type == 'RandomChoiceResize':
            transform.scales = [(288, 192)]
        elif transform.type == 'RandomCrop':
            transform.crop_size = (96, 144)
        shrink_images(transform.get('transforms', []))


def small_run(path: Path, work_dir: Path) -> Config:
    """Change images' sizes, where they lie, the run's length, the first weights, and the score that these can reach."""
    cfg = Config.fromfile(path)
    cfg.work_dir = str(work_dir)
    cfg.experiment_name = path.stem
    cfg.randomness = dict(seed=0)
    cfg.train_cfg.max_epochs = 1
    cfg.model.backbone.init_cfg = None
    cfg.model.test_cfg.score_thr = 0.0
    for refinement in cfg.model.test_cfg.refine:
        if refinement.type == 'EmbedMaskNMS':
            refinement.nms.min_score = 0.0
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.update(num_workers=0, persistent_workers=False)
        loader.dataset.data_root = f'{COCO8}/'
        shrink_images(loader.dataset.pipeline)
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
        evaluator.ann_file = str(COCO8 / 'annotations' / 'instances_val2017.json')
    return cfg


@pytest.mark.parametrize('path', CONFIGS)
def test_config_trains_and_tests(path, tmp_path):
    runner = Runner.from_cfg(small_run(path, tmp_path))
    watch = Watch()
    runner.register_hook(watch)
    runner.train()
    assert watch.losses
    for losses in watch.losses:
        assert set(losses) == {'loss', 'loss_cls', 'loss_bbox', 'loss_centerness', 'loss_mask'}
        assert all(math.isfinite(value) for value in losses.values())
        assert losses['loss_mask'] > 0
    # Training on several GPUs ends with an error for a parameter that no loss depends on.
    assert not watch.unused
    assert len(watch.shapes) == 4
    assert all(shape == expected for shape, expected in watch.shapes)
    assert runner.message_hub.get_scalar('val/coco/segm_mAP').current() >= 0
