"""Sections of Markdown files that commands write and replace."""

from __future__ import annotations

import re
from pathlib import Path

from embedmask_mmdet.fileio import write_atomically


def write_section(path: Path, title: str, text: str, page_title: str = 'Benchmarks') -> None:
    """Write a section of a Markdown file. A section that has the same title is replaced.

    Args:
        path: The file. If it does not exist, it is created with its folder.
        title: Title of the section, without ``##``.
        text: Content of the section.
        page_title: Title of the page if it is created.
    """
    content = path.read_text() if path.exists() else f'# {page_title}\n\n'
    parts = re.split(r'^(?=## )', content, flags=re.MULTILINE)
    section = f'## {title}\n\n{text.strip()}\n'
    replaced = [i for i, part in enumerate(parts) if part.startswith(f'## {title}\n')]
    if replaced:
        parts[replaced[0]] = section if replaced[0] == len(parts) - 1 else section + '\n'
    else:
        parts.append(('' if parts[-1].endswith('\n\n') else '\n') + section)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, ''.join(parts))
