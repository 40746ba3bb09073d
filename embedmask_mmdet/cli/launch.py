"""Checks of the arguments that commands share, and how a command ends with an error."""

from __future__ import annotations

import difflib
import os
import re
import sys
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[2]
MAX_LISTED = 8


def fail(message: str) -> NoReturn:
    """End the program with a message instead of a traceback."""
    sys.exit(f'{Path(sys.argv[0]).name}: error: {message}')


def fail_missing(error: FileNotFoundError) -> NoReturn:
    """End the program with a message about a data file that does not exist."""
    if error.filename is None:  # raised with a complete message
        fail(str(error))
    fail(
        f'{error.filename} does not exist (working folder: {Path.cwd()}). Put or link the data there, or '
        'set data_root, ann_file and data_prefix of the dataloaders, and ann_file of the evaluators.'
    )


def check_config(config: str) -> None:
    """End the program if the config file does not exist; the message lists configs with similar names."""
    if Path(config).expanduser().is_file():
        return
    known = {path.name: path for path in sorted((ROOT / 'configs').rglob('*.py')) if '_base_' not in path.parts}
    similar = difflib.get_close_matches(Path(config).name, known, n=3, cutoff=0.5)
    listed = ''.join(f'\n  {known[name]}' for name in similar or known)
    hint = f' {"Did you mean" if similar else "Available configs"}:{listed}' if listed else ''
    fail(f'the config {config} does not exist.{hint}')


def check_checkpoint(checkpoint: str) -> None:
    """End the program if the checkpoint file does not exist; the message lists the checkpoints of its folder.

    URLs are not checked.
    """
    path = Path(checkpoint).expanduser()
    if re.match(r'\S+://', checkpoint) or path.is_file():
        return
    if not path.parent.is_dir():
        fail(f'the checkpoint {checkpoint} does not exist, nor does the folder {path.parent}.')
    files = sorted(path.parent.glob('*.pth'), key=os.path.getmtime)
    listed = ''.join(f'\n  {file}' for file in files[-MAX_LISTED:]) or ' no .pth files'
    fail(f'the checkpoint {checkpoint} does not exist. In {path.parent} there are:{listed}')
