"""Files that appear complete or not at all, even if the process is killed while writing."""

from __future__ import annotations

import os
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
