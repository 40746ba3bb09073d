"""The packages that only the export needs."""

from __future__ import annotations

import importlib
from types import ModuleType

from embedmask_mmdet.errors import InputError


def import_optional(name: str) -> ModuleType:
    """Import a package that is not among the requirements.

    Raises:
        InputError: If it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(
            f'{name} cannot be imported ({error}). Install it with `pip install onnx onnxruntime`.'
        ) from error
