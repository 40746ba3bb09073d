"""Several processes learn what one would, whatever is or is not in their images."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pycocotools.mask
import pytest
import torch

from tests.builders import ROOT, write_tiny_coco
from tests.training.runs import largest_difference, short_run_cfg

pytestmark = pytest.mark.slow


def empty_images(data_root):
    """Leave images 2, 5 and 6 without instances, and image 3 with one between all locations."""
    path = data_root / 'annotations.json'
    content = json.loads(path.read_text())
    annotations = [annotation for annotation in content['annotations'] if annotation['image_id'] in (1, 4)]
    mask = np.zeros((96, 128), np.uint8)
    mask[38:42, 38:42] = 1
    rle = pycocotools.mask.encode(np.asfortranarray(mask))
    between = dict(id=100, image_id=3, category_id=1, iscrowd=0, area=16, bbox=[38, 38, 4, 4])
    between['segmentation'] = dict(size=rle['size'], counts=rle['counts'].decode())
    path.write_text(json.dumps({**content, 'annotations': [*annotations, between]}))


@pytest.fixture(scope='module')
def data_root(tmp_path_factory):
    """Six images, two by two: one of them without instances; one without a positive; both without instances."""
    folder = write_tiny_coco(tmp_path_factory.mktemp('tiny'), num_images=6)
    empty_images(folder)
    return folder


def launch(data_root, work_dir, batch_size, command, *arguments, **environment):
    """Start training in ``work_dir`` and return the process."""
    work_dir.mkdir(exist_ok=True)
    cfg = short_run_cfg(data_root, work_dir, epochs=1)
    cfg.train_dataloader.batch_size = batch_size
    cfg.train_dataloader.sampler.shuffle = False
    cfg.custom_imports.imports.append('tests.training.runs')
    cfg.custom_hooks.append(dict(type='WriteLosses'))
    config = work_dir / f'config{environment.get("NODE_RANK", "")}.py'
    cfg.dump(config)
    # The config imports a hook of the tests.
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT), **environment}
    environment['PATH'] = f'{Path(sys.executable).parent}:{environment["PATH"]}'
    command = [command[0], str(ROOT / 'tools' / command[1]), str(config), *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def wait(process):
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-3000:]


def mean_losses(work_dir):
    """Losses of each iteration, averaged over processes."""
    processes = [json.loads(path.read_text()) for path in sorted(work_dir.glob('losses*.json'))]
    return [{name: np.mean([losses[name] for losses in step]) for name in step[0]} for step in zip(*processes)]


def weights(work_dir):
    return torch.load(work_dir / 'epoch_1.pth', weights_only=True)['state_dict']


@pytest.fixture(scope='module')
def one_process(data_root, tmp_path_factory):
    work_dir = tmp_path_factory.mktemp('one')
    wait(launch(data_root, work_dir, 2, [sys.executable, 'train.py']))
    return work_dir


def assert_same_training(work_dir, one_process):
    assert len(list(work_dir.glob('losses*.json'))) == 2
    losses, expected = mean_losses(work_dir), mean_losses(one_process)
    assert len(losses) == len(expected) == 3
    for i, (step, wanted) in enumerate(zip(losses, expected)):
        if i == 2:  # of images without instances FCOS counts at least one positive a process
            wanted = {name: loss / 2 for name, loss in wanted.items()}
        assert step == pytest.approx(wanted, rel=1e-4, abs=1e-6)
    assert largest_difference(weights(work_dir), weights(one_process)) < 1e-4


def test_two_processes(data_root, one_process, tmp_path):
    wait(launch(data_root, tmp_path, 1, ['bash', 'dist_train.sh'], '2', PORT='29711'))
    assert_same_training(tmp_path, one_process)


def test_two_nodes(data_root, one_process, tmp_path):
    launcher = ['bash', 'dist_train.sh']
    nodes = [
        launch(data_root, tmp_path, 1, launcher, '1', NNODES='2', NODE_RANK=str(rank), PORT='29712')
        for rank in range(2)
    ]
    for node in nodes:
        wait(node)
    assert_same_training(tmp_path, one_process)
