"""The set-up program: what it finds, what it repeats, and what it says when it cannot go on."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROGRAM = ROOT / 'tools' / 'env' / 'setup_env.py'


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / 'tools' / 'env' / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def setup_env(tmp_path, monkeypatch):
    module = load('setup_env')
    monkeypatch.setattr(module, 'ROOT', tmp_path)
    monkeypatch.setattr(module, 'LOG_DIR', tmp_path / 'logs')
    monkeypatch.setattr(module, 'VENV', tmp_path / '.venv')
    monkeypatch.setattr(module, 'VENV_PYTHON', tmp_path / '.venv/bin/python')
    monkeypatch.setattr(module, 'STATE_FILE', tmp_path / '.venv/setup.json')
    return module


@pytest.fixture
def fake_bin(tmp_path, monkeypatch):
    """Return a function that puts a program on PATH, where nothing else is."""
    folder = tmp_path / 'bin'
    folder.mkdir()
    monkeypatch.setenv('PATH', str(folder))
    for name in ('VIRTUAL_ENV', 'CONDA_PREFIX', 'CXX', 'CUDA_HOME', 'CUDA_PATH', 'CUDA_VISIBLE_DEVICES'):
        monkeypatch.delenv(name, raising=False)

    def add(name, script):
        (folder / name).write_text(f'#!/bin/sh\n{script}\n')
        (folder / name).chmod(0o755)
        return str(folder / name)

    return add


def record_steps(module, monkeypatch, failing=()):
    """Replace what the steps do by a note that they were done."""
    calls = []
    monkeypatch.setattr(module, 'check_machine', lambda kind: None)
    monkeypatch.setattr(module, 'has_gpu', lambda: False)
    for name in ('make_environment', 'install_torch', 'install_libraries', 'install_project', 'check'):

        def step(self, name=name):
            """Do nothing."""
            calls.append(name)
            if name in failing:
                raise module.SetupError('the network went away')
            if name == 'make_environment':
                module.VENV_PYTHON.parent.mkdir(parents=True, exist_ok=True)
                if not module.VENV_PYTHON.exists():
                    module.VENV_PYTHON.symlink_to(sys.executable)

        monkeypatch.setattr(module.Setup, name, step)
    return calls


def test_second_run_does_nothing(setup_env, monkeypatch):
    calls = record_steps(setup_env, monkeypatch)
    setup_env.Setup().run()
    assert calls == ['make_environment', 'install_torch', 'install_libraries', 'install_project', 'check']
    calls.clear()
    setup_env.Setup().run()
    assert calls == []


def test_goes_on_where_it_stopped(setup_env, monkeypatch):
    record_steps(setup_env, monkeypatch, failing=['install_libraries'])
    with pytest.raises(setup_env.SetupError, match='network'):
        setup_env.Setup().run()
    calls = record_steps(setup_env, monkeypatch)
    setup_env.Setup().run()
    assert calls == ['install_libraries', 'install_project', 'check']


def test_changed_requirements_are_installed(setup_env, monkeypatch, tmp_path):
    requirements = tmp_path / 'requirements'
    shutil.copytree(ROOT / 'requirements', requirements)
    monkeypatch.setattr(setup_env, 'REQUIREMENTS', requirements)
    calls = record_steps(setup_env, monkeypatch)
    setup_env.Setup().run()
    calls.clear()
    (requirements / 'test.txt').write_text('pytest\n')
    setup_env.Setup().run()
    assert calls == ['install_libraries', 'install_project', 'check']


def test_environment_whose_python_is_gone_is_made_anew(setup_env, monkeypatch):
    calls = record_steps(setup_env, monkeypatch)
    setup_env.Setup().run()
    setup_env.VENV_PYTHON.unlink()
    calls.clear()
    setup_env.Setup().run()
    assert calls[0] == 'make_environment'


def test_state_that_is_no_json_counts_as_nothing_done(setup_env, monkeypatch):
    record_steps(setup_env, monkeypatch)
    setup_env.Setup().run()
    setup_env.STATE_FILE.write_text('{"done": ')
    assert setup_env.Setup().missing_steps()[0] == 'environment'


def test_gpu_that_is_busy_later_does_not_change_the_environment(setup_env, monkeypatch):
    record_steps(setup_env, monkeypatch)
    monkeypatch.setattr(setup_env, 'has_gpu', lambda: True)
    setup_env.Setup().run()
    monkeypatch.setattr(setup_env, 'has_gpu', lambda: False)
    assert setup_env.Setup().missing_steps() == []
    assert json.loads(setup_env.STATE_FILE.read_text())['kind'] == 'gpu'


@pytest.mark.parametrize('variable', ['VIRTUAL_ENV', 'CONDA_PREFIX', None])
def test_active_environment_with_mmdet_is_used(setup_env, fake_bin, monkeypatch, tmp_path, variable):
    python = fake_bin('python' if variable else 'python3', 'exit 0')
    if variable:
        monkeypatch.setenv(variable, str(tmp_path))
    assert setup_env.find_ready_python() == python


@pytest.fixture
def run_main(setup_env, fake_bin, monkeypatch):
    """Return a function that runs `main` where python3 has mmdet; `find_project` and `pip` are what it does then."""
    monkeypatch.setattr(sys, 'argv', ['setup_env.py'])

    def run_main(find_project, pip='exit 0'):
        cases = (
            f'*find_spec*embedmask_mmdet*) {find_project};; *"-m pip"*) echo "$*" >> {setup_env.ROOT}/pip.log; {pip};;'
        )
        fake_bin('python3', f'case "$*" in {cases} esac; exit 0')
        code = setup_env.main()
        log = setup_env.ROOT / 'pip.log'
        return code, log.read_text() if log.exists() else ''

    return run_main


def test_project_is_installed_in_an_active_environment_without_its_dependencies(setup_env, run_main, capsys):
    code, pip_arguments = run_main(find_project='exit 1')
    options = '-m pip install --disable-pip-version-check --no-input --no-deps --no-build-isolation -e'
    assert (code, pip_arguments) == (0, f'{options} {setup_env.ROOT}\n')
    captured = capsys.readouterr()
    assert captured.out == f'{setup_env.ROOT}/bin/python3\n'
    assert 'has mmdet, but not this project. Installing it there' in captured.err


def test_project_that_is_installed_already_is_left_alone(setup_env, run_main, capsys):
    assert run_main(find_project=f'echo {setup_env.ROOT}/embedmask_mmdet') == (0, '')
    assert capsys.readouterr().err == ''


def test_another_copy_of_the_project_is_named_and_left_alone(setup_env, run_main, capsys):
    assert run_main(find_project='echo /elsewhere/embedmask_mmdet') == (0, '')
    assert f'uses embedmask_mmdet of /elsewhere, not of {setup_env.ROOT}' in capsys.readouterr().err


def test_project_that_cannot_be_installed_ends_the_set_up(run_main, capsys):
    code, _ = run_main(find_project='exit 1', pip='echo "error: externally-managed-environment" >&2; exit 1')
    captured = capsys.readouterr()
    assert (code, captured.out) == (1, '')
    assert 'could not be installed in the active environment. Run the command above' in captured.err
    assert '| error: externally-managed-environment' in captured.err


def test_environment_whose_mmdet_is_broken_is_not_used(setup_env, fake_bin, capsys):
    fake_bin('python3', 'case "$2" in *find_spec*) exit 0;; esac; echo "No module named mmcv._ext" >&2; exit 1')
    assert setup_env.find_ready_python() is None
    assert 'No module named mmcv._ext' in capsys.readouterr().err


def test_environment_without_mmdet_is_not_used(setup_env, fake_bin, capsys):
    fake_bin('python3', 'exit 1')
    assert setup_env.find_ready_python() is None
    assert capsys.readouterr().err == ''


def test_fitting_python_is_looked_for_on_path(setup_env, fake_bin, monkeypatch):
    monkeypatch.setattr(sys, 'executable', fake_bin('python3', 'echo 3.9; echo fit'))
    fake_bin('python3.11', 'exit 127')
    fitting = fake_bin('python3.12', 'echo 3.12; echo fit')
    assert setup_env.find_base_python() == fitting


def test_pythons_that_do_not_fit_are_named(setup_env, fake_bin, monkeypatch):
    monkeypatch.setattr(sys, 'executable', fake_bin('python3', 'echo 3.14; echo fit'))
    fake_bin('python3.11', 'echo 3.11; echo "ImportError: Python.h" >&2')
    fake_bin('python3.10', 'echo 3.10; echo "No module named ensurepip" >&2')
    with pytest.raises(setup_env.SetupError) as error:
        setup_env.find_base_python()
    lines = str(error.value).splitlines()
    assert [line.split('/')[-1][:26] for line in lines[1:]] == [
        'python3 is Python 3.14',
        'python3.11 lacks its heade',
        'python3.10 lacks the venv ',
    ]


@pytest.mark.parametrize(
    ('variables', 'output', 'expected'),
    [
        ({}, 'echo "GPU 0: NVIDIA H200 (UUID: GPU-1)"', True),
        ({'CUDA_VISIBLE_DEVICES': '0'}, 'echo "GPU 0: NVIDIA H200 (UUID: GPU-1)"', True),
        ({'CUDA_VISIBLE_DEVICES': ''}, 'echo "GPU 0: NVIDIA H200 (UUID: GPU-1)"', False),
        ({'CUDA_VISIBLE_DEVICES': '-1'}, 'echo "GPU 0: NVIDIA H200 (UUID: GPU-1)"', False),
        ({}, 'echo "No devices were found"', False),
        ({}, 'echo "NVIDIA-SMI has failed"; exit 9', False),
    ],
)
def test_gpu_is_found(setup_env, fake_bin, monkeypatch, variables, output, expected):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    fake_bin('nvidia-smi', output)
    assert setup_env.has_gpu() is expected


def test_machine_without_nvidia_tools_has_no_gpu(setup_env, fake_bin):
    assert setup_env.has_gpu() is False


def test_missing_compiler_is_said_before_anything_is_fetched(setup_env, fake_bin):
    with pytest.raises(setup_env.SetupError, match=r'C\+\+ compiler.*apt install g\+\+'):
        setup_env.check_machine('cpu')


def test_gpu_without_nvcc_is_said(setup_env, fake_bin, monkeypatch):
    fake_bin('c++', '')
    monkeypatch.setattr(setup_env, 'find_nvcc', lambda: None)
    with pytest.raises(setup_env.SetupError, match='nvcc.*CUDA_HOME.*CUDA_VISIBLE_DEVICES=-1'):
        setup_env.check_machine('gpu')


def test_full_disk_is_said(setup_env, fake_bin, monkeypatch):
    fake_bin('c++', '')
    monkeypatch.setattr(setup_env.shutil, 'disk_usage', lambda path: shutil._ntuple_diskusage(2**40, 2**40, 2**30))
    with pytest.raises(setup_env.SetupError, match=r'1\.0 GiB left.*needs 4 GiB'):
        setup_env.check_machine('cpu')


@pytest.mark.parametrize(
    ('log', 'advice'),
    [
        ('OSError: [Errno 28] No space left on device', 'disk is full'),
        ("NewConnectionError('...')\nERROR: No matching distribution found for torch", 'could not reach'),
        ('ERROR: No matching distribution found for torch==2.13.0', 'no package that fits'),
        ('x.cpp:1: fatal error: Python.h: No such file or directory', 'python3-dev'),
        ('g++: fatal error: Killed signal terminated program cc1plus', 'memory'),
        ('something else', ''),
    ],
)
def test_failure_is_explained(setup_env, log, advice):
    assert advice in setup_env.explain_failure(log)
    assert bool(advice) == bool(setup_env.explain_failure(log))


def test_failing_program_is_quoted_and_ends_the_others(setup_env):
    programs = setup_env.Programs()
    other = programs.start('other', [sys.executable, '-c', 'import time; time.sleep(60)'])
    programs.start('bad', [sys.executable, '-c', 'print("ERROR: [Errno 28] No space left on device"); exit(1)'])
    with pytest.raises(setup_env.SetupError, match=r'disk is full(.|\n)*\| ERROR(.|\n)*bad\.log'):
        programs.wait()
    programs.stop()
    assert other.poll() is not None


def test_next_set_up_waits_for_what_a_killed_one_left_running(setup_env):
    with setup_env.only_one_at_a_time() as lock:
        programs = setup_env.Programs(lock)
        programs.start('left', [sys.executable, '-c', 'import time; time.sleep(1); print("ended")'])
    with setup_env.only_one_at_a_time():
        assert (setup_env.LOG_DIR / 'left.log').read_text() == 'ended\n'


def test_program_prints_the_python_of_the_active_environment(tmp_path):
    """The whole program, as the Makefile calls it; the environment that runs the tests has a working mmdet."""
    python = tmp_path / 'bin' / 'python'
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    environment = {**os.environ, 'VIRTUAL_ENV': str(tmp_path)}
    result = subprocess.run([sys.executable, PROGRAM], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout == f'{python}\n'
    assert result.stderr == ''


# --- mmcv


def test_mmcv_sources_become_two_units(tmp_path):
    build_mmcv = load('build_mmcv')
    names = ['pybind', 'nms', 'cpu/nms', 'cpu/psamask', 'cpu/bezier_align', 'cpu/roi_align']
    sources = [f'csrc/{name}.cpp' for name in names]
    bindings, unit = build_mmcv.group_sources(sources, tmp_path)
    assert bindings == 'csrc/pybind.cpp'
    lines = Path(unit).read_text().splitlines()
    included = [Path(line.split('"')[1]).name for line in lines if line.startswith('#include') and 'csrc' in line]
    assert sorted(included) == ['bezier_align.cpp', 'nms.cpp', 'nms.cpp', 'psamask.cpp', 'roi_align.cpp']
    assert included[-1] == 'psamask.cpp'
    assert lines[lines.index('#define PreCalc bezier_align_PreCalc') :].index('#undef PreCalc') > 0


def test_mmcv_sources_of_another_kind_are_not_grouped(tmp_path):
    with pytest.raises(ValueError, match=r'nms\.cu'):
        load('build_mmcv').group_sources(['csrc/pybind.cpp', 'csrc/nms.cu'], tmp_path)


def test_kept_mmcv_wheel_is_used_unless_it_is_damaged(tmp_path, monkeypatch):
    build_mmcv = load('build_mmcv')
    builds = []

    def build(requirement, folder):
        builds.append(requirement)
        archive = shutil.make_archive(str(folder / 'wheel'), 'zip', ROOT / 'requirements')
        return Path(archive).rename(folder / 'mmcv.whl')

    monkeypatch.setattr(build_mmcv, 'build_grouped', build)
    monkeypatch.setattr('torch.cuda.is_available', lambda: False)
    first = build_mmcv.build_kept_wheel('mmcv==2.1.0', tmp_path)
    assert build_mmcv.build_kept_wheel('mmcv==2.1.0', tmp_path) == first
    assert len(builds) == 1
    first.write_bytes(first.read_bytes()[:100])
    assert build_mmcv.build_kept_wheel('mmcv==2.1.0', tmp_path) == first
    assert len(builds) == 2


@pytest.mark.parametrize(('has_gpu', 'quick'), [(False, False), (True, True)], ids=['quick build fails', 'gpu'])
def test_mmcv_is_built_ordinarily_otherwise(tmp_path, monkeypatch, has_gpu, quick):
    build_mmcv = load('build_mmcv')
    monkeypatch.setattr('torch.cuda.is_available', lambda: has_gpu)
    monkeypatch.setattr(
        build_mmcv, 'build_grouped', lambda *args: pytest.fail('no quick build here') if quick else None
    )
    monkeypatch.setattr(
        build_mmcv, 'build_ordinarily', lambda requirement, folder: Path(shutil.copy(PROGRAM, folder / 'mmcv.whl'))
    )
    assert build_mmcv.build_kept_wheel('mmcv==2.1.0', tmp_path).name == 'mmcv.whl'


# --- The whole


@pytest.mark.slow
def test_fresh_clone_is_set_up(tmp_path):
    """About 2 minutes on 2 cores, and a network: torch, mmcv's operators and all else from nothing."""
    clone = tmp_path / 'clone'
    subprocess.run(['git', 'clone', '--quiet', ROOT, clone], check=True)
    base = Path(sys.base_prefix, 'bin', f'python{sys.version_info.major}.{sys.version_info.minor}')
    bare = tmp_path / 'bin'
    bare.mkdir()
    (bare / 'python3').symlink_to(base)
    # A new cache, so that mmcv is compiled; pip's own stays, as its settings are the user's.
    environment = {**os.environ, 'PATH': f'{bare}:/usr/bin:/bin', 'XDG_CACHE_HOME': str(tmp_path / 'cache')}
    for name in ('VIRTUAL_ENV', 'CONDA_PREFIX', 'PYTHONPATH'):
        environment.pop(name, None)
    for _ in range(2):
        result = subprocess.run(['make', 'setup'], cwd=clone, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        assert result.stdout == f'{clone}/.venv/bin/python\n'
    assert result.stderr == ''
    python = result.stdout.strip()
    listed = subprocess.run([python, '-m', 'pip', 'list'], capture_output=True, text=True, check=True).stdout
    assert [line.split()[0] for line in listed.splitlines() if 'opencv' in line] == ['opencv-python-headless']
    code = 'import cv2, embedmask_mmdet._ext, mmcv.ops, torch; mmcv.ops.nms(torch.rand(3, 4), torch.rand(3), 0.5)'
    subprocess.run([python, '-c', code], check=True, cwd='/')
