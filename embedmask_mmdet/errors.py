"""Errors that a user can fix: the message names what is wrong and says what to do."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

MAX_NAMED = 5


class InputError(ValueError):
    """The config, the data and the checkpoint do not match."""


class CheckpointError(RuntimeError):
    """A checkpoint file cannot be loaded."""


def fail(message: str) -> NoReturn:
    """End the program with a message instead of a traceback."""
    sys.exit(f'{Path(sys.argv[0]).name}: error: {message}')


def name_some(items: Sequence) -> str:
    """List the first few items, and say how many there are in total if that is not all of them."""
    named = ', '.join(map(str, items[:MAX_NAMED]))
    return f'{named} ... ({len(items)} in total)' if len(items) > MAX_NAMED else named
