"""What `compare_models.py` trains, and the tables it writes."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import IterBasedTrainLoop, Runner

from embedmask_mmdet.analysis.comparison.configs import (
    Model,
    compute_fingerprint,
    make_training_config,
    set_schedule,
    split_limit,
)
from embedmask_mmdet.analysis.comparison.report import format_aps, format_costs, have_curves, plot_curves
from embedmask_mmdet.analysis.comparison.training import select_curve
from tests.builders import tiny_cfg, write_tiny_coco
from tests.scripts import run_script

ROOT = Path(__file__).parents[1]
TOOL = ROOT / 'tools' / 'analysis_tools' / 'compare_models.py'
CONFIGS = sorted((ROOT / 'configs' / 'comparison').glob('*.py'))


def compare(folder, *arguments):
    return run_script(TOOL, list(map(str, arguments)), folder)


def read_with_condinst(path):
    """Read a config, and that of CondInst for the same data."""
    init_default_scope('mmdet')
    data = path.stem.removesuffix('-from-fcos').rpartition('_')[2]
    return Config.fromfile(path), Config.fromfile(path.with_name(f'condinst_r18-64_{data}.py'))


def trained(name, curves, seconds=(1.0, 2.0, 3.0), metric=('segm', 'bbox'), iterations=(100, 300)):
    cfg = Config(dict(val_evaluator=dict(metric=list(metric)), train_dataloader=dict(batch_size=4)))
    curves = {seed: {i: dict.fromkeys(metric, ap) for i, ap in curve.items()} for seed, curve in enumerate(curves)}
    return Model(name, f'{name}.py', list(iterations), cfg, curves, list(seconds), 12_345_678)


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_config_has_data_and_schedule_in_common(path):
    cfg, condinst = read_with_condinst(path)
    for name in ('train_dataloader', 'val_dataloader', 'optim_wrapper', 'param_scheduler', 'train_cfg', 'randomness'):
        assert cfg[name] == condinst[name], name
    assert cfg.model.data_preprocessor == condinst.model.data_preprocessor
    backbone = MODELS.build(cfg.model).backbone
    assert getattr(backbone, 'frozen_stages', -1) == -1 and 'checkpoint' not in (backbone.init_cfg or {})
    cfg.pretty_text  # noqa: B018, what a training dumps


@pytest.mark.parametrize('path', [path for path in CONFIGS if '_r18-64_' in path.stem], ids=lambda path: path.stem)
def test_config_has_all_but_the_head_in_common(path):
    cfg, condinst = read_with_condinst(path)
    assert cfg.model.backbone == condinst.model.backbone
    if 'mask-rcnn' not in path.stem:
        # The pyramid of plus has normalization.
        assert dict(cfg.model.neck, norm_cfg=None) == dict(condinst.model.neck, norm_cfg=None)
        widths = ['num_classes', 'in_channels', 'feat_channels']
        if 'yolact' not in path.stem:
            widths += ['stacked_convs', 'strides']
        assert all(cfg.model.bbox_head[name] == condinst.model.bbox_head[name] for name in widths)


@pytest.mark.parametrize('iterations', [(100, 300, 600), (1, 2), (7, 8, 20), (50,)])
def test_schedule_tests_after_each_of_the_iterations(iterations):
    cfg = Config()
    set_schedule(cfg, list(iterations))
    loop = object.__new__(IterBasedTrainLoop)
    milestones = [0, *(milestone for milestone, _ in cfg.train_cfg.dynamic_intervals)]
    loop.dynamic_milestones = milestones
    loop.dynamic_intervals = [cfg.train_cfg.val_interval, *(i for _, i in cfg.train_cfg.dynamic_intervals)]
    tested = []
    for iteration in range(1, cfg.train_cfg.max_iters + 1):
        loop._iter = iteration
        loop._decide_current_val_interval()
        if iteration % loop.val_interval == 0:
            tested.append(iteration)
    assert tuple(tested) == iterations
    assert cfg.param_scheduler[-1].end == iterations[-1]


def test_scale_enlarges_behind_augmentation_and_where_tests_resize():
    cfg = Config.fromfile(ROOT / 'configs' / 'comparison' / 'condinst_r18-64_nuclei.py')
    before = cfg.train_dataloader.dataset.pipeline
    scaled = make_training_config(cfg, [10], 0, 2.0)
    steps = scaled.train_dataloader.dataset.pipeline
    assert steps[-2] == dict(type='Resize', scale_factor=2.0, keep_ratio=True)
    assert [*steps[:-2], steps[-1]] == before
    assert scaled.val_dataloader.dataset.pipeline[1].scale == (1024, 1024)
    assert cfg.val_dataloader.dataset.pipeline[1].scale == (512, 512)


def test_seeds_and_lengths_are_other_trainings_and_tests_on_the_way_are_not():
    cfg = Config.fromfile(ROOT / 'configs' / 'comparison' / 'condinst_r18-64_nuclei.py')
    digests = [
        compute_fingerprint(make_training_config(cfg, *arguments))
        for arguments in (([100, 600], 0, 1), ([300, 600], 0, 1), ([600], 1, 1), ([300], 0, 1), ([600], 0, 2))
    ]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 4


def test_tables_give_mean_spread_and_ap_in_equal_time():
    fast = trained('fast', [{100: 0.2, 300: 0.5}, {100: 0.4, 300: 0.7}])
    slow = trained('slow', [{100: 0.6, 300: 0.8}], seconds=(4.0, 12.0, 21.0))
    table = format_aps([fast, slow], 'segm', [100, 300]).splitlines()
    assert table[2] == '| fast | 0.300 ± 0.141 | 0.600 ± 0.141 | 0.600 ± 0.141 |'
    # It takes 6 times as long as the fast one in the same round, so it gets half the way to its first test.
    assert table[3] == '| slow, seeds: 1 | 0.600 | 0.800 | 0.300 |'
    costs = format_costs([fast, slow]).splitlines()
    assert costs[3] == '| slow | 12.000 | 6.00 (5.00 to 6.50) | 12.35 |'


def test_a_shorter_schedule_has_its_own_line_end():
    full = trained('full', [{100: 0.2, 300: 0.5}])
    short = trained('short', [{50: 0.4}], seconds=(6.0, 6.0, 6.0), iterations=(50,))
    table = format_aps([full, short], 'segm', [100, 300]).splitlines()
    assert table[3] == '| short, schedule of 50 | - | - | 0.400 |'
    assert split_limit('a/b.py:50') == ('a/b.py', 50)
    assert split_limit('C:/b.py') == ('C:/b.py', None)


def test_one_test_alone_is_no_curve():
    models = [trained('one', [{100: 0.2}], iterations=(100,)), trained('two', [{100: 0.4}], iterations=(100,))]
    table = format_aps(models, 'segm', [100]).splitlines()
    assert table == ['| mask AP | 100 it |', '| --- | ---: |', '| one | 0.200 |', '| two | 0.400 |']
    assert not have_curves(models)


def test_plot_draws_models_with_and_without_masks(tmp_path):
    models = [trained('masks', [{100: 0.2, 300: 0.5}] * 2), trained('boxes', [{100: 0.2}], metric=['bbox'])]
    plot_curves(models, tmp_path / 'plot.svg')
    drawn = (tmp_path / 'plot.svg').read_text()
    assert all(text in drawn for text in ('mask AP', 'box AP', 'masks', 'boxes', 'iterations'))
    plot_curves(models, tmp_path / 'again.svg')
    assert (tmp_path / 'again.svg').read_text() == drawn


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
    """Two configs of the tiny detector on one dataset, one that fails, and one on other data."""
    folder = tmp_path_factory.mktemp('tiny')
    cfg = tiny_cfg(write_tiny_coco(folder / 'data', num_images=2), folder / 'unused')
    cfg.pop('work_dir')
    cfg.model.backbone.frozen_stages = -1
    cfg.model.test_cfg.score_thr = 0.0
    cfg.dump(folder / 'one.py')
    cfg.model.bbox_head.embed_dim = cfg.model.mask_head.embed_dim = 8
    cfg.dump(folder / 'two.py')
    cfg.model.bbox_head.no_such_argument = 1
    cfg.dump(folder / 'wrong.py')
    cfg.val_dataloader.dataset.ann_file = 'other.json'
    cfg.dump(folder / 'elsewhere.py')
    return folder


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['missing.py'], 'the config missing.py does not exist'),
        (['one.py', 'one.py'], 'several configs have the name one'),
        (['one.py', 'elsewhere.py'], 'tested on different data'),
        (['one.py', '--seeds', '0'], 'must be at least 1'),
        (['one.py', '--out', 'table.json'], '--out must be a Markdown file'),
        (['one.py', '--scale', '2'], 'needs a `Resize`'),
    ],
)
def test_what_cannot_be_compared_is_named(tiny, arguments, message):
    result = compare(tiny, '--out', 'never.md', *arguments)
    assert result.code != 0 and message in result.stderr and 'Traceback' not in result.stderr
    assert not (tiny / 'never.md').exists()


@pytest.mark.slow
def test_comparison_goes_on_where_it_was(tiny):
    arguments = ('--seeds', 1, '--iterations', 1, 2, '--rounds', 1, '--work-dir', 'runs', '--title', 'Tiny data')
    result = compare(tiny, 'one.py', 'wrong.py', *arguments, '--out', 'docs/accuracy.md')
    assert result.code == 1
    assert 'wrong, seed 0: FAILED' in result.stderr and 'no_such_argument' in result.stderr
    assert '1 of 2 trainings failed' in result.stderr
    first = json.loads((tiny / 'runs/one-2it/seed0/result.json').read_text())
    assert list(first['curve']) == ['1', '2'] and set(first['curve']['2']) == {'bbox', 'segm'}

    before = (tiny / 'runs/one-2it/seed0/result.json').stat().st_mtime_ns
    result = compare(tiny, 'one.py', 'two.py', *arguments, '--out', 'docs/accuracy.md')
    assert result.code == 0, result.stderr
    assert (tiny / 'runs/one-2it/seed0/result.json').stat().st_mtime_ns == before
    assert 'one, seed 0: training' not in result.stdout and 'two, seed 0: training' in result.stdout
    text = (tiny / 'docs/accuracy.md').read_text()
    assert text.startswith('# Accuracy') and text.count('## Tiny data') == 1
    assert '| two |' in text and '![AP over iterations](accuracy-tiny-data.svg)' in text
    assert (tiny / 'docs/accuracy-tiny-data.svg').is_file()
    assert 'wrong' not in text

    # Another machine has what is committed, and no folder of trainings.
    shutil.move(tiny / 'runs', tiny / 'elsewhere')
    result = compare(tiny, 'one.py', 'two.py', *arguments, '--seeds', 2, '--report', '--out', 'docs/accuracy.md')
    assert result.code == 0, result.stderr
    assert 'training' not in result.stdout and 'two, seed 1: not trained' in result.stderr
    again = (tiny / 'docs/accuracy.md').read_text()
    assert 'one was timed untrained.' in again and 'timed untrained' not in text
    # Model and AP after 1 and 2 iterations, of masks and of boxes.
    rows, rows_again = (re.findall(r'^\| (?:one|two) \| 0\.\d{3} \| 0\.\d{3} ', t, re.MULTILINE) for t in (text, again))
    assert len(rows) == 4 and rows_again == rows
    assert sorted(json.loads((tiny / 'docs/accuracy.json').read_text())) == ['one-2it/seed0', 'two-2it/seed0']

    # Nor has it the data yet.
    (tiny / 'data/annotations.json').rename(tiny / 'data/elsewhere.json')
    result = compare(tiny, 'one.py', *arguments, '--report', '--out', 'docs/accuracy.md')
    (tiny / 'data/elsewhere.json').rename(tiny / 'data/annotations.json')
    assert 'annotations.json does not exist (working folder' in result.stderr and 'Traceback' not in result.stderr


def test_stored_results_hold_for_their_config_and_iterations_alone():
    cfg = Config.fromfile(ROOT / 'configs' / 'comparison' / 'condinst_r18-64_nuclei.py')
    prepared = make_training_config(cfg, [100, 600], 0, 1)
    result = dict(fingerprint=compute_fingerprint(prepared), curve={'100': {}, '600': {}})
    assert select_curve(result, prepared, [100, 600]) == {100: {}, 600: {}}
    assert select_curve(result, prepared, [300, 600]) is None
    assert select_curve(result, make_training_config(cfg, [100, 600], 1, 1), [100, 600]) is None
    assert select_curve({}, prepared, [100, 600]) is None


@pytest.mark.parametrize('seed', [0, 5])
def test_models_with_one_seed_see_the_same_batches(tiny, seed):
    cfg = Config.fromfile(tiny / 'one.py')
    init_default_scope('mmdet')
    cfg.train_dataloader.update(sampler=dict(type='InfiniteSampler'), num_workers=0)
    cfg.train_dataloader.dataset.pipeline.insert(2, dict(type='RandomCrop', crop_size=(64, 64)))
    seen = []
    for drawn_before in (1, 9):
        np.random.seed(drawn_before)
        torch.manual_seed(drawn_before)
        prepared = make_training_config(cfg, [2], seed, 1)
        batches = iter(Runner.build_dataloader(prepared.train_dataloader, seed=prepared.randomness.seed))
        seen.append([torch.stack(next(batches)['inputs']) for _ in range(3)])
        torch.rand(drawn_before)
    assert all(torch.equal(*pair) for pair in zip(*seen))
    assert not torch.equal(*seen[0][:2])
