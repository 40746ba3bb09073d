"""The set-up program: what it installs, what it repeats, and what it says when it cannot go on."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = 'official' if sys.version_info < (3, 13) else 'onedl'
# Stand-ins that write down what they are asked to do. The file `uv-fails` holds which calls fail, and how.
UV = """
echo "$*" >> {root}/calls
if [ -e {root}/uv-fails ]; then . {root}/uv-fails; fi
if [ "$1" = venv ]; then for folder; do :; done; mkdir -p $folder/bin; cp {root}/bin/new-python $folder/bin/python; fi
"""
NEW_PYTHON = """
case "$*" in
    *'import pip'*) echo '{version}';;
    *build_mmcv.py*) echo "$*" >> {root}/calls; echo /wheels/mmcv.whl;;
    *'-c import torch') exit 1;;
esac
"""


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / 'tools' / 'env' / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Project:
    """A copy of what the set-up reads, on a machine that has only what `add_program` puts on PATH."""

    def __init__(self, root):
        self.root = root
        (root / 'bin').mkdir()
        for folder in ('tools/env', 'requirements'):
            shutil.copytree(ROOT / folder, root / folder)
        for tool in ('cp', 'mkdir'):
            (root / 'bin' / tool).symlink_to(shutil.which(tool))
        self.add_program('c++', '')
        self.add_program('uv', UV.format(root=root))
        self.add_program('new-python', NEW_PYTHON.format(root=root, version=sys.version_info[:2]))

    def add_program(self, name, script):
        path = self.root / 'bin' / name
        path.write_text(f'#!/bin/sh\n{script}\n')
        path.chmod(0o755)

    def set_up(self, **variables):
        """Run the program; return its exit code, output, messages, and what it had done by others."""
        (self.root / 'calls').write_text('')
        command = [sys.executable, self.root / 'tools/env/setup_env.py']
        variables = {'PATH': f'{self.root}/bin', 'CUDA_HOME': str(self.root), **variables}
        result = subprocess.run(command, env=variables, capture_output=True, text=True)
        return result.returncode, result.stdout, result.stderr, (self.root / 'calls').read_text()


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


def test_second_run_does_nothing_until_requirements_change(project):
    code, output, _, calls = project.set_up()
    assert (code, output) == (0, f'{project.root}/.venv/bin/python\n')
    assert f'-r {project.root}/requirements/{OURS}.txt' in calls
    assert project.set_up() == (0, output, '', '')
    (project.root / 'requirements/test.txt').write_text('pytest\n')
    assert 'requirements/test.txt' in project.set_up()[3]


@pytest.mark.parametrize(
    ('output', 'message'),
    [
        ('OSError: [Errno 28] No space left on device', 'The disk is full'),
        ("NewConnectionError('...') ERROR: No matching distribution found for scipy", 'cannot be reached'),
        ('ERROR: No matching distribution found for scipy', 'no package that fits'),
    ],
)
def test_failure_is_explained_and_the_next_run_continues(project, output, message):
    (project.root / 'uv-fails').write_text(f'case "$*" in *runtime.txt*) echo "{output}"; exit 1;; esac')
    code, stdout, stderr, _ = project.set_up()
    assert (code, stdout) == (1, '')
    assert 'The set-up failed. The ' in stderr and message in stderr
    assert f'\n  | {output}\n' in stderr
    (project.root / 'uv-fails').unlink()
    code, _, _, calls = project.set_up()
    assert code == 0 and 'venv' not in calls.split()


@pytest.mark.skipif(sys.platform != 'linux', reason='elsewhere the only build of torch has no CUDA')
def test_ordinary_torch_is_taken_if_there_is_none_without_cuda(project):
    (project.root / 'uv-fails').write_text('case "$*" in *+cpu*) echo "have conflicting dependencies"; exit 1;; esac')
    code, _, stderr, calls = project.set_up()
    assert code == 0 and 'torch==2.13.0+cpu' in calls and 'torch==2.13.0 numpy' in calls
    assert 'No index has torch without CUDA' in stderr


@pytest.mark.parametrize(('stack', 'mmcv'), [('official', ' mmcv==2.1.0'), ('onedl', ' onedl-mmcv==2.3.6')])
@pytest.mark.skipif(OURS == 'onedl', reason='one stack does not run on this Python')
def test_stack_can_be_chosen(project, stack, mmcv):
    code, output, _, calls = project.set_up(STACK=stack)
    assert (code, output) == (0, f'{project.root}/.venv-{stack}/bin/python\n')
    assert f'build_mmcv.py{mmcv}\n' in calls and f'requirements/{stack}.txt' in calls
    assert 'STACK=other is unknown. Use one of: official, onedl' in project.set_up(STACK='other')[2]


def test_missing_compilers_are_said_before_anything_is_installed(project):
    project.add_program('nvidia-smi', 'echo "GPU 0: NVIDIA H200 (UUID: GPU-1)"')
    code, _, stderr, calls = project.set_up()
    assert (code, calls) == (1, '') and 'no nvcc to build mmcv' in stderr and 'CUDA_VISIBLE_DEVICES=-1' in stderr
    code, _, stderr, calls = project.set_up(CXX='clang++ -O2', CUDA_VISIBLE_DEVICES='-1')
    assert (code, calls) == (1, '') and "no 'clang++' on PATH" in stderr and 'apt install g++' in stderr


def test_unfit_python_and_full_disk_are_said(monkeypatch):
    setup_env = load('setup_env')
    monkeypatch.setattr(shutil, 'which', lambda *args, **kwargs: '/usr/bin/c++')
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: shutil._ntuple_diskusage(2**40, 2**40, 2**30))
    with pytest.raises(setup_env.SetupError, match=r'1\.0 GiB left.*needs 4 GiB'):
        setup_env.check_machine('onedl', 'cpu')
    monkeypatch.setattr(setup_env, 'find_spec', lambda name: None)
    with pytest.raises(setup_env.SetupError, match=r'lacks its headers or the venv module.*apt install python3'):
        setup_env.check_machine('onedl', 'cpu')
    monkeypatch.setattr(sys, 'version_info', (3, 13, 0))
    with pytest.raises(setup_env.SetupError, match=r'Python 3\.10 to 3\.12 is needed, and .* is 3\.13'):
        setup_env.check_machine('official', 'cpu')


def test_python_with_mmdet_is_used_and_gets_the_project(project):
    answer = f'echo "$*" >> {project.root}/calls; echo '
    project.add_program('python', f'{answer} {project.root}/embedmask_mmdet')
    code, output, stderr, calls = project.set_up()
    assert (code, output, stderr) == (0, f'{project.root}/bin/python\n', '') and '-m pip' not in calls
    project.add_program('python', f'{answer} /elsewhere/embedmask_mmdet')
    assert f'uses embedmask_mmdet of /elsewhere, not of {project.root}' in project.set_up()[2]
    project.add_program('python', f'{answer} missing')
    code, output, stderr, calls = project.set_up()
    assert (code, output) == (0, f'{project.root}/bin/python\n') and 'has mmdet, but not this project' in stderr
    assert f'-m pip install --no-input --no-deps --no-build-isolation -e {project.root}\n' in calls


def test_python_whose_mmdet_does_not_work_is_not_used(project):
    project.add_program('python', 'echo "No module named mmcv._ext" >&2; exit 1')
    code, output, stderr, _ = project.set_up()
    assert (code, output) == (0, f'{project.root}/.venv/bin/python\n')
    assert 'does not work (No module named mmcv._ext), so .venv is used instead' in stderr


def test_mmcv_sources_become_two_units(tmp_path):
    (tmp_path / 'cpu').mkdir()
    for name in ('pybind', 'nms', 'cpu/nms', 'cpu/psamask', 'cpu/bezier_align', 'cpu/roi_align'):
        (tmp_path / f'{name}.cpp').touch()
    load('build_mmcv').group_sources(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob('*.cpp')) == ['pybind.cpp', 'unit.cpp']
    lines = (tmp_path / 'unit.cpp').read_text().splitlines()
    included = [Path(line.split('"')[1]) for line in lines if line.startswith('#include "/')]
    assert [path.stem for path in included] == ['bezier_align', 'nms', 'roi_align', 'nms', 'psamask']
    assert all(path.exists() for path in included)
    start, end = lines.index('#define PreCalc bezier_align_PreCalc'), lines.index('#undef PreCalc')
    assert start < lines.index(f'#include "{included[0]}"') < end


@pytest.mark.parametrize('has_gpu', [False, True], ids=['quick build fails', 'gpu'])
def test_mmcv_is_built_as_it_is_otherwise_and_kept(tmp_path, monkeypatch, has_gpu):
    build_mmcv, commands = load('build_mmcv'), []

    def run_pip(command, *arguments):
        commands.append(command)
        if command == 'download':
            raise subprocess.CalledProcessError(1, 'pip')
        Path(arguments[-2].removeprefix('--wheel-dir='), 'mmcv.whl').touch()

    monkeypatch.setattr(build_mmcv, 'CACHE', tmp_path)
    monkeypatch.setattr(build_mmcv, 'run_pip', run_pip)
    monkeypatch.setattr('torch.cuda.is_available', lambda: has_gpu)
    wheel = build_mmcv.find_or_build_wheel('mmcv==2.1.0')
    assert wheel.exists() and build_mmcv.find_or_build_wheel('mmcv==2.1.0') == wheel
    assert commands == (['wheel'] if has_gpu else ['download', 'wheel'])


@pytest.mark.slow
def test_fresh_clone_is_set_up(tmp_path):
    """About 2 minutes on 2 cores, and a network: torch, mmcv's operators and all else from nothing."""
    clone = tmp_path / 'clone'
    subprocess.run(['git', 'clone', '--quiet', ROOT, clone], check=True)
    (tmp_path / 'bin').mkdir()
    (tmp_path / 'bin' / 'python3').symlink_to(Path(sys.base_prefix, 'bin', f'python3.{sys.version_info.minor}'))
    # A new cache, so that mmcv is compiled; pip's own stays, as its settings are the user's.
    variables = {**os.environ, 'PATH': f'{tmp_path}/bin:/usr/bin:/bin', 'XDG_CACHE_HOME': str(tmp_path / 'cache')}
    for name in ('PYTHONPATH', 'STACK'):
        variables.pop(name, None)
    for _ in range(2):
        result = subprocess.run(['make', 'setup'], cwd=clone, env=variables, capture_output=True, text=True)
        assert (result.returncode, result.stdout) == (0, f'{clone}/.venv/bin/python\n'), result.stderr
    assert result.stderr == ''
    python = result.stdout.strip()
    listed = subprocess.run([python, '-m', 'pip', 'list'], capture_output=True, text=True, check=True).stdout
    assert [line.split()[0] for line in listed.splitlines() if 'opencv' in line] == ['opencv-python-headless']
    code = 'import cv2, embedmask_mmdet._ext, mmcv.ops, torch; mmcv.ops.nms(torch.rand(3, 4), torch.rand(3), 0.5)'
    subprocess.run([python, '-c', code], check=True, cwd='/')
