"""Run MMDetection's installed ``tools/train.py`` and ``tools/test.py``, with checks before anything is loaded.

Nothing of MMDetection is copied: its wheel contains its tools, in ``mmdet/.mim/tools``.
"""

from __future__ import annotations

import difflib
import importlib.util
import os
import re
from argparse import Namespace
from pathlib import Path
from types import ModuleType
from typing import NoReturn
from urllib.error import URLError

import torch
from torch import distributed

from embedmask_mmdet.cli.config_errors import explain_config_error
from embedmask_mmdet.engine.data_checks import explain_broken_image, explain_build_error
from embedmask_mmdet.errors import CheckpointError, fail
from embedmask_mmdet.locations import CHECKPOINTS, list_configs

MAX_LISTED = 8


def fail_missing(error: FileNotFoundError) -> NoReturn:
    """End the program with a message about a data file that does not exist."""
    fail(explain_build_error(error, ''))


def find_config(config: str) -> str:
    """Return the path of a config file that can be read; otherwise end the program and list similar names.

    Args:
        config: Path of a file, or name of a config of this package.
    """
    known = list_configs()
    shipped = known.get(f'{config.removesuffix(".py")}.py')
    if Path(config).expanduser().is_file():
        message = explain_config_error(config)
        if message:
            fail(message)
        return config
    if shipped:
        return str(shipped)
    similar = difflib.get_close_matches(Path(config).name, known, n=3, cutoff=0.5)
    listed = ''.join(f'\n  {known[name]}' for name in similar or known)
    hint = f' {"Did you mean" if similar else "Available configs"}:{listed}' if listed else ''
    fail(f'the config {config} does not exist.{hint}')


def find_checkpoint(checkpoint: str) -> str:
    """Return the path of a checkpoint file; if there is none, end the program and list the checkpoints of its folder.

    Args:
        checkpoint: Path of a file, name of a checkpoint of this package, or a URL, which is not checked.
    """
    path = Path(checkpoint).expanduser()
    if re.match(r'\S+://', checkpoint) or path.is_file():
        return checkpoint
    if path.name == checkpoint and (CHECKPOINTS / checkpoint).is_file():
        return str(CHECKPOINTS / checkpoint)
    if not path.parent.is_dir():
        fail(f'the checkpoint {checkpoint} does not exist, nor does the folder {path.parent}.')
    files = sorted(path.parent.glob('*.pth'), key=os.path.getmtime)
    listed = ''.join(f'\n  {file}' for file in files[-MAX_LISTED:]) or ' no .pth files'
    fail(f'the checkpoint {checkpoint} does not exist. In {path.parent} there are:{listed}')


def load_installed(name: str) -> ModuleType:
    """Import one of MMDetection's installed tools without running it.

    Args:
        name: ``train.py``, ``test.py`` or another file in ``mmdet/.mim/tools``.
    """
    (package,) = importlib.util.find_spec('mmdet').submodule_search_locations
    path = Path(package, '.mim', 'tools', name)
    if not path.is_file():
        fail(f'the installed mmdet has no {path}. Install mmdet 3.3.0, or onedl-mmdetection, from its wheel.')
    spec = importlib.util.spec_from_file_location(f'mmdet_tools_{path.stem}', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parse_args(tool: ModuleType) -> Namespace:
    """Parse the command line as an installed tool does, and check that the files it names exist."""
    args = tool.parse_args()
    args.config = find_config(args.config)
    for name in ('checkpoint', 'resume'):
        checkpoint = getattr(args, name, None)
        if checkpoint and checkpoint != 'auto':
            setattr(args, name, find_checkpoint(checkpoint))
    return args


def add_cfg_options(args: Namespace, options: dict) -> None:
    """Set more options of the config, as ``--cfg-options`` does, but with values of any type."""
    args.cfg_options = {**(args.cfg_options or {}), **options}


def init_cpu_processes(args: Namespace) -> None:
    """Let several processes train without a GPU.

    MMEngine's launcher cannot: it sets a CUDA device for each process and for the wrapper of its model.
    """
    if torch.cuda.is_available():
        return
    distributed.init_process_group('gloo')
    wrapper = dict(type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False)
    add_cfg_options(args, {f'model_wrapper_cfg.{name}': value for name, value in wrapper.items()})


def close_cpu_processes() -> None:
    """Wait for all processes before exit: if one gloo process exits while others use it, they abort."""
    if distributed.is_available() and distributed.is_initialized() and distributed.get_backend() == 'gloo':
        distributed.barrier()
        distributed.destroy_process_group()


def run(tool: ModuleType, args: Namespace) -> None:
    """Run an installed tool with parsed arguments; errors that a user can fix end it with a message."""
    if args.launcher == 'pytorch':
        init_cpu_processes(args)
    tool.parse_args = lambda: args
    try:
        tool.main()
    except CheckpointError as error:
        fail(str(error))
    except URLError as error:
        fail(
            f'a checkpoint cannot be downloaded ({error.reason}). Download it elsewhere, and name the file instead of '
            'the URL, in load_from or on the command line.'
        )
    except Exception as error:
        message = explain_build_error(error, args.config) or explain_broken_image(error)
        if message is None:
            raise
        fail(message)


def train() -> None:
    """Run MMDetection's ``tools/train.py`` with the command line of this program."""
    tool = load_installed('train.py')
    run(tool, parse_args(tool))
    close_cpu_processes()
