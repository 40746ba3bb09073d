"""The speed test: where time goes, that models do the same work, and what a user gets to see. Nothing here is timed."""

import sys

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

from tests.tiny import tiny_cfg, tiny_detector, write_tiny_coco
from tools.analysis_tools import benchmark

STAGES = ['loading', 'backbone and neck', 'heads', 'NMS', 'mask stage', 'encoding', 'other']


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A config, its data and a checkpoint of initial weights."""
    folder = tmp_path_factory.mktemp('benchmark')
    tiny_cfg(write_tiny_coco(folder / 'data'), folder / 'unused').dump(folder / 'tiny.py')
    torch.save(dict(state_dict=tiny_detector().state_dict()), folder / 'tiny.pth')
    return folder


@pytest.fixture
def run(folder, monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, 'argv', ['benchmark.py', *map(str, arguments)])
        benchmark.main()
        return capsys.readouterr().out

    return run


@pytest.fixture
def small_rivals(monkeypatch):
    """MMDetection's models on images as small as ours are here."""

    def load(name):
        cfg = installed(name)
        for step in cfg.test_dataloader.dataset.pipeline:
            if step.type == 'Resize':
                step.scale = (128, 96)
        return cfg

    installed = benchmark.load_installed_config
    monkeypatch.setattr(benchmark, 'load_installed_config', load)


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
    monkeypatch.setattr(benchmark.time, 'perf_counter', lambda: next(moments))
    clock = benchmark.StageClock('cpu')
    with clock.stage('other'):
        with clock.stage('heads'), clock.stage('untimed'):
            pass
        with clock.stage('NMS'):
            pass
    stages = clock.take()
    assert {name: ms for name, ms in stages.items() if ms} == {'other': 13e3, 'heads': 6e3, 'NMS': 6e3}
    assert not any(clock.take().values())


def test_stages_add_up_to_the_whole(run):
    (table,) = read_tables(run('tiny.py', '--speed-only', '--images', 1, '--warmup', 1, '--detections', 7))
    assert table['ms an image'] == ['EmbedMask, bitmaps', 'EmbedMask, RLE']
    assert list(table)[2:10] == [*STAGES, 'the whole']
    for column in range(2):
        stages = [float(table[stage][column]) for stage in STAGES]
        whole = float(table['the whole'][column])
        assert sum(stages) == pytest.approx(whole, abs=0.05 * (len(STAGES) + 1))
        assert float(table['images a second'][column]) == pytest.approx(1e3 / whole, rel=0.05)
    assert table['times EmbedMask, bitmaps'][0] == '1.00'
    assert table['detections an image'] == ['7', '7']
    assert table['input'] == ['96x128', '96x128']


def test_images_are_counted_in_batches(run, monkeypatch):
    turns = []
    take_turn = benchmark.Contestant.take_turn

    def record(contestant, indices):
        turns.append((contestant.name, list(indices)))
        take_turn(contestant, indices)

    monkeypatch.setattr(benchmark.Contestant, 'take_turn', record)
    run('tiny.py', '--speed-only', '--images', 5, '--batch-size', 2, '--warmup', 1)
    assert [indices for name, indices in turns if name.endswith('RLE')] == [[0, 1], [0, 1], [2, 3], [0]]
    assert [name for name, _ in turns[:2]] == ['EmbedMask, bitmaps', 'EmbedMask, RLE']


def test_there_is_a_table_for_each_number_of_detections(run, folder):
    arguments = ('--images', 2, '--warmup', 0, '--detections', 3, 20, '--out', 'docs/speed.md')
    tables = read_tables(run('tiny.py', '--speed-only', *arguments))
    assert [table['detections an image'] for table in tables] == [['3', '3'], ['20', '20']]
    text = (folder / 'docs' / 'speed.md').read_text()
    assert text.count('## End to end') == 1
    assert read_tables(text) == tables


def test_without_speed_only_it_evaluates_like_the_test_tool(run, folder):
    options = ('--cfg-options', 'model.test_cfg.score_thr=0.0')
    (table,) = read_tables(run('tiny.py', 'tiny.pth', '--against', 'tiny.py=tiny.pth', *options))
    cfg = Config.fromfile(folder / 'tiny.py')
    cfg.merge_from_dict({'model.test_cfg.score_thr': 0.0, 'load_from': 'tiny.pth', 'work_dir': str(folder / 'tested')})
    metrics = Runner.from_cfg(cfg).test()
    assert {'coco/bbox_mAP', 'coco/segm_mAP'} <= set(metrics)
    for name, value in metrics.items():
        # The config that it is compared with keeps its own threshold, which no initial score passes.
        assert table[name] == [f'{value:.3f}', f'{value:.3f}', 'nan']
    assert table['detections an image'] == ['100', '100', '0']


def against(run, *names):
    arguments = ('--speed-only', '--images', 2, '--warmup', 0, '--detections', 5)
    (table,) = read_tables(run('tiny.py', '--against', *names, *arguments))
    return table


def test_mask_rcnn_takes_turns_with_our_backbone(run, folder, small_rivals):
    table = against(run, 'mask-rcnn')
    assert table['ms an image'][2] == 'Mask R-CNN'
    assert table['detections an image'] == ['5', '5', '5']
    assert all(float(table[stage][2]) > 0 for stage in STAGES)
    cfg = benchmark.rival_config('mask-rcnn', Config.fromfile(folder / 'tiny.py'))
    assert cfg.model.backbone.depth == 18
    assert cfg.model.roi_head.mask_head.num_classes == 2


@pytest.mark.slow
def test_every_model_has_every_stage(run, small_rivals):
    table = against(run, 'all')
    assert table['ms an image'][2:] == ['Mask R-CNN', 'CondInst', 'SOLOv2', 'YOLACT']
    for stage in STAGES:
        assert all(float(ms) > 0 for ms in table[stage][2:]), stage
    assert table['detections an image'] == ['5'] * 6


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
def test_what_a_user_can_mend_is_said_in_a_line(run, arguments, message):
    with pytest.raises(SystemExit) as ended:
        run(*arguments)
    assert str(ended.value).startswith('benchmark.py: error: ')
    assert message in str(ended.value)
