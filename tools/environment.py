"""Find a Python that has mmdet and embedmask_mmdet, for scripts that a user starts with any Python.

Run as a script, it prints the folder of MMDetection's installed tools, or nothing if a package is missing.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV_PYTHON = ROOT / '.venv' / 'bin' / 'python'
INSTALL_COMMAND = f'{sys.executable} -m pip install -e {ROOT}'


def find_missing_packages() -> list[str]:
    """List the packages that the tools need and this Python does not have."""
    return [name for name in ('mmdet', 'embedmask_mmdet') if importlib.util.find_spec(name) is None]


def prefer_installed() -> None:
    """Let the installed package win over the one beside the tools, which may lack its kernels.

    MMDetection's ``dist_train.sh`` puts the folder above the tools first on ``PYTHONPATH``.
    """
    sys.path.sort(key=lambda entry: Path(entry).resolve() == ROOT)


def require_packages() -> None:
    """Restart this program in the project's ``.venv`` if a package is missing; without it, end with a message."""
    prefer_installed()
    missing = find_missing_packages()
    if not missing:
        return
    problem = f'{sys.executable} has no {missing[0]}'
    if VENV_PYTHON.exists() and Path(sys.prefix).resolve() != VENV_PYTHON.parents[1].resolve():
        print(f'{problem}; using {VENV_PYTHON}', file=sys.stderr, flush=True)
        os.execv(VENV_PYTHON, [str(VENV_PYTHON), *sys.argv])
    advice = {
        'mmdet': f'Activate an environment that has it, or run `make setup` in {ROOT}.',
        'embedmask_mmdet': f'Install it there with `{INSTALL_COMMAND}`, or run `make setup` in {ROOT}.',
    }
    sys.exit(f'{Path(sys.argv[0]).name}: error: {problem}. {advice[missing[0]]}')


if __name__ == '__main__' and not find_missing_packages():
    (package,) = importlib.util.find_spec('mmdet').submodule_search_locations
    print(Path(package, '.mim', 'tools'))
