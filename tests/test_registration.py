"""Importing the package registers its parts, in whatever order a program imports it, and costs nothing before."""

import os
import subprocess
import sys

import pytest

from embedmask_mmdet.engine.checkpoint import SAFE_BY_DEFAULT
from tests.builders import ROOT

# What has to be true, however it was imported.
CHECK = """
from mmdet.datasets import CocoDataset
from mmdet.evaluation.metrics import coco_metric
from mmdet.registry import HOOKS, MODELS, TASK_UTILS, TRANSFORMS
from mmengine.runner.checkpoint import CheckpointLoader

assert 'EmbedMask' in MODELS and 'EmbedMaskCertainty' in TASK_UTILS and 'EmbedMaskCheckHook' in HOOKS
assert 'EmbedMaskLoadAnnotations' in TRANSFORMS
assert CocoDataset.COCOAPI.__name__ == 'CheckedDatasetCOCO', CocoDataset.COCOAPI
assert coco_metric.COCO.__name__ == 'CheckedCOCO', coco_metric.COCO
assert CheckpointLoader._schemes[''].__module__ == 'embedmask_mmdet.engine.checkpoint'
import embedmask_mmdet
import inspect
assert embedmask_mmdet.models.EmbedMask.__name__ == 'EmbedMask' and embedmask_mmdet.engine and embedmask_mmdet.ops
assert 'class EmbedMask(' in inspect.getsource(embedmask_mmdet.models.detector)
"""
ORDERS = {
    'package, then mmdet': 'import embedmask_mmdet\nimport mmdet.registry',
    'runtime, then a config': f"""
import embedmask_mmdet.runtime
from mmengine.config import Config
cfg = Config.fromfile({str(ROOT / 'configs' / 'embedmask-plus_r18_nuclei.py')!r})
from mmdet.apis import init_detector
assert type(init_detector(cfg, None, device='cpu')).__name__ == 'EmbedMask'
""",
    'parts': 'from embedmask_mmdet import engine, models',
    'models alone': 'import embedmask_mmdet.models',
    'mmcv': 'import embedmask_mmdet\nimport mmcv\nassert mmcv.imread and mmcv.ops.nms',
    'mmdet, then runtime': 'import mmdet.apis\nimport embedmask_mmdet.runtime',
}


def run(code, *options):
    """Run Python code in a new process."""
    command = [sys.executable, '-W', 'ignore', *options, '-c', code]
    env = {**os.environ, 'PYTHONPATH': str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=ROOT)


@pytest.mark.parametrize(
    'order',
    [
        pytest.param(code, id=name, marks=[] if name == 'runtime, then a config' else [pytest.mark.slow])
        for name, code in ORDERS.items()
    ],
)
def test_everything_is_registered(order):
    ran = run(order + CHECK)
    assert ran.returncode == 0, ran.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.skipif(not SAFE_BY_DEFAULT, reason='the safe unpickler of torch before 2.6 loads weights only')
def test_checkpoint_loads_after_mmengine_was_imported(tmp_path):
    """MMDetection's publish_model.py imports no more than this."""
    code = f"""
import embedmask_mmdet
import mmengine.logging
import torch
history = mmengine.logging.HistoryBuffer([1.0], [1])
torch.save(dict(message_hub=history), {str(tmp_path / 'epoch_1.pth')!r})
print(torch.load({str(tmp_path / 'epoch_1.pth')!r}, weights_only=True))
"""
    ran = run(code)
    assert 'HistoryBuffer' in ran.stdout, ran.stderr[-2000:]


def test_nothing_is_imported_before_it_is_used():
    code = """
import sys
import embedmask_mmdet
print(sorted({'mmcv', 'mmdet', 'mmengine', 'torch', 'cv2'} & set(sys.modules)))
"""
    assert run(code).stdout == '[]\n'


def test_mmengine_without_mmdet():
    """A program that uses the runtime and MMEngine does not need MMDetection."""
    code = """
import sys
sys.modules['mmdet'] = None
import embedmask_mmdet.runtime
import mmengine
import embedmask_mmdet.registration
print('embedmask_mmdet.engine' in sys.modules)
"""
    ran = run(code)
    assert ran.stdout == 'False\n', ran.stderr[-2000:]


def test_unknown_attribute():
    code = 'import embedmask_mmdet\nembedmask_mmdet.modles'
    assert "module 'embedmask_mmdet' has no attribute 'modles'" in run(code).stderr


@pytest.mark.slow
def test_error_of_an_import_is_that_of_the_module():
    code = """
import sys
import embedmask_mmdet
sys.modules['mmcv'] = None
try:
    import mmdet
except ImportError as error:
    print(error)
del sys.modules['mmcv']
from mmdet.registry import MODELS
print('EmbedMask' in MODELS)
"""
    lines = run(code).stdout.splitlines()
    assert 'mmcv' in lines[0] and lines[-1] == 'True'
