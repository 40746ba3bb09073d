"""Settings of ``configs/embedmask_own-data.py`` that follow from an annotation file, with their reasons."""

from __future__ import annotations

import json
import math
import os
import re
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from embedmask_mmdet.engine.data_checks.reading import read_annotation_file
from embedmask_mmdet.errors import InputError, name_some
from embedmask_mmdet.fileio import write_atomically
from embedmask_mmdet.locations import IN_REPOSITORY

# Pixels. COCO's input size is the limit. Objects should be this wide, but images are enlarged by this factor at most.
MAX_LONG, MAX_SHORT = 1333, 800
WANTED_SIDE, MAX_ENLARGEMENT = 32, 2
# Most objects below this width need finer levels than COCO's.
TINY_SIDE, BARELY_VISIBLE = 24, 10
SCALE_FACTORS = (0.8, 1, 1.2)
MULTIPLE = 16
COORD_SCALES = (8, 16, 32)
# COCO's mAP counts this many detections per image.
COCO_DETECTIONS = 100
EPOCHS, MIN_EPOCHS, MIN_ITERS, MAX_ITERS = 50, 12, 600, 12000
FEW_INSTANCES = 10
HEADER = '# Written by tools/misc/suggest_config.py, and yours to change. docs/own-data.md explains each step.'


class Suggestion(NamedTuple):
    """A setting, its value and the reason for it, which may be empty."""

    name: str
    value: Any
    reason: str

    def __str__(self) -> str:
        value = ', '.join(map(repr, self.value)) if ',' in self.name else repr(self.value)
        return f'{self.name} = {value}'


@dataclass
class Summary:
    """What an annotation file contains, without crowd regions.

    Attributes:
        file_names: Of the images.
        image_sizes: ``(N, 2)`` width and height in pixels.
        object_sides: ``(M,)`` square roots of the areas of boxes, in pixels.
        max_objects: Instances in the image that has most of them.
        classes: Instances of each category, in the order of the file.
    """

    file_names: list[str]
    image_sizes: np.ndarray
    object_sides: np.ndarray
    max_objects: int
    classes: dict[str, int]

    @property
    def used_classes(self) -> tuple[str, ...]:
        """Names of the categories that have instances."""
        return tuple(name for name, count in self.classes.items() if count)


def read_annotations(path: Path) -> dict[str, list]:
    """Read an annotation file in COCO's format.

    Raises:
        InputError: If it is not one.
    """
    try:
        content = read_annotation_file(path)
    except OSError as error:
        raise InputError(f'{path} cannot be read: {error.strerror}. Check the path.') from error
    if 'annotations' not in content:
        raise InputError(f'{path} has no "annotations", so nothing can be proposed. Export it with annotations.')
    return content


def summarize(path: Path) -> Summary:
    """Summarize an annotation file.

    Args:
        path: In COCO's format.

    Raises:
        InputError: If entries lack keys, or there are no instances.
    """
    content = read_annotations(path)
    sizes = [(_get(image, 'width', path), _get(image, 'height', path)) for image in content['images']]
    annotations = [annotation for annotation in content['annotations'] if not annotation.get('iscrowd')]
    sides = np.array([compute_side(annotation, path) for annotation in annotations])
    if not sides.any():
        raise InputError(f'{path} has no instance with a box. Check that the export contains masks and boxes.')
    if sides.max() <= 1:
        raise InputError(f'No box of {path} is larger than 1 pixel. Convert normalized coordinates to pixels.')
    per_image = Counter(_get(annotation, 'image_id', path) for annotation in annotations)
    per_category = Counter(_get(annotation, 'category_id', path) for annotation in annotations)
    classes = Counter()
    for category in content['categories']:
        classes[_get(category, 'name', path)] += per_category[_get(category, 'id', path)]
    file_names = [_get(image, 'file_name', path) for image in content['images']]
    return Summary(file_names, np.array(sizes, float), sides, max(per_image.values()), dict(classes))


def compute_side(annotation: dict, path: Path) -> float:
    """Compute the square root of the area of an instance's box.

    Raises:
        InputError: If the box is missing or not four numbers.
    """
    box = _get(annotation, 'bbox', path)
    is_box = isinstance(box, list) and len(box) == 4 and all(isinstance(value, (int, float)) for value in box)
    if not is_box or not np.isfinite(box).all():
        raise InputError(f'Annotation {annotation.get("id")} of {path} has the bbox {box}. Correct or remove it.')
    return math.sqrt(max(box[2], 0) * max(box[3], 0))


def _get(entry: dict, key: str, path: Path) -> Any:
    if entry.get(key) is None:
        shown = f'{json.dumps(entry)[:80]} ...'
        raise InputError(f'{path} has an entry without "{key}": {shown} Add it; docs/own-data.md has a program for it.')
    return entry[key]


def check_images(summary: Summary, folder: Path, path: Path) -> None:
    """Check that the images of an annotation file are in a folder.

    Raises:
        InputError: If the folder or an image is missing.
    """
    if not folder.is_dir():
        raise InputError(f'The image folder {folder} does not exist. Name the folder of the images with --images.')
    missing = [name for name in summary.file_names if not (folder / name).is_file()]
    if missing:
        raise InputError(
            f'{len(missing)} of {len(summary.file_names)} images of {path} are not in {folder}: {name_some(missing)}. '
            'Name the folder that "file_name" is relative to.'
        )


def suggest(summary: Summary, size: str) -> list[Suggestion]:
    """Propose settings.

    Args:
        summary: Of the training data.
        size: ``small`` or ``r50``.
    """
    size_reason = dict(
        small='from scratch, also without a GPU; with a GPU and COCO weights, try --size r50',
        r50='needs a GPU; start from COCO weights, see load_from',
    )
    return [
        suggest_classes(summary),
        Suggestion('size', size, size_reason[size]),
        *suggest_input(summary),
        suggest_detections(summary),
        *suggest_schedule(summary),
    ]


def suggest_classes(summary: Summary) -> Suggestion:
    """Take the categories that have instances."""
    reason = f'{len(summary.used_classes)} of {len(summary.classes)} categories have instances'
    rare = [f'{name} ({count})' for name, count in summary.classes.items() if 0 < count < FEW_INSTANCES]
    if rare:
        reason += f'; fewer than {FEW_INSTANCES}, which is hard to learn: {name_some(rare)}'
    return Suggestion('classes', summary.used_classes, reason)


def suggest_input(summary: Summary) -> list[Suggestion]:
    """Propose the sizes that images are resized to, and the levels and coordinates for objects of that size."""
    long_side, short_side = np.median(summary.image_sizes.max(axis=1)), np.median(summary.image_sizes.min(axis=1))
    side, small_side = np.quantile(summary.object_sides, [0.5, 0.1])
    limit = min(MAX_LONG / long_side, MAX_SHORT / short_side)
    factor = min(max(1, min(WANTED_SIDE / side, MAX_ENLARGEMENT)), limit)
    after, small_after = side * factor, small_side * factor
    test_scale = _round_scale(long_side * factor, short_side * factor)
    reason = (
        f'images are {long_side:.0f} x {short_side:.0f} (median), objects {side:.0f} pixels wide (median) and '
        f'{after:.0f} after resizing'
    )
    if small_after < BARELY_VISIBLE:
        reason += f'; a tenth is below {small_after:.0f} pixels, so cut images into tiles or expect to miss these'
    finest_stride, compared = (4, 'below') if after < TINY_SIDE else (8, 'at least')
    scales = [_round_scale(long_side * factor * each, short_side * factor * each) for each in SCALE_FACTORS]
    coord_scale = min(COORD_SCALES, key=lambda scale: abs(math.log2(after / scale)))
    return [
        Suggestion('test_scale', test_scale, reason),
        Suggestion('scales', scales, 'test_scale and a fifth below and above it'),
        Suggestion(
            'finest_stride', finest_stride, f'half of the objects are {compared} {TINY_SIDE} pixels wide after resizing'
        ),
        Suggestion('coord_scale', coord_scale, f'objects are {after:.0f} pixels wide after resizing'),
    ]


def _round_scale(long_side: float, short_side: float) -> tuple[int, int]:
    return tuple(max(MULTIPLE, round(side / MULTIPLE) * MULTIPLE) for side in (long_side, short_side))


def suggest_detections(summary: Summary) -> Suggestion:
    """Propose more detections than there are objects in any image."""
    count = max(COCO_DETECTIONS, math.ceil(1.25 * summary.max_objects / 50) * 50)
    reason = f'the image with most instances has {summary.max_objects}'
    if summary.max_objects > COCO_DETECTIONS:
        reason += f"; COCO's mAP counts only the best {COCO_DETECTIONS}, so tiles give better figures"
    return Suggestion('max_per_img', count, reason)


def suggest_schedule(summary: Summary) -> list[Suggestion]:
    """Propose the batch size and iterations."""
    batch_size, num_images = 4, len(summary.file_names)
    most = max(MAX_ITERS, MIN_EPOCHS * num_images / batch_size)
    max_iters = round(min(max(EPOCHS * num_images / batch_size, MIN_ITERS), most), -2)
    epochs = max_iters * batch_size / num_images
    return [
        Suggestion('batch_size', batch_size, 'halve it if memory runs out'),
        Suggestion(
            'max_iters',
            int(max_iters),
            f'each of {num_images} images is seen {epochs:.0f} times; more if AP still rises',
        ),
    ]


def suggest_files(train: Path, images: Path, val: Path | None, val_images: Path | None) -> list[Suggestion]:
    """Set the paths of the data, relative to the folder that has all of them."""
    paths = [train, images, val or train, val_images or images]
    root = Path(os.path.commonpath([path.absolute() for path in paths]))
    train_file, train_dir, val_file, val_dir = (path.absolute().relative_to(root).as_posix() for path in paths)
    shown = root if any(path.is_absolute() for path in paths) else Path(os.path.relpath(root))
    reason = '' if val else 'there is no validation file, so AP is that of the training images, which says little'
    return [
        Suggestion('data_root', f'{shown.as_posix()}/', ''),
        Suggestion('train_ann_file, train_images', (train_file, f'{train_dir}/'), ''),
        Suggestion('val_ann_file, val_images', (val_file, f'{val_dir}/'), reason),
    ]


def name_base(config: Path, folder: Path) -> str:
    """Name a config of this package for ``_base_`` of one in a folder: by its path or, if installed, by package."""
    if not IN_REPOSITORY:
        return f'embedmask_mmdet::embedmask/{config.name}'
    return Path(os.path.relpath(config, folder)).as_posix()


def write_config(template: Path, out: Path, suggestions: Sequence[Suggestion]) -> None:
    """Write a copy of the template with other settings, each with its reason.

    Args:
        template: ``configs/embedmask_own-data.py``.
        out: New file.
        suggestions: Settings that the template has.

    Raises:
        InputError: If the file exists.
    """
    if out.exists():
        raise InputError(f'{out} exists and was not changed. Choose another name for --out.')
    _, start, rest = template.read_text().partition('\n_base_')
    text = f'{HEADER}{start}{rest}'
    base = re.search(r"^_base_ = '(.+)'$", text, re.MULTILINE)
    base_path = name_base(template.parent / base[1], out.absolute().parent)
    text = text.replace(base[0], f'_base_ = {base_path!r}')
    for suggestion in suggestions:
        line = re.search(rf'^{re.escape(suggestion.name)} = .*$', text, re.MULTILINE)
        comment = textwrap.fill(suggestion.reason, 118, initial_indent='# Here: ', subsequent_indent='# ')
        lines = '\n'.join(filter(None, (comment, str(suggestion))))
        text = f'{text[: line.start()]}{lines}{text[line.end() :]}'
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, text)
