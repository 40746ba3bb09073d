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

import torch
from mmengine.utils import ManagerMixin


class Ran(NamedTuple):
    """What became of a script."""

    code: int
    stdout: str
    stderr: str

    @property
    def returncode(self) -> int:
        """The code under the name that it has in ``subprocess``."""
        return self.code


def managers() -> Iterator[type]:
    """Yield MMEngine's classes that keep named instances for a whole process."""
    classes = [ManagerMixin]
    while classes:
        yield classes[-1]
        classes += classes.pop().__subclasses__()


@contextlib.contextmanager
def like_a_process(folder: Path) -> Iterator[None]:
    """Work in a folder, with nothing kept from what ran before and nothing left to what runs after."""
    before, num_threads = os.getcwd(), torch.get_num_threads()
    with contextlib.ExitStack() as stack:
        stack.callback(os.chdir, before)
        stack.callback(torch.set_num_threads, num_threads)
        stack.enter_context(mock.patch.dict(os.environ))
        stack.enter_context(mock.patch.object(sys, 'path', list(sys.path)))
        for manager in managers():
            stack.enter_context(mock.patch.dict(manager._instance_dict, clear=True))
        os.chdir(folder)
        yield


def run_script(script: Path, arguments: list[str], cwd: Path, **variables: str) -> Ran:
    """Run a Python script with arguments and return its exit code and output; a traceback counts as code 1."""
    script = Path(cwd, script)
    stdout, stderr, code = io.StringIO(), io.StringIO(), 0
    with (
        like_a_process(cwd),
        mock.patch.object(sys, 'argv', [str(script), *map(str, arguments)]),
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
    ):
        os.environ.update(variables)
        sys.path.insert(0, str(script.parent))
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
