"""Operators that a device may lack: mmcv and the extension can be built without those for GPUs."""

from __future__ import annotations

import re

from embedmask_mmdet import ops
from embedmask_mmdet.errors import InputError


def read_last_line(error: Exception) -> str:
    """Return the last line of an error's message, with the name of its class."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f'{type(error).__name__}: {lines[-1]}' if lines else type(error).__name__


def explain_failure(name: str, error: Exception) -> str:
    """Say in a sentence why one of MMDetection's models is left out of a table.

    Args:
        name: The model.
        error: What its run ended with.
    """
    match = re.search(r'(\w+?)(?:_impl)?: implementation for device \S+ not found', str(error))
    reason = f'mmcv was built without its operator {match[1]} for this device' if match else read_last_line(error)
    return f'{name} is left out: {reason.rstrip(".")}.'


def check_kernels(device: str) -> None:
    """Check that the extension has kernels for a device.

    Raises:
        InputError: If it has none.
    """
    name = device.partition(':')[0]
    if ops.kernels is None or name not in ops.kernels.DEVICES:
        raise InputError(f"the extension has no kernels for '{name}'. Build it first, see setup.py.")
