"""The COCO path end to end, on 8 real COCO images."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.builders import ROOT

COCO8 = ROOT.parent / 'shared' / 'data' / 'coco8'
OVERFIT = ROOT / 'tests' / 'configs' / 'embedmask_r50_overfit_coco8.py'

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not COCO8.is_dir(), reason='the 8 COCO images are not beside this repository'),
]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A folder with COCO where the configs look for it."""
    folder = tmp_path_factory.mktemp('coco8')
    (folder / 'data').mkdir()
    (folder / 'data' / 'coco').symlink_to(COCO8)
    return folder


def run_tool(folder: Path, name: str, *args: object) -> None:
    command = [sys.executable, ROOT / 'tools' / name, *args]
    subprocess.run(
        [str(part) for part in command], cwd=folder, check=True, env={**os.environ, 'PYTHONWARNINGS': 'ignore'}
    )


def metrics_of(folder: Path, checkpoint: Path, mask_format: str) -> dict:
    options = [f'model.test_cfg.mask_format={mask_format}']
    work_dir = folder / mask_format
    run_tool(folder, 'test.py', OVERFIT, checkpoint, '--work-dir', work_dir, '--cfg-options', *options)
    (path,) = work_dir.glob('*/*.json')
    return {name: value for name, value in json.loads(path.read_text()).items() if 'mAP' in name}


def test_model_learns_four_images_by_heart_and_both_mask_formats_agree(folder):
    run_tool(folder, 'train.py', OVERFIT)
    (checkpoint,) = (folder / 'work_dirs' / OVERFIT.stem).glob('epoch_*.pth')
    metrics = metrics_of(folder, checkpoint, 'bitmap')
    assert metrics['coco/segm_mAP'] >= 0.5
    assert metrics_of(folder, checkpoint, 'rle') == metrics


def test_coco_config_runs_unchanged(folder):
    config = ROOT / 'configs' / 'embedmask_r50_1x_coco.py'
    options = ['train_cfg.max_epochs=1', 'train_dataloader.batch_size=1', 'model.backbone.init_cfg=None']
    options += [f'{loader}_dataloader.num_workers=1' for loader in ('train', 'val', 'test')]
    run_tool(folder, 'train.py', config, '--cfg-options', *options)
    checkpoint = folder / 'work_dirs' / config.stem / 'epoch_1.pth'
    run_tool(folder, 'test.py', config, checkpoint, '--cfg-options', *options)
