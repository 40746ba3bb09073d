"""The speed test: where time goes, that models do the same work, and what a user gets to see. Nothing here is timed."""

import functools
import re
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from torch import nn

from embedmask_mmdet.analysis.end_to_end import contestants, stages
from embedmask_mmdet.analysis.end_to_end.fixed_detections import FixedDetections
from embedmask_mmdet.analysis.end_to_end.options import Options
from embedmask_mmdet.models import EmbedMaskBBoxHead
from tests.builders import CLASSES, ROOT, tiny_cfg, tiny_detector, write_tiny_coco
from tests.scripts import run_script

TOOL = ROOT / 'tools' / 'analysis_tools' / 'benchmark.py'

STAGES = ['loading', 'backbone and neck', 'heads', 'NMS', 'mask stage', 'encoding', 'other']


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Configs of the reference's design and of plus, their data, and checkpoints of weights that are not trained."""
    folder = tmp_path_factory.mktemp('benchmark')
    cfg = tiny_cfg(write_tiny_coco(folder / 'data'), folder / 'unused')
    cfg.dump(folder / 'tiny.py')
    cfg.model = Config.fromfile(ROOT / 'configs' / 'embedmask-plus_r18_nuclei.py').model
    cfg.model.bbox_head.num_classes = len(CLASSES)
    cfg.dump(folder / 'plus.py')
    weights = tiny_detector().state_dict()
    torch.save(dict(state_dict=weights), folder / 'tiny.pth')
    weights['bbox_head.conv_reg.bias'].fill_(-10.0)
    torch.save(dict(state_dict=weights), folder / 'boxes-without-extent.pth')
    return folder


@pytest.fixture
def run(folder):
    def run(*arguments):
        return run_script(TOOL, list(map(str, arguments)), folder)

    return run


@pytest.fixture
def measure(run):
    """Run the benchmark and return its output."""

    def measure(*arguments):
        result = run(*arguments)
        assert result.code == 0, result.stderr
        return result.stdout

    return measure


@pytest.fixture
def small_rivals(monkeypatch):
    """MMDetection's models on images as small as ours are here."""

    def load(name):
        cfg = installed(name)
        for step in cfg.test_dataloader.dataset.pipeline:
            if step.type == 'Resize':
                step.scale = (128, 96)
        return cfg

    installed = contestants.load_installed_config
    monkeypatch.setattr(contestants, 'load_installed_config', load)


def read_tables(text):
    """Read the tables of a text: of each, a dict from a row's title to its cells."""
    blocks = [block for block in text.split('\n\n') if block.startswith('|')]
    tables = []
    for block in blocks:
        rows = [[cell.strip(' *') for cell in line.strip('|').split('|')] for line in block.strip().split('\n')]
        tables.append({row[0]: row[1:] for row in rows})
    return tables


def test_each_moment_counts_for_the_innermost_stage(monkeypatch):
    moments = iter([0.0, 1.0, 3.0, 6.0, 10.0, 15.0, 21.0, 28.0])
    monkeypatch.setattr(stages.time, 'perf_counter', lambda: next(moments))
    clock = stages.StageClock('cpu')
    with clock.run_stage('other'):
        with clock.run_stage('heads'), clock.run_stage('untimed'):
            pass
        with clock.run_stage('NMS'):
            pass
    taken = clock.take()
    assert {name: ms for name, ms in taken.items() if ms} == {'other': 13e3, 'heads': 6e3, 'NMS': 6e3}
    assert not any(clock.take().values())


def test_stages_add_up_to_the_whole(measure):
    (table,) = read_tables(measure('tiny.py', '--speed-only', '--images', 1, '--warmup', 1, '--detections', 7))
    assert table['ms per image'] == ['EmbedMask, bitmaps', 'EmbedMask, RLE', 'EmbedMask, RLE, speed_up']
    assert list(table)[2:10] == [*STAGES, 'total']
    for column in range(3):
        total = float(table['total'][column])
        assert sum(float(table[stage][column]) for stage in STAGES) == pytest.approx(
            total, abs=0.05 * (len(STAGES) + 1)
        )
        assert float(table['images per second'][column]) == pytest.approx(1e3 / total, rel=0.05)
    assert table['times EmbedMask, bitmaps'][0] == '1.00'
    assert table['detections per image'] == ['7', '7', '7']
    assert table['input'] == ['96x128'] * 3


def test_images_are_counted_in_batches(measure, monkeypatch):
    turns = []
    take_turn = contestants.Contestant.take_turn

    def record(contestant, indices):
        turns.append((contestant.name, list(indices)))
        take_turn(contestant, indices)

    monkeypatch.setattr(contestants.Contestant, 'take_turn', record)
    measure('tiny.py', '--speed-only', '--images', 5, '--batch-size', 2, '--warmup', 1)
    assert [indices for name, indices in turns if name.endswith('RLE')] == [[0, 1], [0, 1], [2, 3], [0]]
    assert [name for name, _ in turns[:2]] == ['EmbedMask, bitmaps', 'EmbedMask, RLE']


def test_there_is_a_table_for_each_number_of_detections(measure, folder):
    arguments = ('--images', 2, '--warmup', 0, '--detections', 3, 20, '--out', 'docs/speed.md')
    tables = read_tables(measure('tiny.py', '--speed-only', *arguments))
    assert [table['detections per image'] for table in tables] == [['3'] * 3, ['20'] * 3]
    text = (folder / 'docs' / 'speed.md').read_text()
    assert text.count('## End to end') == 1
    assert read_tables(text) == tables


@pytest.mark.parametrize('model', [['tiny.py'], ['tiny.py', 'boxes-without-extent.pth'], ['plus.py']])
def test_each_image_has_the_number_of_detections_asked_for(measure, model):
    tables = read_tables(measure(*model, '--speed-only', '--images', 2, '--warmup', 0, '--detections', 20, 3))
    assert [table['detections per image'] for table in tables] == [['20'] * 3, ['3'] * 3]


def test_inference_is_under_autocast_to_another_precision(measure, monkeypatch):
    dtypes, predict_by_feat = [], EmbedMaskBBoxHead.predict_by_feat

    @functools.wraps(predict_by_feat)
    def record(head, proposals, **kwargs):
        dtypes.append(proposals.cls_scores[0].dtype)
        return predict_by_feat(head, proposals, **kwargs)

    monkeypatch.setattr(EmbedMaskBBoxHead, 'predict_by_feat', record)
    arguments = ('--images', 1, '--warmup', 0, '--detections', 7)
    text = measure('tiny.py', '--speed-only', '--precision', 'bfloat16', *arguments)
    assert 'Inference is under autocast to bfloat16.' in text
    assert read_tables(text)[0]['detections per image'] == ['7', '7', '7']
    assert 'autocast' not in measure('tiny.py', '--speed-only', *arguments)
    assert dtypes == [torch.bfloat16] * 3 + [torch.float32] * 3


def test_other_models_without_their_operators_are_left_out():
    def fail(indices):
        raise RuntimeError('nms_impl: implementation for device cuda:0 not found.\n')

    ours = SimpleNamespace(name='EmbedMask', model=nn.Identity(), fixed=None, take_turn=lambda indices: None)
    other = SimpleNamespace(name='Mask R-CNN', model=nn.Flatten(), fixed=None, take_turn=fail)
    models, options = [ours, other], Options('tiny.py', speed_only=True)
    expected = 'Mask R-CNN is left out: mmcv was built without its operator nms for this device.'
    assert contestants.warm_up(models, options) == expected
    assert models == [ours]
    ours.take_turn = fail
    with pytest.raises(RuntimeError, match='nms_impl'):
        contestants.warm_up(models, options)


def test_number_of_detections_that_no_image_has_is_an_error(run):
    result = run('tiny.py', '--speed-only', '--images', 1, '--warmup', 0, '--detections', 10_000)
    assert result.code != 0 and not result.stdout
    assert re.search(r'error: EmbedMask, bitmaps has \d+ detections in an image instead of 10000', result.stderr)


def test_without_speed_only_it_evaluates_like_the_test_tool(measure, folder):
    options = ('--cfg-options', 'model.test_cfg.score_thr=0.0')
    (table,) = read_tables(measure('tiny.py', 'tiny.pth', '--against', 'tiny.py=tiny.pth', *options))
    cfg = Config.fromfile(folder / 'tiny.py')
    cfg.merge_from_dict({'model.test_cfg.score_thr': 0.0, 'load_from': str(folder / 'tiny.pth')})
    cfg.work_dir = str(folder / 'tested')
    metrics = Runner.from_cfg(cfg).test()
    assert {'coco/bbox_mAP', 'coco/segm_mAP'} <= set(metrics)
    for name, value in metrics.items():
        # The config that it is compared with keeps its own threshold, which no initial score passes.
        assert table[name][:2] == [f'{value:.3f}'] * 2
        assert float(table[name][2]) == pytest.approx(value, abs=2e-3, nan_ok=True)
        assert table[name][3] == 'nan'
    assert table['detections per image'] == ['100', '100', '100', '0']


def against(measure, *names):
    arguments = ('--speed-only', '--images', 2, '--warmup', 0, '--detections', 5)
    (table,) = read_tables(measure('tiny.py', '--against', *names, *arguments))
    return table


def test_mask_rcnn_takes_turns_with_our_backbone(measure, folder, small_rivals):
    table = against(measure, 'mask-rcnn')
    assert table['ms per image'][3] == 'Mask R-CNN'
    assert table['detections per image'] == ['5'] * 4
    assert all(float(table[stage][3]) > 0 for stage in STAGES)
    cfg = contestants.make_rival_config('mask-rcnn', Config.fromfile(folder / 'tiny.py'))
    assert cfg.model.backbone.depth == 18
    assert cfg.model.roi_head.mask_head.num_classes == 2


@pytest.mark.slow
def test_every_model_has_every_stage(measure, small_rivals):
    table = against(measure, 'all')
    assert table['ms per image'][3:] == ['Mask R-CNN', 'CondInst', 'SOLOv2', 'YOLACT']
    for stage in STAGES:
        assert all(float(ms) > 0 for ms in table[stage][3:]), stage
    assert table['detections per image'] == ['5'] * 7


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['tinny.py', '--speed-only'], 'the config tinny.py does not exist'),
        (['tiny.py'], 'tiny.py has no checkpoint to evaluate'),
        (['tiny.py', 'tiny.pth', '--against', 'condinst'], 'condinst has no checkpoint to evaluate'),
        (['tiny.py', 'tiny.pth', '--images', 3], '--images and --detections need --speed-only'),
        (['tiny.py', 'epoch_9.pth'], 'the checkpoint epoch_9.pth does not exist'),
        (['tiny.py', '--speed-only', '--against', 'maskrcnn'], '--against takes mask-rcnn, condinst'),
        (['tiny.py', '--speed-only', '--batch-size', 0], '--batch-size must be at least 1, got 0'),
        (['tiny.py', '--speed-only', '--detections', -1], '--detections must be at least 0, got -1'),
        (
            ['tiny.py', '--speed-only', '--cfg-options', 'test_dataloader.dataset.ann_file=gone.json'],
            'gone.json does not exist',
        ),
    ],
)
def test_what_a_user_can_fix_ends_with_one_line(run, arguments, message):
    result = run(*arguments)
    (error,) = re.findall('^benchmark.py: error: .*', result.stderr, re.MULTILINE)
    assert message in error and 'Traceback' not in result.stderr


def find_threshold(logits):
    fixed = object.__new__(FixedDetections)
    fixed.head = SimpleNamespace(loss_cls=SimpleNamespace(use_sigmoid=True))
    fixed.logits, fixed.num_detections, fixed.test_cfgs = [logits], 5, [{}]
    return fixed._find_threshold(1), fixed.test_cfgs[0]


def test_ten_scores_for_each_detection_pass_the_threshold():
    logits = torch.randn(1, 2, 30, 30, generator=torch.Generator().manual_seed(0))
    threshold, test_cfg = find_threshold(logits)
    assert (logits.sigmoid() > threshold).sum() == 50 and not test_cfg


def test_equal_scores_pass_the_threshold_and_the_best_are_taken():
    threshold, test_cfg = find_threshold(torch.zeros(1, 2, 30, 30))
    assert threshold < 0.5 and test_cfg == dict(nms_pre=50)
