"""Files and folders that appear complete or not at all, even if the process is killed while writing."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


def write_atomically(path: str | Path, content: bytes | str) -> None:
    """Write a file under a temporary name in its folder, then rename it.

    Args:
        path: Where to write. A file that is already there is replaced in one step.
        content: Bytes, or text that is encoded as UTF-8.

    Raises:
        OSError: If the file cannot be written.
    """
    path = Path(path)
    partial = path.with_name(f'.{path.name}.partial')
    with partial.open('wb') as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


@contextlib.contextmanager
def write_folder_atomically(path: str | Path) -> Iterator[Path]:
    """Give a new temporary folder to write to; rename it to `path` after the ``with`` block.

    The temporary folder is removed if the block raises an error. Folders above `path` are made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        partial = Path(scratch, path.name)
        partial.mkdir()
        yield partial
        shutil.move(partial, path)
