"""The check of everything that needs a GPU: its page, its exit code, and its parts, which run on the CPU here."""

import re
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim.optimizer import amp_optimizer_wrapper

from embedmask_mmdet.analysis import gpu_check, machine, training_cost
from embedmask_mmdet.analysis.gpu_check import Part, Plan, check_gpu
from embedmask_mmdet.analysis.mask_stage.methods import OURS
from embedmask_mmdet.analysis.mask_stage.timing import warm_up
from embedmask_mmdet.errors import InputError
from tests.builders import COCO_CONFIG, PLUS_CONFIG, ROOT, tiny_model_cfg
from tests.scripts import like_a_process, run_script

TOOL = ROOT / 'tools' / 'misc' / 'gpu_check.py'
NMS_IS_MISSING = 'nms_impl: implementation for device cuda:0 not found.\n'
TINY = Plan(
    device='cpu',
    threads=1,
    mask_cases=(1,),
    rounds=1,
    images=1,
    warmup=0,
    detections=(3,),
    rivals=(),
    training=training_cost.Case(num_imgs=1, num_instances=2, img_shape=(64, 96), warmup=0, steps=1),
    precisions=('float32',),
)


@pytest.fixture
def check(tmp_path):
    """Run parts on the CPU and return the page."""

    def check(*names, plan=TINY):
        with like_a_process(tmp_path):
            check_gpu(names, tmp_path / 'page.md', plan)
        return (tmp_path / 'page.md').read_text()

    return check


@pytest.fixture
def tiny_models(monkeypatch):
    """Our two designs, small."""
    cfgs = {}
    for name, path in dict(paper=COCO_CONFIG, plus=PLUS_CONFIG).items():
        cfgs[name] = Config.fromfile(path)
        cfgs[name].model = tiny_model_cfg(path)
        cfgs[name].model.bbox_head.num_classes = 80
    monkeypatch.setattr(training_cost, 'OURS', dict.fromkeys(cfgs))
    monkeypatch.setattr(training_cost, 'list_models', lambda: cfgs)
    return cfgs


def measure_nothing(plan):
    yield 'first'
    yield 'second'


def fail_at_last(plan):
    yield 'so far'
    raise RuntimeError('CUDA error\nno kernel image is available\n')


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_without_a_gpu_it_says_so(tmp_path):
    ran = run_script(TOOL, ['--out', 'page.md'], tmp_path)
    assert ran.code == 1
    assert ran.stderr.startswith('gpu_check.py: error: this torch sees no GPU')
    assert 'Traceback' not in ran.stderr and not (tmp_path / 'page.md').exists()


def test_part_that_fails_does_not_stop_the_others(check, tmp_path, monkeypatch, capsys):
    parts = dict(broken=Part('Broken', fail_at_last), whole=Part('Whole', measure_nothing))
    monkeypatch.setattr(gpu_check, 'PARTS', parts)
    with pytest.raises(
        InputError, match=r'^1 of 2 parts failed: broken \(RuntimeError: no kernel image is available\).$'
    ):
        check('broken', 'whole')
    assert (tmp_path / 'page.md').read_text() == (
        '# Benchmarks on a GPU\n\n'
        '## Broken\n\nso far\n\n**Failed:** RuntimeError: no kernel image is available\n\n'
        '## Whole\n\nfirst\nsecond\n'
    )
    assert 'no kernel image is available' in capsys.readouterr().out
    # A part that is repeated replaces its section alone.
    monkeypatch.setitem(parts, 'broken', Part('Broken', measure_nothing))
    assert re.findall('## .*|second', check('broken')) == ['## Broken', 'second', '## Whole', 'second']


def test_results_of_tests_are_counted_and_failures_named(check, tmp_path):
    (tmp_path / 'test_it.py').write_text(
        'import pytest\n\n\ndef test_good():\n    pass\n\n\n'
        'def test_bad():\n    assert 1 + 1 == 3\n\n\n'
        "def test_left_out():\n    pytest.skip('no GPU')\n"
    )
    arguments = ('-c', str(tmp_path / 'pytest.ini'), '--rootdir', str(tmp_path), str(tmp_path / 'test_it.py'))
    (tmp_path / 'pytest.ini').write_text('[pytest]\n')
    with pytest.raises(InputError, match='1 passed, 1 failed, 1 skipped'):
        check('tests', plan=Plan(device='cpu', tests=arguments))
    page = (tmp_path / 'page.md').read_text()
    assert '- failure: `test_bad`: ' in page and '- skipped: `test_left_out`: no GPU' in page


@pytest.mark.skipif(not hasattr(torch, 'GradScaler'), reason='torch before 2.3 scales losses on GPUs only')
def test_table_of_training_steps(check, tiny_models, monkeypatch):
    # MMEngine's wrapper wants a GPU, but its autocast does without, in bfloat16.
    monkeypatch.setattr(amp_optimizer_wrapper, 'is_cuda_available', lambda: True)
    monkeypatch.setattr(amp_optimizer_wrapper, 'GradScaler', partial(torch.GradScaler, 'cpu'))
    page = check('training', plan=replace(TINY, precisions=('float32', 'bfloat16')))
    rows = re.findall(r'^\| (\w+) \| (\w+) \| [\d.]+ \| ([\d.]+) \| (\d+) \|$', page, re.MULTILINE)
    assert [row[:2] for row in rows] == list(product(['paper', 'plus'], ['float32', 'bfloat16']))
    assert [row[2] for row in rows[:2]] == ['1.00', '1.00']
    assert 'Failed' not in page


def test_model_without_its_operator_is_left_out_of_training(check, tiny_models, monkeypatch):
    def measure(model, cfg, *_):
        if cfg is tiny_models['plus']:
            raise RuntimeError(NMS_IS_MISSING)
        return training_cost.Cost(10, 20)

    monkeypatch.setattr(training_cost, 'measure_steps', measure)
    monkeypatch.setattr(training_cost, 'OURS', ['paper'])
    page = check('training')
    assert '| paper | float32 | 10.0 | 1.00 | 20 |' in page
    assert 'plus in float32 is left out: mmcv was built without its operator nms for this device.' in page
    # That is no reason to leave ours out.
    monkeypatch.setattr(training_cost, 'OURS', ['paper', 'plus'])
    with pytest.raises(InputError, match='training .*mmcv was built without its operator nms'):
        check('training')


def test_drawn_batch_has_as_many_instances_as_asked_for():
    batch = training_cost.draw_batch(training_cost.Case(img_shape=(320, 416)))
    for sample in batch['data_samples']:
        sides = sample.gt_instances.bboxes[:, 2:] - sample.gt_instances.bboxes[:, :2]
        assert len(sides) == 20 and sides.min() > 0


def test_memory_that_shrinks_is_no_growth(monkeypatch):
    amounts = dict(VmRSS=5000, VmHWM=4000)
    monkeypatch.setattr(machine, 'read_memory', amounts.get)
    before = machine.reset_peak('cpu')
    assert machine.read_growth('cpu', before) == 0
    amounts['VmHWM'] = 7000
    assert machine.read_growth('cpu', before) == 2000


def test_method_without_its_operator_is_left_out_of_the_mask_stage():
    def fail():
        raise RuntimeError(NMS_IS_MISSING.replace('nms', 'roi_align_forward'))

    named = {'kernels, RLE': lambda: [], 'Mask R-CNN, RLE': fail}
    assert warm_up(named) == (
        'Mask R-CNN, RLE is left out: mmcv was built without its operator roi_align_forward for this device.'
    )
    assert list(named) == ['kernels, RLE']  # ours must not be left out
    with pytest.raises(RuntimeError, match='roi_align'):
        warm_up({f'{OURS[0]}, RLE': fail})


def test_complete_inference_on_drawn_images(check, monkeypatch, tmp_path):
    cfg = Config.fromfile(COCO_CONFIG)
    cfg.model = tiny_model_cfg()
    for step in cfg.test_dataloader.dataset.pipeline:
        if step.type == 'Resize':
            step.scale = (128, 96)
    cfg.dump(tmp_path / 'tiny.py')
    monkeypatch.setattr(gpu_check, 'CONFIG', Path(tmp_path / 'tiny.py'))
    page = check('inference')
    assert 'Images of 480x640 are drawn.' in page
    assert '| detections per image | 3 | 3 |' in page and '| input | 96x128 | 96x128 |' in page


@pytest.mark.slow
def test_tables_of_the_mask_stage(check):
    page = check('masks')
    assert all(f'| {name}, RLE | ' in page for name in ('kernels', 'Mask R-CNN', 'CondInst', 'SOLOv2'))
