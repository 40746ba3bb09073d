"""The tools as a user calls them: from any folder, with MMDetection's arguments, and with paths that are wrong."""

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from mmengine.config import Config

from tests.builders import tiny_cfg, write_tiny_coco
from tests.scripts import run_script

ROOT = Path(__file__).parents[1]
TOOLS = ROOT / 'tools'
COCO_CONFIG = ROOT / 'configs' / 'embedmask_r50_1x_coco.py'


def run(command, cwd, **variables):
    environment = {**os.environ, 'PATH': f'{Path(sys.executable).parent}:{os.environ["PATH"]}', **variables}
    command = [str(part) for part in command]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)


def run_tool(name, *arguments, cwd):
    return run_script(TOOLS / name, arguments, cwd)


def run_tool_alone(name, *arguments, cwd):
    return run([sys.executable, TOOLS / name, *arguments], cwd)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """Train for one epoch with ``tools/train.py`` from a folder that is not the project's."""
    folder = tmp_path_factory.mktemp('elsewhere')
    cfg = tiny_cfg(write_tiny_coco(folder / 'data'), folder / 'unused')
    cfg.pop('work_dir')
    cfg.test_cfg = dict(type='TestLoop')
    cfg.dump(folder / 'tiny.py')
    result = run_tool_alone('train.py', 'tiny.py', '--cfg-options', 'model.test_cfg.score_thr=0.0', cwd=folder)
    assert result.returncode == 0, result.stderr[-3000:]
    return folder


def test_train_writes_to_work_dirs_of_the_calling_folder(trained):
    work_dir = trained / 'work_dirs' / 'tiny'
    assert (work_dir / 'epoch_1.pth').is_file()
    assert (work_dir / 'last_checkpoint').read_text().endswith('epoch_1.pth')
    assert 'score_thr=0.0' in (work_dir / 'tiny.py').read_text()


def test_test_reports_metrics_dumps_and_draws(trained):
    arguments = ('--work-dir', 'results', '--out', 'out.pkl', '--show-dir', 'drawn')
    options = ('--cfg-options', 'model.test_cfg.score_thr=0.0')
    result = run_tool_alone('test.py', 'tiny.py', 'work_dirs/tiny/epoch_1.pth', *arguments, *options, cwd=trained)
    assert result.returncode == 0, result.stderr[-3000:]
    (metrics,) = trained.glob('results/*/*.json')
    assert {'coco/bbox_mAP', 'coco/segm_mAP'} <= set(json.loads(metrics.read_text()))
    predictions = pickle.loads((trained / 'out.pkl').read_bytes())
    assert len(predictions) == 4
    assert len(list(trained.glob('results/*/drawn/*.png'))) == 4


def test_resume_goes_on_with_the_next_epoch(trained):
    arguments = ('--resume', 'work_dirs/tiny/epoch_1.pth', '--auto-scale-lr', '--work-dir', 'resumed')
    result = run_tool('train.py', 'tiny.py', *arguments, '--cfg-options', 'train_cfg.max_epochs=2', cwd=trained)
    assert result.returncode == 0, result.stderr[-3000:]
    assert torch.load(trained / 'resumed' / 'epoch_2.pth', weights_only=True)['meta']['epoch'] == 2
    assert not (trained / 'resumed' / 'epoch_1.pth').exists()


@pytest.mark.slow
def test_amp_trains_on_a_gpu_and_is_refused_by_mmengine_without(trained):
    result = run_tool_alone('train.py', 'tiny.py', '--amp', '--work-dir', 'amp', cwd=trained)
    if torch.cuda.is_available():
        assert result.returncode == 0, result.stderr[-3000:]
    else:
        assert 'is only available training on gpu' in result.stderr


@pytest.mark.slow
def test_test_time_augmentation_is_handed_on(trained):
    arguments = ('--tta', '--work-dir', 'tta', '--cfg-options', 'test_dataloader.dataset.indices=1')
    result = run_tool('test.py', 'tiny.py', 'work_dirs/tiny/epoch_1.pth', *arguments, cwd=trained)
    assert result.returncode == 0, result.stderr[-3000:]
    assert Config.fromfile(trained / 'tta' / 'tiny.py').model.module.type == 'EmbedMask'


@pytest.mark.slow
def test_two_processes_train_and_test(trained):
    train = ('tiny.py', '2', '--work-dir', 'dist')
    result = run(['bash', TOOLS / 'dist_train.sh', *train], trained, PORT='29641')
    assert result.returncode == 0, result.stderr[-3000:]
    test = ('tiny.py', 'dist/epoch_1.pth', '2', '--out', 'dist.pkl', '--work-dir', 'dist')
    result = run(['bash', TOOLS / 'dist_test.sh', *test], trained, PORT='29642')
    assert result.returncode == 0, result.stderr[-3000:]
    assert len(pickle.loads((trained / 'dist.pkl').read_bytes())) == 4


@pytest.mark.slow
def test_folders_with_spaces(trained):
    project = trained / 'my project'
    project.symlink_to(ROOT)
    shutil.copy(trained / 'tiny.py', trained / 'my tiny.py')
    train = ('my tiny.py', '1', '--work-dir', 'my work')
    result = run(['bash', project / 'tools/dist_train.sh', *train], trained, PORT='29644')
    assert result.returncode == 0, result.stderr[-3000:]
    test = ('my tiny.py', 'my work/epoch_1.pth', '2', '--out', 'my results/[a],b.json', '--work-dir', 'my work')
    options = ('--cfg-options', 'model.test_cfg.score_thr=0.0')
    result = run(['bash', project / 'tools/dist_test.sh', *test, *options], trained, PORT='29645')
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.count('wrote my results/[a],b.bbox.json and') == 1
    masks = json.loads((trained / 'my results/[a],b.segm.json').read_text())
    assert {result['image_id'] for result in masks} == {1, 2, 3, 4}
    assert all('bbox' not in result for result in masks)


@pytest.mark.slow
def test_two_nodes_train(trained):
    def command(rank):
        environment = {**os.environ, 'NNODES': '2', 'NODE_RANK': str(rank), 'PORT': '29643'}
        environment['PATH'] = f'{Path(sys.executable).parent}:{os.environ["PATH"]}'
        arguments = ['bash', str(TOOLS / 'dist_train.sh'), 'tiny.py', '1', '--work-dir', 'nodes']
        return subprocess.Popen(arguments, cwd=trained, env=environment, stdout=subprocess.DEVNULL)

    nodes = [command(rank) for rank in range(2)]
    assert [node.wait(300) for node in nodes] == [0, 0]
    (log,) = trained.glob('nodes/*/*.log')
    assert 'Distributed launcher: pytorch' in log.read_text()


def error_of(result):
    """Return what a failed tool said, which must be short."""
    assert result.returncode != 0
    assert 'Traceback' not in result.stderr
    return ' '.join(line for line in result.stderr.splitlines() if 'Warning' not in line)


@pytest.mark.parametrize('name', ['train.py', 'test.py'])
def test_no_arguments_print_the_usage(tmp_path, name):
    assert f'usage: {name}' in error_of(run_tool(name, cwd=tmp_path))


def test_wrong_config_is_named_with_the_nearest(tmp_path):
    error = error_of(run_tool('train.py', 'embedmask_r50_1x.py', cwd=tmp_path))
    assert 'the config embedmask_r50_1x.py does not exist' in error
    assert str(COCO_CONFIG) in error


def test_wrong_config_without_a_near_one_lists_all(tmp_path):
    assert str(COCO_CONFIG) in error_of(run_tool('train.py', 'zzz.py', cwd=tmp_path))


def test_wrong_checkpoint_is_named_with_those_there(tmp_path):
    (tmp_path / 'epoch_11.pth').touch()
    error = error_of(run_tool('test.py', COCO_CONFIG, 'epoch_12.pth', cwd=tmp_path))
    assert 'the checkpoint epoch_12.pth does not exist' in error
    assert 'epoch_11.pth' in error
    error = error_of(run_tool('train.py', COCO_CONFIG, '--resume', 'nowhere/epoch_12.pth', cwd=tmp_path))
    assert 'nor does the folder nowhere' in error


def test_data_that_do_not_fit_end_with_one_line(trained):
    error = error_of(run_tool('train.py', 'tiny.py', '--cfg-options', 'model.bbox_head.num_classes=80', cwd=trained))
    assert 'num_classes is 80' in error
    assert 'Set model.bbox_head.num_classes=2' in error


def test_missing_annotation_file_is_named(trained):
    options = ('--cfg-options', 'train_dataloader.dataset.ann_file=nowhere.json')
    error = error_of(run_tool('train.py', 'tiny.py', *options, cwd=trained))
    assert 'nowhere.json does not exist (working folder' in error


def test_missing_weights_to_start_from_are_named_once(trained):
    error = error_of(run_tool('train.py', 'tiny.py', '--cfg-options', 'load_from=nowhere.pth', cwd=trained))
    assert error.count('does not exist') == 1
    assert 'The checkpoint nowhere.pth does not exist' in error


def test_weights_that_cannot_be_downloaded_are_named(trained, monkeypatch):
    def fail(*args, **kwargs):
        raise URLError(OSError(-2, 'Name or service not known'))

    monkeypatch.setattr('mmengine.runner.checkpoint.load_url', fail)
    weights = 'open-mmlab://detectron/resnet50_caffe'
    backbone = dict(init_cfg=dict(_delete_=True, type='Pretrained', checkpoint=weights))
    (trained / 'pretrained.py').write_text(f"_base_ = './tiny.py'\nmodel = dict(backbone={backbone})\n")
    error = error_of(run_tool('train.py', 'pretrained.py', cwd=trained))
    assert f'The pretrained weights {weights} of model.backbone cannot be loaded' in error
    assert 'Name or service not known' in error
    assert re.search(r'Download https://\S+/resnet50_caffe-788b5fa3\.pth elsewhere', error)
    assert 'set model.backbone.init_cfg.checkpoint=FILE' in error
    error = error_of(run_tool('train.py', 'tiny.py', '--cfg-options', 'load_from=https://a.b/c.pth', cwd=trained))
    assert 'a checkpoint cannot be downloaded' in error and 'load_from' in error


def test_other_number_of_classes_ends_with_one_line(trained):
    checkpoint = trained / 'work_dirs' / 'tiny' / 'epoch_1.pth'
    options = ('--cfg-options', 'model.bbox_head.num_classes=5')
    message = r'was trained on 2 classes: disc, rectangle; this config has 5'
    assert message in error_of(run_tool('test.py', 'tiny.py', checkpoint, *options, cwd=trained))
    assert message in error_of(run_tool('train.py', 'tiny.py', '--resume', checkpoint, *options, cwd=trained))


def test_dataset_without_images_is_explained(trained):
    options = ('--cfg-options', 'train_dataloader.dataset.filter_cfg.min_size=1000')
    error = error_of(run_tool('train.py', 'tiny.py', *options, cwd=trained))
    assert 'a dataset of tiny.py has no images left' in error


def test_truncated_checkpoint_is_named(trained):
    whole = (trained / 'work_dirs' / 'tiny' / 'epoch_1.pth').read_bytes()
    (trained / 'cut.pth').write_bytes(whole[: len(whole) // 2])
    error = error_of(run_tool('test.py', 'tiny.py', 'cut.pth', cwd=trained))
    assert 'cut.pth is truncated' in error


@pytest.mark.parametrize(
    ('name', 'arguments', 'message'),
    [
        ('dist_train.sh', [], 'usage: dist_train.sh CONFIG GPUS'),
        ('dist_test.sh', [COCO_CONFIG, 'a.pth'], 'usage: dist_test.sh CONFIG CHECKPOINT GPUS'),
        ('dist_train.sh', [COCO_CONFIG, '--amp'], "GPUS must be a number of GPUs on this machine, not '--amp'"),
        ('dist_train.sh', ['zzz.py', 2], 'the config zzz.py does not exist'),
        ('dist_test.sh', [COCO_CONFIG, 'a.pth', 2], 'the checkpoint a.pth does not exist'),
    ],
)
def test_wrong_arguments_start_no_processes(tmp_path, name, arguments, message):
    assert message in error_of(run(['bash', TOOLS / name, *arguments], tmp_path))


def test_usage_says_which_python_is_used(tmp_path):
    result = run(['bash', TOOLS / 'dist_train.sh', '--help'], tmp_path)
    assert result.returncode == 0
    assert '.venv' in result.stdout


@pytest.fixture
def clone(tmp_path):
    """Return a folder with the tools alone; neither a .venv nor the package can be found from it."""
    shutil.copytree(TOOLS, tmp_path / 'clone' / 'tools', ignore=shutil.ignore_patterns('__pycache__'))
    return tmp_path / 'clone'


def run_bare(script, *arguments, path=''):
    """Run a script with a Python that has no packages but those in `path`."""
    # -S leaves out the folder of installed packages.
    return run([sys.executable, '-S', script, *arguments], script.parent, PYTHONPATH=str(path))


def write_venv(clone):
    """Write a .venv whose Python prints its arguments."""
    python = clone / '.venv' / 'bin' / 'python'
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho "in .venv: $*"\n')
    python.chmod(0o755)


@pytest.mark.parametrize('name', ['train.py', 'test.py'])
def test_python_without_mmdet_is_told_what_to_do(clone, name):
    error = error_of(run_bare(clone / 'tools' / name))
    assert error.startswith(f'{name}: error: {sys.executable} has no mmdet. Activate an environment')
    assert f'`make setup` in {clone}' in error


def test_python_without_this_package_is_told_how_to_install_it(clone):
    (clone / 'packages' / 'mmdet').mkdir(parents=True)
    error = error_of(run_bare(clone / 'tools/train.py', path=clone / 'packages'))
    assert f'{sys.executable} has no embedmask_mmdet. Install it there with' in error
    assert f'-m pip install -e {clone}`' in error


def test_python_without_mmdet_hands_over_to_the_environment_of_the_clone(clone):
    write_venv(clone)
    result = run_bare(clone / 'tools/train.py', 'config.py', '--amp')
    assert result.stdout == f'in .venv: {clone}/tools/train.py config.py --amp\n'
    assert 'has no mmdet; using' in result.stderr


def test_environment_script_prints_the_installed_tools_unless_a_package_is_missing(clone):
    printed = run([sys.executable, TOOLS / 'environment.py'], clone).stdout.strip()
    assert (Path(printed) / 'dist_train.sh').is_file()
    (clone / 'packages' / 'mmdet').mkdir(parents=True)
    result = run_bare(clone / 'tools/environment.py', path=clone / 'packages')
    assert (result.returncode, result.stdout) == (0, '')


def test_distributed_tools_without_a_fitting_python_say_what_to_do(clone):
    packages = clone / 'packages'
    packages.mkdir()
    (packages / 'python').write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    (packages / 'python').chmod(0o755)
    variables = dict(PATH=f'{packages}:{os.environ["PATH"]}', PYTHONPATH='')
    result = run(['bash', clone / 'tools/dist_train.sh', 'config.py', 2], clone, **variables)
    error = error_of(result)
    assert 'no python with mmdet and embedmask_mmdet. Activate the environment that has them' in error
    assert f"'make setup' in {clone}" in error


def test_make_lists_its_targets():
    result = run(['make'], ROOT)
    targets = 'setup demo test test-slow test-onedl test-slow-onedl gpu-check lint format clean'
    for target in targets.split():
        assert f'make {target} ' in result.stdout
