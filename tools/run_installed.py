"""Run MMDetection's installed ``tools/train.py`` and ``tools/test.py`` with this project importable.

Nothing of MMDetection is copied: its tools come with its package, in ``mmdet/.mim/tools``. Added here is what can be
checked before anything is loaded, and that the project's own environment is used where the calling Python has no mmdet.
"""

from __future__ import annotations

import difflib
import importlib.util
import os
import re
import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[1]
VENV_PYTHON = ROOT / '.venv' / 'bin' / 'python'


def fail(message: str) -> NoReturn:
    """End with a message instead of a traceback."""
    sys.exit(f'{Path(sys.argv[0]).name}: error: {message}')


def fail_missing(error: FileNotFoundError) -> NoReturn:
    """End with a message about a file of the data that is not there."""
    if error.filename is None:  # said in full where it was raised
        fail(str(error))
    fail(
        f'{error.filename} does not exist (working folder: {Path.cwd()}). Put or link the data there, or '
        'set data_root, ann_file and data_prefix of the dataloaders, and ann_file of the evaluators.'
    )


def require_mmdet() -> None:
    """Go on in the project's own environment if this Python has no mmdet.

    Without either it ends with a message.
    """
    if importlib.util.find_spec('mmdet') is not None:
        return
    if VENV_PYTHON.exists() and Path(sys.prefix).resolve() != VENV_PYTHON.parents[1].resolve():
        print(f'{sys.executable} has no mmdet; going on with {VENV_PYTHON}', file=sys.stderr, flush=True)
        os.execv(VENV_PYTHON, [str(VENV_PYTHON), *sys.argv])
    fail(f'{sys.executable} has no mmdet. Activate the environment that has it, or run `make setup` in {ROOT}.')


def load_installed(name: str) -> ModuleType:
    """Import one of MMDetection's installed tools without running it."""
    (package,) = importlib.util.find_spec('mmdet').submodule_search_locations
    path = Path(package, '.mim', 'tools', name)
    if not path.is_file():
        fail(f'the installed mmdet has no {path}. Install mmdet 3.3.0 from its wheel, or run `make setup` in {ROOT}.')
    spec = importlib.util.spec_from_file_location(f'mmdet_tools_{path.stem}', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check_config(config: str) -> None:
    """End with a message that names the nearest configs if there is no such file."""
    if Path(config).expanduser().is_file():
        return
    known = {path.name: path for path in sorted((ROOT / 'configs').rglob('*.py')) if '_base_' not in path.parts}
    near = difflib.get_close_matches(Path(config).name, known, n=3, cutoff=0.5)
    listed = ''.join(f'\n  {known[name]}' for name in near or known)
    fail(f'the config {config} does not exist. {"Did you mean" if near else "There are"}:{listed}')


def check_checkpoint(checkpoint: str) -> None:
    """End with a message that names the folder's checkpoints if there is no such file; addresses are left alone."""
    path = Path(checkpoint).expanduser()
    if re.match(r'\S+://', checkpoint) or path.is_file():
        return
    if not path.parent.is_dir():
        fail(f'the checkpoint {checkpoint} does not exist, nor does the folder {path.parent}.')
    found = sorted(path.parent.glob('*.pth'), key=os.path.getmtime)
    listed = ''.join(f'\n  {file}' for file in found[-8:]) or ' no .pth files'
    fail(f'the checkpoint {checkpoint} does not exist. In {path.parent} there are:{listed}')


def join_cpu_processes(args: Namespace) -> None:
    """Let several processes train without a GPU, which MMEngine's own launcher does not.

    It sets a CUDA device for each process and for its wrapper of the model; both are left out here.
    """
    import torch

    if torch.cuda.is_available():
        return
    torch.distributed.init_process_group('gloo')
    wrapper = dict(type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False)
    add_cfg_options(args, {f'model_wrapper_cfg.{name}': value for name, value in wrapper.items()})


def add_cfg_options(args: Namespace, options: dict) -> None:
    """Set more options of the config, as ``--cfg-options`` does but for values of any kind."""
    args.cfg_options = {**(args.cfg_options or {}), **options}


def import_tool(name: str) -> ModuleType:
    """Import an installed tool, in an environment that has it, with this project importable there."""
    require_mmdet()
    # Data loaders' processes that are spawned look it up in the variable.
    sys.path.insert(0, str(ROOT))
    os.environ['PYTHONPATH'] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))
    return load_installed(name)


def parse_args(tool: ModuleType) -> Namespace:
    """Parse the arguments of this program as an installed tool does, and look for the files that they name."""
    args = tool.parse_args()
    check_config(args.config)
    checkpoint = getattr(args, 'checkpoint', None) or getattr(args, 'resume', None)
    if checkpoint and checkpoint != 'auto':
        check_checkpoint(checkpoint)
    return args


def run(tool: ModuleType, args: Namespace) -> None:
    """Run an installed tool with its parsed arguments; what a user can mend ends with a message."""
    if args.launcher == 'pytorch':
        join_cpu_processes(args)
    tool.parse_args = lambda: args

    from embedmask_mmdet.errors import CheckpointError, InputError

    try:
        tool.main()
    except (CheckpointError, InputError) as error:
        fail(str(error))
    except FileNotFoundError as error:
        fail_missing(error)
    except ValueError as error:
        # MMEngine's words, on building it, for a dataset without images.
        if 'need at least one array to concatenate' not in str(error):
            raise
        fail(
            f'a dataset of {args.config} has no images left. The annotation file lists none, or filter_cfg removes '
            'all: those without instances of metainfo.classes (are the names those of "categories"?), and those '
            'below min_size.'
        )


def leave_processes() -> None:
    """Let CPU processes end together: one that is still spoken to when it ends makes the others abort."""
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized() and distributed.get_backend() == 'gloo':
        distributed.barrier()
        distributed.destroy_process_group()


def main(name: str) -> None:
    """Run an installed tool with the arguments of this program.

    Args:
        name: ``train.py`` or ``test.py``.
    """
    tool = import_tool(name)
    run(tool, parse_args(tool))
    leave_processes()
