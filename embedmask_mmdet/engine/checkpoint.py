"""Load MMEngine's checkpoints with torch's safe unpickler, and explain why a file cannot be loaded.

Since torch 2.6, ``torch.load`` builds objects of known classes only. MMEngine's checkpoints also hold the history of
logged values, and this module allows only the classes of that history in addition.
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

from embedmask_mmdet.engine.design import get_classes
from embedmask_mmdet.errors import CheckpointError
from embedmask_mmdet.models.weights import CLASSES_KEY

HISTORY_METHODS = ('min', 'max', 'mean', 'current')
SAFE_BY_DEFAULT = digit_version(torch.__version__) >= digit_version('2.6.0')
ZIP_MAGIC = b'PK\x03\x04'
MAX_ALTERNATIVES = 8


def get_history_method(owner: type, name: str) -> Callable:
    """Replace ``getattr`` in a checkpoint's pickle, where it looks up the methods of HistoryBuffer.

    Raises:
        pickle.UnpicklingError: For any other attribute.
    """
    if owner is HistoryBuffer and isinstance(name, str) and name in HISTORY_METHODS:
        return getattr(HistoryBuffer, name)
    raise pickle.UnpicklingError(f'GLOBAL builtins.getattr is only allowed for {HISTORY_METHODS} of HistoryBuffer')


def _list_numpy_globals() -> list[Any]:
    """List the classes and functions in pickles of numpy arrays and numbers, under the names of numpy 1 and 2."""
    functions = (np.empty(0).__reduce__()[0], np.float64(0).__reduce__()[0])
    renamed = [
        (function, f'numpy.{core}.multiarray.{function.__name__}')
        for function in functions
        for core in ('core', '_core')
    ]
    dtypes = {type(np.dtype(code)) for code in np.typecodes['AllInteger'] + np.typecodes['AllFloat'] + '?'}
    return [np.ndarray, np.dtype, *renamed, *dtypes]


def allow_mmengine_checkpoints() -> None:
    """Allow ``torch.load(..., weights_only=True)`` to load the checkpoints that MMEngine writes.

    Does nothing before torch 2.6, where the safe unpickler is not the default and accepts no replaced functions.
    """
    if SAFE_BY_DEFAULT:
        history = (get_history_method, 'builtins.getattr')
        torch.serialization.add_safe_globals([HistoryBuffer, history, *_list_numpy_globals()])


def _load(path: Path, map_location: Any) -> Any:
    """Load a file, with the safe unpickler if torch has one that loads MMEngine's checkpoints."""
    if not SAFE_BY_DEFAULT:
        return torch.load(path, map_location=map_location)
    # Again at each call, because the onedl fork of MMEngine removes classes from torch's list.
    allow_mmengine_checkpoints()
    return torch.load(path, map_location=map_location, weights_only=True)


def _list_alternatives(path: Path) -> str:
    """Name the newest checkpoints in a file's folder."""
    folder = path.parent
    if not folder.is_dir():
        return f'The folder {folder} does not exist either.'
    checkpoints = sorted((file for file in folder.glob('*.pth') if file.is_file()), key=os.path.getmtime)
    names = ', '.join(file.name for file in checkpoints[-MAX_ALTERNATIVES:])
    return f'Checkpoints in {folder}: {names or "none"}.'


def explain_failure(path: Path, error: Exception) -> str:
    """Explain why an existing file cannot be loaded, and what to do.

    Args:
        path: The file.
        error: The error that :func:`torch.load` raised.
    """
    if refused := _find_refused_class(error):
        return (
            f'The checkpoint {path} needs {refused}, which could run code, so it was not loaded. Weights do not need '
            'it: if you trust the source, allow it with torch.serialization.add_safe_globals; otherwise ask for a file '
            "that was saved with torch.save({'state_dict': model.state_dict()}, ...)."
        )
    if damage := _find_damage(path):
        return (
            f'The checkpoint {path} {damage}. Training was probably stopped while writing it, the disk was full, or a '
            f'copy is incomplete: copy it again, or use an earlier one. {_list_alternatives(path)}'
        )
    if _is_torch_file(path):
        return f'The checkpoint {path} could not be loaded: {error}'
    return (
        f'{path} is not a checkpoint: torch.save did not write it, or only a part of it. Choose a .pth file that '
        f'training wrote to its work_dir. {_list_alternatives(path)}'
    )


def _find_refused_class(error: Exception) -> str | None:
    """Return the name of the class or function that the safe unpickler refused, if that was the error."""
    refused = re.search(r'GLOBAL (\S+)', str(error)) if isinstance(error, pickle.UnpicklingError) else None
    return refused[1] if refused else None


def _find_damage(path: Path) -> str | None:
    """Describe how a file is damaged; None if it is complete, or does not begin like a checkpoint."""
    size = path.stat().st_size
    if size == 0:
        return 'is empty'
    with path.open('rb') as file:
        is_zip = file.read(len(ZIP_MAGIC)) == ZIP_MAGIC
    if is_zip and not zipfile.is_zipfile(path):
        return f'is truncated ({size} bytes)'
    broken_part = zipfile.ZipFile(path).testzip() if _is_torch_file(path) else None
    return f'is damaged in {broken_part}' if broken_part else None


def _is_torch_file(path: Path) -> bool:
    """Return whether a file is a complete zip file as ``torch.save`` writes them."""
    return zipfile.is_zipfile(path) and any(name.endswith('data.pkl') for name in zipfile.ZipFile(path).namelist())


def _holds_weights(checkpoint: Any) -> bool:
    """Return whether there is a tensor where MMEngine looks for weights."""
    if not isinstance(checkpoint, Mapping):
        return False
    weights = checkpoint.get('state_dict', checkpoint)
    return isinstance(weights, Mapping) and any(isinstance(value, torch.Tensor) for value in weights.values())


@CheckpointLoader.register_scheme(prefixes='', force=True)
def load_from_local(filename: str, map_location: Any = None) -> Mapping:
    """Load a checkpoint from a local file for MMEngine, with errors that name the file and say what to do.

    Args:
        filename: Path of the file. It may start with ``~``.
        map_location: As for :func:`torch.load`.

    Returns:
        The mapping in the file, either with ``state_dict`` or of the weights themselves.

    Raises:
        FileNotFoundError: If the file does not exist.
        CheckpointError: If the file is empty, truncated, not a checkpoint, without weights, or needs a class that the
            safe unpickler refuses.
    """
    path = Path(filename).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f'The checkpoint {path} does not exist. {_list_alternatives(path)}')
    try:
        checkpoint = _load(path, map_location)
    except (torch.cuda.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # the unpickler can raise almost anything on bytes that are not a pickle
        raise CheckpointError(explain_failure(path, error)) from error
    if not _holds_weights(checkpoint):
        raise CheckpointError(
            f'The file {path} holds no weights: neither it nor its "state_dict" is a dict with tensors. Choose '
            f'another file. {_list_alternatives(path)}'
        )
    note_classes(checkpoint)
    return checkpoint


def note_classes(checkpoint: Mapping) -> None:
    """Write the names of a checkpoint's classes into the metadata of its weights, which is all that a model gets."""
    classes = get_classes(checkpoint.get('meta') or {})
    metadata = getattr(checkpoint.get('state_dict'), '_metadata', None)
    if classes and metadata is not None:
        metadata.setdefault('', {})[CLASSES_KEY] = classes


allow_mmengine_checkpoints()
