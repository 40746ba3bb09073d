"""The notebook runs as it stands after `make demo`; here with random weights and a small image."""

from pathlib import Path

import cv2
import nbformat
import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def demo_folder(tmp_path):
    """Return a folder `demo` with what the notebook expects around it."""
    config = Config.fromfile(ROOT / 'configs/embedmask-plus_r18_nuclei.py')
    init_default_scope('mmdet')
    model = MODELS.build(config.model)
    torch.nn.init.constant_(model.bbox_head.conv_cls.bias, 2.0)  # so that something is found
    checkpoint = dict(state_dict=model.state_dict(), meta=dict(dataset_meta=config.metainfo.to_dict()))
    for folder in ('demo', 'data/nuclei/images', 'work_dirs/demo'):
        (tmp_path / folder).mkdir(parents=True)
    torch.save(checkpoint, tmp_path / f'work_dirs/demo/iter_{config.train_cfg.max_iters}.pth')
    image = np.random.default_rng(0).integers(0, 255, (40, 30, 3), np.uint8)
    cv2.imwrite(str(tmp_path / 'data/nuclei/images/test.png'), image)
    (tmp_path / 'configs').symlink_to(ROOT / 'configs')
    return tmp_path / 'demo'


def test_notebook_runs_and_shows_pictures(demo_folder):
    notebook = nbformat.read(ROOT / 'demo/embedmask.ipynb', as_version=4)
    NotebookClient(notebook, timeout=300, resources=dict(metadata=dict(path=str(demo_folder)))).execute()

    outputs = [output for cell in notebook.cells if cell.cell_type == 'code' for output in cell.outputs]
    assert sum('image/png' in output.get('data', {}) for output in outputs) == 2
    printed = ''.join(output.text for output in outputs if output.get('name') == 'stdout')
    assert 'masks (' in printed and '160, 120)' in printed
    assert "'masks': " in printed


def test_notebook_is_kept_without_outputs():
    notebook = nbformat.read(ROOT / 'demo/embedmask.ipynb', as_version=4)
    assert all(not cell.outputs and cell.execution_count is None for cell in notebook.cells if cell.cell_type == 'code')
