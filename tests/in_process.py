"""Run a script as if from a shell, but in this process, where what takes longest to import is there already."""

from __future__ import annotations

import contextlib
import io
import os
import runpy
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from unittest import mock


class Ran(NamedTuple):
    """What became of a script."""

    code: int
    stdout: str
    stderr: str


@contextlib.contextmanager
def working_folder(folder: Path) -> Iterator[None]:
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def run_script(script: Path, arguments: list[str], cwd: Path, **variables: str) -> Ran:
    """Run a Python script with arguments and return its exit code and output; a traceback counts as code 1."""
    script = Path(cwd, script)
    stdout, stderr, code = io.StringIO(), io.StringIO(), 0
    with (
        working_folder(cwd),
        mock.patch.dict(os.environ, variables),
        mock.patch.object(sys, 'argv', [str(script), *map(str, arguments)]),
        mock.patch.object(sys, 'path', [str(script.parent), *sys.path]),
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
    ):
        try:
            runpy.run_path(str(script), run_name='__main__')
        except SystemExit as end:
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except Exception:
            traceback.print_exc()
            code = 1
    return Ran(code, stdout.getvalue(), stderr.getvalue())
