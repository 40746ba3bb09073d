"""Find or make the environment that EmbedMask runs in, and print its Python.

If the Python on PATH has a working mmdet, it is used; if it lacks this project, the project is installed there in
editable mode, and nothing else changes. Otherwise everything is installed into `.venv`: OpenMMLab's releases on Python
3.10 to 3.12, the maintained fork on 3.13 and 3.14.

    python3 tools/env/setup_env.py
    STACK=onedl python3 tools/env/setup_env.py   # or STACK=official: that stack, in .venv-onedl or .venv-official

Packages are installed by uv if it is on PATH and INSTALLER is not `pip`, otherwise by pip. What is installed stays, so
an interrupted set-up continues. Progress goes to stderr; the only line on stdout is the path of the Python.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = ROOT / 'requirements'
TORCH = 'torch==2.13.0'
LAST_PYTHON = {'official': 12, 'onedl': 14}
FREE_GIB = {'cpu': 4, 'gpu': 15}
FIND_PROJECT = """
import mmdet, cv2, importlib.util, mmcv.ops, mmengine, pycocotools
project = importlib.util.find_spec('embedmask_mmdet')
print(project.submodule_search_locations[0] if project else 'missing')
"""
CHECK = 'import cv2, mmcv.ops, mmdet.apis, mmengine, pycocotools, pytest, scipy, torch; mmcv.ops.nms'
ADVICE = {
    'No space left': 'The disk is full. Make room and run this again.',
    'NewConnectionError|name resolution|unreachable|[Tt]imed out|Could not fetch|Connection.*(refused|reset)|ProxyError'
    '|error sending request': 'The package index cannot be reached. Check the network and, behind a proxy, the '
    'settings of pip or uv. Then run this again: it goes on where it stopped.',
    'No matching distribution|conflicting dependencies|No solution found': 'The package indexes have no package that '
    'fits. Check the settings of pip or uv, and that torch has wheels for this machine and its Python.',
}


class SetupError(Exception):
    """The set-up cannot go on; the message says why and what to do."""


def say(text: str) -> None:
    """Report progress where it does not mix with the result."""
    sys.stderr.write(f'{text}\n')
    sys.stderr.flush()


def explain_failure(output: str) -> str:
    """Say why a program failed, as far as its output shows it, and quote its last errors."""
    lines = output.strip().splitlines()
    errors = [line for line in lines if re.search('error|not found|no such', line, re.IGNORECASE)] or lines
    advice = next((advice for pattern, advice in ADVICE.items() if re.search(pattern, output)), '')
    return advice + ''.join(f'\n  | {line[:200]}' for line in errors[-5:])


def ask_python(python: str | Path, code: str) -> subprocess.CompletedProcess:
    """Run Python code in some interpreter, away from the project's folder."""
    return subprocess.run([str(python), '-c', code], capture_output=True, text=True, cwd=ROOT.anchor)


def find_ready_python() -> str | None:
    """Return the Python on PATH if it has a working mmdet, after installing this project there if it lacks it."""
    python = shutil.which('python') or shutil.which('python3')
    # The project's own environment may be incomplete.
    if python is None or Path(python).parents[1] == ROOT / '.venv':
        return None
    result = ask_python(python, FIND_PROJECT)
    if result.returncode:
        reason = result.stderr.strip().rpartition('\n')[2]
        if "No module named 'mmdet'" not in reason:
            say(f'mmdet in the environment of {python} does not work ({reason}), so .venv is used instead.')
        return None
    project = Path(result.stdout.split()[-1])
    if not project.is_absolute():
        command = [python, '-m', 'pip', 'install', '--no-input', '--no-deps', '--no-build-isolation', '-e', str(ROOT)]
        say(f'{python} has mmdet, but not this project. Installing it there: {" ".join(command)}')
        if subprocess.run(command, stdout=sys.stderr).returncode:
            raise SetupError('See above why, or deactivate the environment to have one made.')
    elif project.resolve().parent != ROOT:
        say(f'Note: {python} uses embedmask_mmdet of {project.parent}, not of {ROOT}.')
    return python


def find_device() -> str:
    """Return 'gpu' if there is an NVIDIA GPU that programs may use, otherwise 'cpu'."""
    if os.environ.get('CUDA_VISIBLE_DEVICES') in ('', '-1') or shutil.which('nvidia-smi') is None:
        return 'cpu'
    return 'gpu' if 'GPU 0' in subprocess.run(['nvidia-smi', '-L'], capture_output=True, text=True).stdout else 'cpu'


def check_machine(stack: str, device: str) -> None:
    """Refuse a machine on which the set-up would fail after minutes."""
    version, last = sys.version_info[1], LAST_PYTHON[stack]
    headers = Path(sysconfig.get_path('include'), 'Python.h')
    compiler = os.environ.get('CXX', 'cl' if os.name == 'nt' else 'c++').split()[0]
    cuda = Path(os.environ.get('CUDA_HOME') or os.environ.get('CUDA_PATH') or '/usr/local/cuda')
    free = shutil.disk_usage(ROOT).free / 2**30
    problems = [
        (
            not 10 <= version <= last,
            f'Python 3.10 to 3.{last} is needed, and {sys.executable} is 3.{version}. Install one, and name it: '
            f'make setup PYTHON3=python3.{last}.',
        ),
        (
            not (headers.exists() and find_spec('ensurepip')),
            f'{sys.executable} lacks its headers or the venv module. On Debian and Ubuntu: apt install '
            f'python3.{version}-venv python3.{version}-dev.',
        ),
        (
            not shutil.which(compiler),
            f'A C++ compiler is needed, and there is no {compiler!r} on PATH. On Debian and Ubuntu: apt install g++. '
            'Elsewhere install gcc or clang, or name yours in the variable CXX.',
        ),
        (
            device == 'gpu' and not (shutil.which('nvcc') or shutil.which('nvcc', path=cuda / 'bin')),
            'This machine has an NVIDIA GPU, but no nvcc to build mmcv for it. Install the CUDA toolkit (its version '
            'must fit torch) and set CUDA_HOME, or set CUDA_VISIBLE_DEVICES=-1 to set up for the CPU.',
        ),
        (
            free < FREE_GIB[device],
            f'{ROOT} has {free:.1f} GiB left, and an environment needs {FREE_GIB[device]} GiB. Make room.',
        ),
    ]
    for is_there, message in problems:
        if is_there:
            raise SetupError(message)


def hash_inputs() -> str:
    """Return a digest of the files that decide what is installed."""
    patterns = ('requirements/*.txt', 'tools/env/*.py', 'ops/**/*.[ch]*', 'setup.py', 'pyproject.toml')
    files = [path for pattern in patterns for path in sorted(ROOT.glob(pattern)) if path.is_file()]
    return hashlib.sha256(b''.join(path.read_bytes() for path in files)).hexdigest()


class Environment:
    """An environment in a folder, which may exist already."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.python = folder / ('Scripts/python.exe' if os.name == 'nt' else 'bin/python')
        self.stamp = folder / 'installed-from.txt'
        self.uv = shutil.which('uv') if os.environ.get('INSTALLER') != 'pip' else None

    def is_complete(self) -> bool:
        """Tell whether everything was installed from the files as they are now."""
        return self.python.exists() and self.stamp.exists() and self.stamp.read_text() == hash_inputs()

    def run(self, purpose: str, *command: str | Path) -> str:
        """Run a program and return what it printed, or raise `SetupError` with the reason why it failed."""
        unwanted = ('PYTHONHOME', 'PYTHONPATH', 'PIP_TARGET', 'PIP_PREFIX', 'CONDA_PREFIX')
        variables = {name: value for name, value in os.environ.items() if name not in unwanted}
        variables |= {'PIP_USER': '0', 'PIP_RETRIES': '2', 'PIP_DISABLE_PIP_VERSION_CHECK': '1'}
        # ninja is there.
        variables['PATH'] = f'{self.python.parent}{os.pathsep}{os.environ["PATH"]}'
        say(f'  {purpose}')
        streams = dict(stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        result = subprocess.run(command, **streams, text=True, errors='replace', env=variables, cwd=ROOT)
        if result.returncode:
            raise SetupError(f'{explain_failure(result.stdout)}')
        return result.stdout

    def install(self, purpose: str, *arguments: str | Path) -> None:
        """Install packages."""
        pip = (
            self.python,
            '-m',
            'pip',
            'install',
            '--no-input',
            '--progress-bar=off',
            '--prefer-binary',
            '--no-compile',
        )
        self.run(purpose, *((self.uv, 'pip', 'install', '--python', self.python) if self.uv else pip), *arguments)

    def make(self) -> None:
        """Make the folder, unless it has what this Python made."""
        find_version = 'import pip, sys; print(sys.version_info[:2])'
        if self.python.exists() and ask_python(self.python, find_version).stdout.strip() == f'{sys.version_info[:2]}':
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        # If an environment is active, this is the Python that it was made from.
        base = getattr(sys, '_base_executable', sys.executable)
        uv = (self.uv, 'venv', '--seed', '--python', base)
        self.run(f'making {self.folder}', *(uv if self.uv else (base, '-m', 'venv')), self.folder)

    def install_torch(self, device: str) -> None:
        """Install torch, without a GPU the build that lacks CUDA if an index has it."""
        if device == 'cpu' and sys.platform == 'linux' and ask_python(self.python, 'import torch').returncode:
            try:
                self.install('installing torch', '--no-deps', f'{TORCH}+cpu')
            except SetupError:  # How pip and uv say that it is missing depends on indexes and constraints.
                say(
                    '  No index has torch without CUDA, so the ordinary build is taken, larger by 4 GB. To have the '
                    'small one, name its index in PIP_EXTRA_INDEX_URL or UV_INDEX (see pytorch.org); delete .venv.'
                )
        self.install('installing what builds extensions', TORCH, 'numpy', '-r', REQUIREMENTS / 'build.txt')

    def set_up(self, stack: str) -> None:
        """Install everything that is missing."""
        device = find_device()
        check_machine(stack, device)
        say(f'Setting up {self.folder} ({stack} releases, {device}), which is done once and takes minutes:')
        self.make()
        self.install_torch(device)
        requirements = REQUIREMENTS / f'{stack}.txt'
        mmcv = re.search('^.*mmcv==.*$', requirements.read_text(), re.MULTILINE)[0]
        with ThreadPoolExecutor() as threads:
            build = threads.submit(self.run, f'building {mmcv}', self.python, ROOT / 'tools/env/build_mmcv.py', mmcv)
            libraries = [f'-r{REQUIREMENTS / name}' for name in ('runtime.txt', 'test.txt')]
            self.install('installing libraries', *libraries)
        wheel = build.result().splitlines()[-1]
        # mmcv may be there, but built for another torch.
        self.install('installing mmdet', '--no-deps', '--force-reinstall', wheel, '-r', requirements)
        self.install('building the fast operators', '--no-deps', '--no-build-isolation', '-e', ROOT)
        self.run('checking', self.python, '-c', CHECK)
        if ask_python(self.python, 'import torch, embedmask_mmdet._ext').returncode:
            say('  The fast operators could not be built, so plain PyTorch serves.')
        self.stamp.write_text(hash_inputs())
        say(f'Done. To use it in a shell: source {self.folder}/bin/activate')


def main() -> int:
    """Print the Python to use, after making an environment if there is none."""
    chosen = os.environ.get('STACK', '')
    stack = chosen or ('official' if sys.version_info[1] <= LAST_PYTHON['official'] else 'onedl')
    try:
        if stack not in LAST_PYTHON:
            raise SetupError(f'STACK={stack} is unknown. Use one of: {", ".join(LAST_PYTHON)}.')
        python = None if chosen else find_ready_python()
        if python is None:
            environment = Environment(ROOT / (f'.venv-{chosen}' if chosen else '.venv'))
            python = environment.python
            if not environment.is_complete():
                environment.set_up(stack)
    except (SetupError, OSError, KeyboardInterrupt) as error:
        say(f'The set-up failed. {str(error) or "It was interrupted. Run it again to go on."}')
        return 1
    print(python)
    return 0


if __name__ == '__main__':
    sys.exit(main())
