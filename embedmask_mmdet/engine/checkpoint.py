"""Loading the checkpoints that MMEngine writes with torch's safe unpickler, and saying what is wrong with a bad one.

Since torch 2.6 ``torch.load`` builds only objects of known classes. MMEngine's checkpoints also hold the history of
the logged values, which is all that is added here.
"""

from __future__ import annotations

import os
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.logging.history_buffer import HistoryBuffer
from mmengine.runner.checkpoint import CheckpointLoader
from mmengine.utils import digit_version

from embedmask_mmdet.errors import CheckpointError

HISTORY_METHODS = ('min', 'max', 'mean', 'current')
SAFE_BY_DEFAULT = digit_version(torch.__version__) >= digit_version('2.6.0')
ZIP_MAGIC = b'PK\x03\x04'


def get_history_method(owner: type, name: str) -> Callable:
    """Stand in for ``getattr`` in a checkpoint's pickle, which names the methods of HistoryBuffer by it.

    Raises:
        pickle.UnpicklingError: For any other attribute.
    """
    if owner is HistoryBuffer and isinstance(name, str) and name in HISTORY_METHODS:
        return getattr(HistoryBuffer, name)
    raise pickle.UnpicklingError(f'GLOBAL builtins.getattr is allowed for {HISTORY_METHODS} of HistoryBuffer only')


def _numpy_globals() -> list[Any]:
    """List what a pickled numpy array or number consists of, under the names of numpy 1 and 2."""
    functions = (np.empty(0).__reduce__()[0], np.float64(0).__reduce__()[0])
    renamed = [
        (function, f'numpy.{core}.multiarray.{function.__name__}')
        for function in functions
        for core in ('core', '_core')
    ]
    dtypes = {type(np.dtype(code)) for code in np.typecodes['AllInteger'] + np.typecodes['AllFloat'] + '?'}
    return [np.ndarray, np.dtype, *renamed, *dtypes]


def allow_mmengine_checkpoints() -> None:
    """Let ``torch.load(..., weights_only=True)`` read what MMEngine's training writes.

    Before torch 2.6 the safe unpickler was no default and took no named stand-ins, so nothing is done there.
    """
    if SAFE_BY_DEFAULT:
        history = (get_history_method, 'builtins.getattr')
        torch.serialization.add_safe_globals([HistoryBuffer, history, *_numpy_globals()])


def _load(path: Path, map_location: Any) -> Any:
    """Load a file with the safe unpickler wherever torch has one that reads MMEngine's checkpoints.

    MMEngine's own function is not asked: its fork takes classes off torch's list and falls back to the unsafe one.
    """
    if not SAFE_BY_DEFAULT:
        return torch.load(path, map_location=map_location)
    allow_mmengine_checkpoints()
    return torch.load(path, map_location=map_location, weights_only=True)


def _find_alternatives(path: Path) -> str:
    """Name the checkpoints that lie where one was looked for."""
    folder = path.parent
    if not folder.is_dir():
        return f'There is no folder {folder} either.'
    found = sorted((file for file in folder.glob('*.pth') if file.is_file()), key=os.path.getmtime)
    return f'In {folder} there are: {", ".join(file.name for file in found[-8:]) or "no .pth files"}.'


def explain_failure(path: Path, error: Exception) -> str:
    """Say why a file that is there did not load, from what torch raised, and what to do about it."""
    damaged = (
        'It was probably being written when training was stopped, or the disk was full, or a copy of it is '
        f'incomplete. Copy it again or use an earlier one. {_find_alternatives(path)}'
    )
    if path.stat().st_size == 0:
        return f'The checkpoint {path} is empty. {damaged}'
    with path.open('rb') as file:
        is_zip = file.read(len(ZIP_MAGIC)) == ZIP_MAGIC
    refused = re.search(r'GLOBAL (\S+)', str(error)) if isinstance(error, pickle.UnpicklingError) else None
    if refused:
        return (
            f'The checkpoint {path} asks for {refused[1]}, which is not needed to load weights and could run code, '
            'so it was not loaded. If you trust its source, allow that one class with '
            'torch.serialization.add_safe_globals before loading; otherwise save the weights again with '
            "torch.save({'state_dict': model.state_dict()}, ...)."
        )
    if is_zip and not zipfile.is_zipfile(path):
        return f'The checkpoint {path} is truncated ({path.stat().st_size} bytes). {damaged}'
    if is_zip and any(name.endswith('data.pkl') for name in zipfile.ZipFile(path).namelist()):
        broken_part = zipfile.ZipFile(path).testzip()
        reason = f'is damaged in {broken_part}. {damaged}' if broken_part else f'could not be loaded: {error}'
        return f'The checkpoint {path} {reason}'
    return (
        f'{path} is not a checkpoint, or only a part of one: it is not a file that torch.save writes. '
        f'Pass the .pth file that training wrote to its work_dir. {_find_alternatives(path)}'
    )


def _holds_weights(checkpoint: Any) -> bool:
    """Tell whether there is a tensor where MMEngine looks for the weights."""
    if not isinstance(checkpoint, Mapping):
        return False
    weights = checkpoint.get('state_dict', checkpoint)
    return isinstance(weights, Mapping) and any(isinstance(value, torch.Tensor) for value in weights.values())


@CheckpointLoader.register_scheme(prefixes='', force=True)
def load_from_local(filename: str, map_location: Any = None) -> Mapping:
    """Load a checkpoint file as MMEngine does, with errors that name the file and say what to do.

    Args:
        filename: Path, ``~`` allowed.
        map_location: As for :func:`torch.load`.

    Returns:
        What :func:`torch.load` gives: a mapping with ``state_dict``, or the weights themselves.

    Raises:
        FileNotFoundError: The file does not exist.
        CheckpointError: The file is empty, truncated, no checkpoint, holds no weights, or asks for a class that
            the safe unpickler refuses.
    """
    path = Path(filename).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f'The checkpoint {path} does not exist. {_find_alternatives(path)}')
    try:
        checkpoint = _load(path, map_location)
    except (torch.cuda.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # the unpickler raises nearly anything on bytes that are no pickle
        raise CheckpointError(explain_failure(path, error)) from error
    if not _holds_weights(checkpoint):
        raise CheckpointError(
            f'The file {path} was loaded, but holds no weights: a dict of tensors, or one under "state_dict", '
            f'is expected. {_find_alternatives(path)}'
        )
    return checkpoint


allow_mmengine_checkpoints()
