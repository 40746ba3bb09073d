"""The wheel and the sdist, installed away from the repository, and the command ``embedmask``."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from contextlib import nullcontext
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from mmdet.apis import DetInferencer
from mmengine.config import Config

from embedmask_mmdet import __version__
from embedmask_mmdet.cli import doctor
from embedmask_mmdet.cli.main import COMMANDS
from embedmask_mmdet.locations import CHECKPOINTS
from tests.scripts import run_script

ROOT = Path(__file__).parents[1]
CLI = ROOT / 'embedmask_mmdet' / 'cli' / 'main.py'


def run(*command, cwd, **variables):
    environment = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
    command = [str(part) for part in command]
    return subprocess.run(command, cwd=cwd, env={**environment, **variables}, capture_output=True, text=True)


def copy_sources(folder):
    """Copy what git has, as a clone would; nothing that was built."""
    files = run('git', 'ls-files', '--cached', '--others', '--exclude-standard', cwd=ROOT).stdout.split('\n')
    for name in filter(None, files):
        if (ROOT / name).is_file() and not name.startswith(('tests/', 'docs/')):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    """Build a wheel from an sdist, where there is no compiler."""
    folder = tmp_path_factory.mktemp('package')
    sources = copy_sources(folder / 'clone')
    build = 'from setuptools import build_meta as b; import sys; print(b.build_sdist(sys.argv[1]))'
    made = run(sys.executable, '-c', build, folder, cwd=sources)
    assert made.returncode == 0, made.stderr[-2000:]
    with tarfile.open(folder / f'embedmask_mmdet-{__version__}.tar.gz') as archive:
        archive.extractall(folder / 'sdist', filter='data')
    (unpacked,) = (folder / 'sdist').iterdir()
    build = build.replace('build_sdist', 'build_wheel')
    made = run(sys.executable, '-c', build, folder, cwd=unpacked, CXX='/nonexistent/c++')
    assert made.returncode == 0, made.stderr[-2000:]
    (path,) = folder.glob('*.whl')
    return path, made


@pytest.fixture(scope='module')
def installed(wheel, tmp_path_factory):
    folder = tmp_path_factory.mktemp('installed')
    zipfile.ZipFile(wheel[0]).extractall(folder)
    return folder


def test_wheel_is_built_without_a_compiler_and_says_so(wheel):
    path, made = wheel
    assert 'kernels of embedmask_mmdet are not built' in made.stderr and 'plain PyTorch' in made.stderr
    names = zipfile.ZipFile(path).namelist()
    assert not any(name.endswith('.so') for name in names)
    assert 'embedmask_mmdet/checkpoints/embedmask-plus_r18_nuclei.pth' in names
    configs = {name.rpartition('/')[2] for name in names if '/.mim/configs/embedmask/' in name}
    assert configs >= {file.name for file in (ROOT / 'configs').glob('*.py')} | {'metafile.yml', 'embedmask-plus.py'}
    assert {f'embedmask_mmdet/.mim/{script}' for script, _ in COMMANDS.values()} <= set(names)


def test_missing_kernels_are_an_error_on_request(tmp_path):
    sources = copy_sources(tmp_path / 'clone')
    variables = dict(CXX='/nonexistent/c++', EMBEDMASK_REQUIRE_KERNELS='1')
    made = run(sys.executable, 'setup.py', 'build_ext', cwd=sources, **variables)
    assert made.returncode == 1 and made.stderr.splitlines()[-1].startswith('The kernels of embedmask_mmdet are not')


def test_installed_package_works_away_from_the_repository(installed, tmp_path):
    (tmp_path / 'mine.py').write_text("_base_ = 'embedmask_mmdet::embedmask/embedmask-plus_r18_nuclei.py'\n")
    (tmp_path / 'use.py').write_text(
        'import embedmask_mmdet\n'
        'from mmengine.config import Config\n'
        'from mmdet.apis import DetInferencer\n'
        "print('base', Config.fromfile('mine.py').model.type)\n"
        "print('model', DetInferencer('embedmask_r18_nuclei', device='cpu').cfg.filename)\n"
        "from embedmask_mmdet.cli.launch import find_config\nprint('config', find_config('embedmask_r50_1x_coco'))\n"
    )
    used = run(sys.executable, 'use.py', cwd=tmp_path, PYTHONPATH=str(installed))
    assert used.returncode == 0, used.stderr[-2000:]
    printed = dict(
        line.split(' ', 1) for line in used.stdout.splitlines() if line.startswith(('base', 'model', 'conf'))
    )
    configs = installed / 'embedmask_mmdet' / '.mim' / 'configs' / 'embedmask'
    assert printed == {
        'base': 'EmbedMask',
        'model': str(configs / 'embedmask_r18_nuclei.py'),
        'config': str(configs / 'embedmask_r50_1x_coco.py'),
    }


def test_doctor_of_an_installed_package_names_the_missing_kernels(installed, tmp_path):
    # The environment of the tests has the kernels of an editable install.
    forget = "import sys; sys.meta_path[:] = [finder for finder in sys.meta_path if 'ditable' not in repr(finder)]"
    command = f'{forget}; from embedmask_mmdet.cli.main import main; main()'
    found = run(sys.executable, '-c', command, 'doctor', cwd=tmp_path, PYTHONPATH=str(installed))
    assert found.returncode == 0, found.stdout + found.stderr
    assert f'embedmask_mmdet {__version__} of {installed}' in found.stdout
    assert 'warning no kernels of embedmask_mmdet' in found.stdout
    assert '-m pip install --force-reinstall' in found.stdout


def test_editable_install_links_configs_and_tools(tmp_path):
    sources = copy_sources(tmp_path / 'clone')
    build = 'from setuptools import build_meta as b; import sys; b.build_editable(sys.argv[1])'
    made = run(sys.executable, '-c', build, tmp_path, cwd=sources, CXX='/nonexistent/c++')
    assert made.returncode == 0, made.stderr[-2000:]
    mim = sources / 'embedmask_mmdet' / '.mim'
    assert (mim / 'configs' / 'embedmask').resolve() == sources / 'configs'
    assert (mim / 'tools' / 'train.py').resolve() == sources / 'tools' / 'train.py'


def test_metafile_has_all_configs_with_the_figures_of_the_readme():
    models = yaml.safe_load((ROOT / 'configs' / 'metafile.yml').read_text())['Models']
    assert sorted(model['Name'] for model in models) == sorted(file.stem for file in (ROOT / 'configs').glob('*.py'))
    lines = (ROOT / 'configs' / 'README.md').read_text().splitlines()
    for model in models:
        name, metadata = f'{model["Name"]}.py', model['Metadata']
        assert model['Config'] == f'configs/embedmask/{name}'
        figures = f'| {metadata["Parameters (M)"]} | {metadata["GFLOPs"]} |'
        assert any(f']({name})' in line and figures in line for line in lines), name
        loop = Config.fromfile(ROOT / 'configs' / name, import_custom_modules=False).train_cfg
        assert (metadata.get('Epochs'), metadata.get('Iterations')) == (loop.get('max_epochs'), loop.get('max_iters'))


@pytest.mark.parametrize(
    ('arguments', 'code', 'message'),
    [
        ([], 2, 'usage: embedmask COMMAND'),
        (['--help'], 0, 'check this installation'),
        (['--version'], 0, f'embedmask_mmdet {__version__}'),
        (['traim'], 1, 'embedmask: error: there is no command traim. Did you mean train?'),
        (['wat'], 1, 'there is no command wat. Commands: train, test, predict'),
        (['check-data', 'embedmask-pluss_r18_nuclei'], 1, 'embedmask check-data: error: the config embedmask-pluss'),
        (['get-flops', '--help'], 0, 'usage: embedmask get-flops'),
    ],
)
def test_command(arguments, code, message, tmp_path):
    result = run_script(CLI, arguments, tmp_path)
    assert (result.code, message in result.stdout + result.stderr) == (code, True), result
    assert 'Traceback' not in result.stderr


def test_command_takes_the_name_of_a_shipped_config(tmp_path):
    result = run_script(CLI, ['get-flops', 'embedmask_r18_nuclei', '--shape', '64', '64'], tmp_path)
    assert result.code == 0 and '| embedmask_r18_nuclei.py | 1.1 |' in result.stdout, result


def test_readme_lists_the_commands():
    table = (ROOT / 'README.md').read_text().partition('## Commands')[2].partition('## Read on')[0]
    listed = {
        name for row in re.findall(r'^\| `embedmask ([^|]+)\|', table, re.M) for name in re.findall(r'[a-z-]+', row)
    }
    assert listed == set(COMMANDS)


@pytest.mark.parametrize('command', COMMANDS)
def test_every_command_has_a_script(command):
    assert (ROOT / COMMANDS[command][0]).is_file()


def draw_disks(size=512, radius=10):
    image = np.full((size, size, 3), 12, np.uint8)
    centers = [(x, y) for y in range(40, size, 64) for x in range(40, size, 64)]
    for center in centers:
        cv2.circle(image, center, radius, (150, 150, 150), -1)
    return cv2.GaussianBlur(image, (5, 5), 0), centers


def test_shipped_model_finds_bright_disks():
    image, centers = draw_disks()
    found = DetInferencer('embedmask-plus_r18_nuclei', device='cpu')(image, return_datasamples=True)
    found = found['predictions'][0].pred_instances
    masks = found.masks[found.scores > 0.3].numpy()
    assert len(masks) == len(centers)
    assert all(masks[:, y, x].sum() == 1 for x, y in centers)


@pytest.mark.parametrize('precision', ['half', 'bfloat16'])
@pytest.mark.parametrize('how', ['weights', 'autocast'])
def test_half_precision_finds_the_same(precision, how):
    image = draw_disks()[0][:128]
    inferencer = DetInferencer('embedmask-plus_r18_nuclei', device='cpu')

    def detect(context=None):
        with context or nullcontext():
            found = inferencer(image, return_datasamples=True)['predictions'][0].pred_instances
        return found[found.scores > 0.3]

    expected = detect()
    if how == 'weights':
        getattr(inferencer.model, precision)()
        found = detect()
    else:
        found = detect(torch.autocast('cpu', getattr(torch, precision)))
    overlaps = (expected.masks[:, None] & found.masks).sum(dim=(2, 3)) / (expected.masks[:, None] | found.masks).sum(
        dim=(2, 3)
    )
    ious, matches = overlaps.max(dim=1)
    assert len(found) == len(expected) and len(set(matches.tolist())) == len(expected)
    assert ious.min() > 0.95
    assert (expected.scores - found.scores[matches]).abs().max() < 0.01
    assert (expected.bboxes - found.bboxes[matches]).abs().max() < 1


def test_published_checkpoint_has_the_weights_as_float16(tmp_path):
    src, dst = tmp_path / 'float32.pth', tmp_path / 'small.pth'
    shipped = torch.load(CHECKPOINTS / 'embedmask-plus_r18_nuclei.pth')
    state = {
        name: value.float() if value.is_floating_point() else value for name, value in shipped['state_dict'].items()
    }
    torch.save({'meta': shipped['meta'], 'state_dict': state, 'optimizer': {'state': torch.zeros(10**6)}}, src)
    result = run_script(CLI, ['publish', str(src), str(dst)], tmp_path)
    assert result.code == 0 and result.stdout.endswith(f'wrote {dst}, 2.2 MB of 8.4 MB\n'), result
    published = torch.load(dst)
    assert published.keys() == {'meta', 'state_dict'} and published['meta']['dataset_meta']['classes'] == ('nucleus',)
    assert all(torch.equal(value, shipped['state_dict'][name]) for name, value in published['state_dict'].items())
    again = run_script(CLI, ['publish', str(src), str(dst)], tmp_path)
    assert again.code == 1 and 'exists. Remove it' in again.stderr


def test_weights_too_large_for_float16_are_named(tmp_path):
    torch.save({'state_dict': {'conv.weight': torch.tensor([1e6])}}, tmp_path / 'large.pth')
    result = run_script(CLI, ['publish', 'large.pth', 'small.pth'], tmp_path)
    assert result.code == 1 and 'error: conv.weight has values that are too large for float16' in result.stderr
    assert not (tmp_path / 'small.pth').exists()


@pytest.mark.parametrize(
    ('missing', 'message', 'advice'),
    [
        ('mmcv.ops', 'error   the operators of mmcv cannot be used', 'build_mmcv.py'),
        ('mmdet', 'error   mmdet: no such module', "pip install 'embedmask-mmdet[mmdet]'"),
        ('mmcv', 'error   mmcv: no such module', 'mmcv==2'),
        ('embedmask_mmdet.ops.kernels', 'warning no kernels of embedmask_mmdet', '-m pip install -e'),
        ('distutils.errors', 'error   distutils is missing', "pip install 'setuptools<81'"),
        ('torch', 'error   torch: no such module', 'Only ONNX files can be run.'),
    ],
)
def test_doctor_advises(missing, message, advice, monkeypatch):
    monkeypatch.setattr(
        doctor,
        'try_import',
        lambda module, real=doctor.try_import: (None, 'no such module') if module == missing else real(module),
    )
    findings = [str(finding) for finding in doctor.check_installation()]
    (found,) = [finding for finding in findings if finding.startswith(message)]
    assert advice in found


def test_doctor_sees_two_packages_of_one_module(monkeypatch):
    monkeypatch.setattr(doctor.importlib.metadata, 'version', lambda name: '1')
    findings = [str(finding) for finding in doctor.check_openmmlab()]
    assert any('mmdet comes from 2 packages: mmdet, onedl-mmdetection' in finding for finding in findings)
