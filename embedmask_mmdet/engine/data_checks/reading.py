"""Read an annotation file, and say what it is if it is not one in COCO's format."""

from __future__ import annotations

import json
from pathlib import Path

from embedmask_mmdet.errors import InputError

EXPORT = 'Export the annotations in COCO\'s format: one file with "images", "categories" and "annotations".'


def parse_json(content: bytes, path: str) -> object:
    """Parse JSON in UTF-8, with or without a byte order mark, or in UTF-16.

    Raises:
        InputError: If it is not JSON.
    """
    if not content.strip():
        raise InputError(f'{path} is empty. Export or copy it again.')
    try:
        return json.loads(content)
    except UnicodeDecodeError as problem:
        raise InputError(f'{path} is not encoded in UTF-8 ({problem.reason}). Save it as UTF-8.') from problem
    except json.JSONDecodeError as problem:
        raise InputError(
            f'{path} is not complete JSON: line {problem.lineno}, column {problem.colno}: {problem.msg}. Export or '
            'copy it again.'
        ) from problem
    except RecursionError as problem:
        raise InputError(f'{path} is not an annotation file: its JSON is nested too deeply. {EXPORT}') from problem


def describe_other_format(content: object) -> str | None:
    """Say what parsed JSON is if it cannot be an annotation file in COCO's format; None if it can."""
    if isinstance(content, list):
        if content and isinstance(content[0], dict) and 'score' in content[0]:
            return 'is a list of detections, not of annotations'
        return 'is a list at its top'
    if not isinstance(content, dict):
        return f'contains only {json.dumps(content)[:40]}'
    if 'shapes' in content and 'imagePath' in content:
        return 'is a labelme file of one image'
    if '_via_img_metadata' in content:
        return 'is a project of the VGG Image Annotator'
    missing = [key for key in ('images', 'categories') if key not in content]
    if missing:
        named = ' and '.join(f'"{key}"' for key in missing)
        return f'has no {named}'
    return None


def read_annotation_file(path: str | Path) -> dict:
    """Read an annotation file.

    Args:
        path: A local file.

    Returns:
        Its content, with "images" and "categories".

    Raises:
        FileNotFoundError: If there is no such file.
        InputError: If it is not in COCO's format.
    """
    try:
        with open(path, 'rb') as file:
            content = parse_json(file.read(), str(path))
    except IsADirectoryError as problem:
        raise InputError(f'{path} is a folder. Set ann_file to the annotation file in it.') from problem
    other = describe_other_format(content)
    if other:
        raise InputError(f'{path} {other}. {EXPORT}')
    return content
