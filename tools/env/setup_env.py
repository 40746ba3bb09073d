"""Find or make the environment that EmbedMask runs in, and print its Python.

An active environment (a virtual environment, conda, or the python3 on PATH) with a working mmdet is used. If it lacks
this project, the project is installed there in editable mode, and nothing else is changed. Otherwise everything is
installed into ``.venv`` at the root of the project: torch (the CPU build unless there is an NVIDIA GPU), mmcv with its
operators, mmengine, mmdet, the tests' tools and this project. Finished steps are not repeated, so that a second run
takes no time and an interrupted one continues.

    python3 tools/env/setup_env.py

Progress goes to stderr; the only line on stdout is the path of the Python to use. It needs Python 3.10 to 3.12 and,
the first time on a machine, a C++ compiler. Delete ``.venv`` to start over.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VENV = ROOT / '.venv'
VENV_PYTHON = VENV / 'bin' / 'python'
STATE_FILE = VENV / 'setup.json'
LOG_DIR = ROOT / '.cache' / 'setup'
REQUIREMENTS = ROOT / 'requirements'
BUILD_MMCV = ROOT / 'tools' / 'env' / 'build_mmcv.py'

TORCH_VERSION = '2.13.0'
PYTHON_VERSIONS = ('3.11', '3.12', '3.10')  # in the order of preference
FREE_GIB = {'cpu': 4, 'gpu': 15}

READY_CODE = 'import mmdet, mmcv.ops, mmengine, pycocotools, cv2'
CHECK_CODE = f'{READY_CODE}, scipy, torch, pytest; import mmdet.apis; mmcv.ops.nms'
OPERATORS_CODE = 'import embedmask_mmdet._ext'
# A Python that can make an environment and compile against itself has all of these.
PYTHON_PROBE = """
import os, sys, sysconfig
print('%d.%d' % sys.version_info[:2])
import ensurepip, venv
if not os.path.exists(os.path.join(sysconfig.get_path('include'), 'Python.h')):
    raise ImportError('Python.h')
print('fit')
"""


class SetupError(Exception):
    """The set-up cannot go on; the message says why and what to do."""


def say(text: str, end: str = '\n') -> None:
    """Report progress where it does not mix with the result."""
    print(text, end=end, file=sys.stderr, flush=True)


# --- What is there already


def run_python(python: str | Path, code: str) -> subprocess.CompletedProcess:
    """Run a line of Python in some interpreter, away from the project's own folder."""
    return subprocess.run([str(python), '-c', code], capture_output=True, text=True, cwd='/')


def find_ready_python() -> str | None:
    """Return the Python of an active environment that has a working mmdet, if there is one."""
    folders = [os.environ[name] for name in ('VIRTUAL_ENV', 'CONDA_PREFIX') if os.environ.get(name)]
    candidates = [shutil.which('python', path=os.path.join(folder, 'bin')) for folder in folders]
    for python in [*candidates, shutil.which('python3')]:
        if python is None or Path(python).parent == VENV_PYTHON.parent:
            continue
        if run_python(python, 'import importlib.util as u, sys; sys.exit(u.find_spec("mmdet") is None)').returncode:
            continue
        result = run_python(python, READY_CODE)
        if result.returncode == 0:
            return python
        reason = (result.stderr.strip().splitlines() or ['no reason given'])[-1]
        say(f'mmdet in the environment of {python} does not work ({reason}), so .venv is used instead.')
    return None


def install_into(python: str) -> None:
    """Install this project in an active environment that lacks it, and nothing else.

    Raises:
        SetupError: pip fails.
    """
    find = 'import importlib.util as u; print(u.find_spec("embedmask_mmdet").submodule_search_locations[0])'
    found = run_python(python, find)
    if found.returncode == 0:
        installed = Path(found.stdout.strip()).parent
        if installed.resolve() != ROOT:
            say(f'Note: {python} uses embedmask_mmdet of {installed}, not of {ROOT}.')
        return
    options = ('--disable-pip-version-check', '--no-input', '--no-deps', '--no-build-isolation')
    command = [python, '-m', 'pip', 'install', *options, '-e', str(ROOT)]
    say(f'{python} has mmdet, but not this project. Installing it there: {shlex.join(command)}')
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if result.returncode:
        raise SetupError(
            f'This project could not be installed in the active environment. Run the command above to see why, or '
            f'deactivate the environment to have one made in {VENV}.{quote_errors(result.stdout + result.stderr)}'
        )


def find_base_python() -> str:
    """Find a Python to make the environment from.

    Raises:
        SetupError: If none on this machine fits; each one tried is named with what it lacks.
    """
    tried = {}
    for name in (sys.executable, *(f'python{version}' for version in PYTHON_VERSIONS)):
        python = shutil.which(name)
        if python is None or python in tried:
            continue
        result = run_python(python, PYTHON_PROBE)
        version, *fit = result.stdout.split() or ['']
        if version in PYTHON_VERSIONS and fit:
            return python
        if version and version not in PYTHON_VERSIONS:
            tried[python] = f'is Python {version}'
        elif version:
            lacking = 'its headers' if 'Python.h' in result.stderr else 'the venv module'
            tried[python] = (
                f'lacks {lacking} (on Debian and Ubuntu: apt install python{version}-venv python{version}-dev)'
            )
        else:
            tried[python] = 'does not run'
    found = ''.join(f'\n  {python} {reason}' for python, reason in tried.items())
    raise SetupError(f'Python 3.10, 3.11 or 3.12 is needed. Install one and put it on PATH. Found:{found or " none"}')


def has_gpu() -> bool:
    """Tell whether there is an NVIDIA GPU that programs may use."""
    if os.environ.get('CUDA_VISIBLE_DEVICES') in ('', '-1') or shutil.which('nvidia-smi') is None:
        return False
    result = subprocess.run(['nvidia-smi', '-L'], capture_output=True, text=True)
    return result.returncode == 0 and 'GPU 0' in result.stdout


def find_nvcc() -> str | None:
    """Find CUDA's compiler where torch looks for it."""
    homes = [os.environ.get(name) for name in ('CUDA_HOME', 'CUDA_PATH')] + ['/usr/local/cuda']
    return next((path for home in homes if home and (path := shutil.which('nvcc', path=f'{home}/bin'))), None) or (
        shutil.which('nvcc')
    )


def check_machine(kind: str) -> None:
    """Refuse a machine on which the set-up would fail after minutes.

    Raises:
        SetupError: If a compiler or room on the disk is missing, or the project's folder is read-only.
    """
    compiler = os.environ.get('CXX', 'c++').split()[0]
    if shutil.which(compiler) is None:
        raise SetupError(
            f'A C++ compiler is needed to build mmcv, and there is no {compiler!r} on PATH. On Debian and Ubuntu: '
            'apt install g++. Elsewhere install gcc or clang, or name yours in the variable CXX.'
        )
    if kind == 'gpu' and find_nvcc() is None:
        raise SetupError(
            'This machine has an NVIDIA GPU, but no nvcc to build mmcv for it. Install the CUDA toolkit (its version '
            'must fit torch) and set CUDA_HOME, or set CUDA_VISIBLE_DEVICES=-1 to set up for the CPU.'
        )
    if not os.access(ROOT, os.W_OK):
        raise SetupError(f'{ROOT} is read-only, so .venv cannot be made in it. Copy the project to a folder of yours.')
    free = shutil.disk_usage(ROOT).free / 2**30
    if free < FREE_GIB[kind]:
        raise SetupError(f'{ROOT} has {free:.1f} GiB left, and the environment needs {FREE_GIB[kind]} GiB. Make room.')


# --- Running the steps


def child_environment() -> dict[str, str]:
    """Return the variables for the set-up's programs: the new environment first, nothing of another one."""
    unwanted = ('PYTHONHOME', 'PYTHONPATH', 'PIP_TARGET', 'PIP_PREFIX', 'CONDA_PREFIX')
    environment = {name: value for name, value in os.environ.items() if name not in unwanted}
    path = os.pathsep.join([str(VENV_PYTHON.parent), os.environ.get('PATH', '')])
    return {**environment, 'PATH': path, 'VIRTUAL_ENV': str(VENV), 'PIP_USER': '0', 'PIP_NO_INPUT': '1'}


def cache_folder() -> Path:
    """Return the folder in which mmcv's wheels are kept for the next environment on this machine."""
    return Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'embedmask_mmdet' / 'wheels'


def explain_failure(log: str) -> str:
    """Find in a program's output why it failed."""
    reasons = {
        r'No space left on device|Errno 28': 'The disk is full. Make room and run this again.',
        r'Python\.h: No such file': "Python's headers are missing. On Debian and Ubuntu: apt install python3-dev.",
        r'[Kk]illed.*cc1plus|cc1plus.*[Kk]illed|out of memory': 'There was not enough memory to compile; 4 GB will do.',
        r'NewConnectionError|Temporary failure in name resolution|Name or service not known|Network is unreachable|'
        r'ConnectionError|ConnectTimeout|Read timed out|Could not fetch|Connection (refused|reset)|ProxyError': (
            "pip could not reach its package index. Check the network and, behind a proxy, pip's own settings "
            '(pip config list), then run this again: it goes on where it stopped.'
        ),
        r'No matching distribution found|Could not find a version': (
            "pip found no package that fits in its indexes. Check pip's own settings (pip config list) and that this "
            'machine and its Python are supported by torch.'
        ),
    }
    return next((advice for pattern, advice in reasons.items() if re.search(pattern, log)), '')


def quote_errors(log: str) -> str:
    """Return the last lines of a program's output that speak of an error, or else its last lines."""
    lines = log.strip().splitlines()
    errors = [line for line in lines if re.search(r'error|not found|No such', line, re.IGNORECASE)]
    return ''.join(f'\n  | {line[:200]}' for line in (errors or lines)[-5:])


class Programs:
    """Programs that run side by side; none outlives the set-up."""

    def __init__(self, lock: int | None = None) -> None:
        # Held open by the programs too: should the set-up be killed, the next one waits until they have ended.
        self.inherited = () if lock is None else (lock,)
        self.running: dict[subprocess.Popen, Path] = {}

    def start(self, name: str, command: list[str | Path]) -> subprocess.Popen:
        """Start a program of the new environment with its output in a log file of that name."""
        LOG_DIR.mkdir(parents=True, exist_ok=True)
        log = LOG_DIR / f'{name}.log'
        with log.open('w') as output:
            program = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=child_environment(),
                cwd=ROOT,
                start_new_session=True,
                pass_fds=self.inherited,
            )
        self.running[program] = log
        return program

    def wait(self) -> None:
        """Wait for all of them, reporting every half minute; stop the others when one fails.

        Raises:
            SetupError: With the reason, as far as the log gives it away, and the log's name.
        """
        reported = time.monotonic()
        while self.running:
            time.sleep(0.1)
            for program, log in list(self.running.items()):
                if program.poll() is None:
                    continue
                del self.running[program]
                if program.returncode:
                    text = log.read_text(errors='replace')
                    raise SetupError(f'{explain_failure(text)}{quote_errors(text)}\nAll of it: {log}')
            if time.monotonic() - reported > 30:
                reported = time.monotonic()
                say('.', end='')

    def stop(self) -> None:
        """End what still runs, with all that it started."""
        for program in self.running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(program.pid, signal.SIGTERM)
        for program in self.running:
            program.wait()
        self.running.clear()


def pip_install(*arguments: str | Path) -> list[str | Path]:
    """Return the command that installs into the new environment."""
    options = ('--disable-pip-version-check', '--no-input', '--progress-bar', 'off', '--prefer-binary')
    return [VENV_PYTHON, '-m', 'pip', 'install', *options, *arguments]


class Setup:
    """The steps that make ``.venv``, each done once."""

    def __init__(self, lock: int | None = None) -> None:
        self.state = read_state()
        self.kind = self.state.get('kind') or ('gpu' if has_gpu() else 'cpu')
        self.programs = Programs(lock)
        self.steps = {
            'environment': (self.make_environment, [str(ROOT)]),
            'torch': (self.install_torch, [TORCH_VERSION, self.kind, REQUIREMENTS / 'build.txt']),
            'libraries': (self.install_libraries, [REQUIREMENTS, BUILD_MMCV]),
            'project': (self.install_project, [ROOT / 'setup.py', ROOT / 'pyproject.toml', ROOT / 'ops']),
            'check': (self.check, [CHECK_CODE]),
        }
        self.digests = chain_digests({name: inputs for name, (_, inputs) in self.steps.items()})

    def missing_steps(self) -> list[str]:
        """List the steps that were not done with the present inputs."""
        names = list(self.steps)
        done = self.state.get('done', {}) if is_alive(VENV_PYTHON) else {}
        first = next((i for i, name in enumerate(names) if done.get(name) != self.digests[name]), len(names))
        return names[first:]

    def run(self) -> None:
        """Do the missing steps.

        Raises:
            SetupError: If a step fails; the next run starts with that step.
        """
        missing = self.missing_steps()
        if not missing:
            return
        check_machine(self.kind)
        say(f'Setting up {VENV} for the {self.kind.upper()}; this is done once. Details: {LOG_DIR}')
        begin = time.monotonic()
        try:
            for number, name in enumerate(missing, 1):
                started = time.monotonic()
                say(f'[{number}/{len(missing)}] {self.steps[name][0].__doc__.splitlines()[0]} ', end='')
                note = self.steps[name][0]()
                say(f' {time.monotonic() - started:.0f} s' + (f'\n      {note}' if note else ''))
                self.keep(name)
        except BaseException:
            say('')
            raise
        finally:
            self.programs.stop()
        say(f'Set up in {time.monotonic() - begin:.0f} s. To use it in a shell: source {VENV}/bin/activate')

    def keep(self, name: str) -> None:
        """Note that a step is done, and that those after it are not."""
        names = list(self.steps)
        done = {each: self.digests[each] for each in names[: names.index(name) + 1]}
        self.state = {'kind': self.kind, 'done': done}
        partial = STATE_FILE.with_suffix('.part')
        partial.write_text(json.dumps(self.state, indent=1))
        partial.replace(STATE_FILE)

    def make_environment(self) -> None:
        """Make the environment."""
        base = find_base_python()
        self.programs.start('environment', [base, '-m', 'venv', '--clear', VENV])
        self.programs.wait()

    def install_torch(self) -> str:
        """Install torch and what builds extensions."""
        build = ('-r', REQUIREMENTS / 'build.txt', 'numpy')
        if self.kind == 'gpu':
            cpu_build = f'{TORCH_VERSION}+cpu'
            self.programs.start('torch', pip_install(f'torch=={TORCH_VERSION},!={cpu_build}', *build))
            self.programs.wait()
            return ''
        try:
            self.programs.start('torch', pip_install(f'torch=={TORCH_VERSION}+cpu', *build))
            self.programs.wait()
        except SetupError:
            if 'No matching distribution found for torch' not in (LOG_DIR / 'torch.log').read_text(errors='replace'):
                raise
            self.programs.start('torch', pip_install(f'torch=={TORCH_VERSION}', *build))
            self.programs.wait()
            return (
                "pip's indexes have no CPU build of torch, so the ordinary one was taken, which may be larger by some "
                'GB. To have the small one, name an index that has it in PIP_EXTRA_INDEX_URL (see pytorch.org).'
            )
        return ''

    def install_libraries(self) -> None:
        """Build mmcv's operators and install mmdet and the other libraries beside it."""
        self.programs.start('mmcv', [VENV_PYTHON, BUILD_MMCV, cache_folder()])
        self.programs.start(
            'libraries', pip_install('-r', REQUIREMENTS / 'runtime.txt', '-r', REQUIREMENTS / 'test.txt')
        )
        self.programs.wait()
        wheel = (LOG_DIR / 'mmcv.log').read_text(errors='replace').strip().splitlines()[-1]
        self.programs.start('openmmlab', pip_install('--no-deps', '-r', REQUIREMENTS / 'openmmlab.txt', wheel))
        self.programs.wait()

    def install_project(self) -> str:
        """Build this project's operators and install it."""
        try:
            self.programs.start('project', pip_install('--no-deps', '--no-build-isolation', '-e', ROOT))
            self.programs.wait()
        except SetupError as error:
            (site_packages,) = VENV.glob('lib/python*/site-packages')
            (site_packages / 'embedmask_mmdet.pth').write_text(f'{ROOT}\n')
            return f'It could not be built, so it runs in plain PyTorch, which is slower. {error}'
        if run_python(VENV_PYTHON, f'import torch; {OPERATORS_CODE}').returncode:
            return f'Its fast operators were not built, so plain PyTorch serves. See {LOG_DIR / "project.log"}'
        return ''

    def check(self) -> str:
        """Check that everything can be imported."""
        result = run_python(VENV_PYTHON, CHECK_CODE)
        if result.returncode:
            STATE_FILE.unlink()
            raise SetupError(
                f'The environment does not work and will be made anew by the next run:\n{result.stderr.strip()[-1500:]}'
            )
        if self.kind == 'gpu' and run_python(VENV_PYTHON, 'import torch; assert torch.cuda.is_available()').returncode:
            return 'There is a GPU, but torch cannot use it: its driver is too old for this torch.'
        return ''


def is_alive(python: Path) -> bool:
    """Tell whether an environment's Python still runs: the one that it was made from may be gone."""
    return python.exists() and run_python(python, '').returncode == 0


def read_state() -> dict:
    """Read which steps were done with which inputs."""
    try:
        return json.loads(STATE_FILE.read_text())
    except (OSError, ValueError):
        return {}


def chain_digests(inputs: dict[str, list[str | Path]]) -> dict[str, str]:
    """Give each step a digest of its inputs and of those of the steps before it.

    Args:
        inputs: For each step texts, files, and folders with all that is in them; what does not exist counts as such.
    """
    digest = hashlib.sha256()
    digests = {}
    for name, parts in inputs.items():
        for part in parts:
            if isinstance(part, str):
                digest.update(part.encode())
                continue
            files = sorted(path for path in part.rglob('*') if path.is_file()) if part.is_dir() else [part]
            for file in files:
                digest.update(file.name.encode() + (file.read_bytes() if file.is_file() else b'missing'))
        digests[name] = digest.hexdigest()[:16]
    return digests


@contextlib.contextmanager
def only_one_at_a_time() -> Iterator[int]:
    """Hold a lock on the set-up of this folder, so that two do not write to one environment; give its descriptor."""
    import fcntl

    LOG_DIR.mkdir(parents=True, exist_ok=True)
    with (LOG_DIR / 'lock').open('w') as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say('Another set-up is at work in this folder; waiting for it.')
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock.fileno()


def main() -> int:
    """Print the Python to use, after making an environment if there is none."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        ready = find_ready_python()
        if ready:
            install_into(ready)
        else:
            with only_one_at_a_time() as lock:
                Setup(lock).run()
    except SetupError as error:
        say(f'The set-up failed. {error}')
        return 1
    except OSError as error:
        say(f'The set-up failed. {explain_failure(str(error)) or error}')
        return 1
    except KeyboardInterrupt:
        say('The set-up was interrupted; run it again to go on.')
        return 130
    print(ready or VENV_PYTHON)
    return 0


if __name__ == '__main__':
    sys.exit(main())
