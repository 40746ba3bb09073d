"""Find boxes and areas for which MMDetection silently drops instances, and files of which nothing is left."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

import numpy as np

from embedmask_mmdet.engine.data_checks.findings import Finding, error, warning
from embedmask_mmdet.engine.data_checks.structure import locate, name_entries


def list_boxes(annotations: Sequence[dict]) -> np.ndarray:
    """Return the boxes of annotations, ``(n, 4)`` left, top, width and height."""
    return np.fromiter(chain.from_iterable(annotation['bbox'] for annotation in annotations), float).reshape(-1, 4)


def list_image_sizes(content: dict) -> np.ndarray:
    """Return ``(n, 2)`` width and height of the image of each annotation, infinite where it is not listed."""
    images = content['images']
    positions = {image['id']: position for position, image in enumerate(images)}
    sizes = np.array([*((image['width'], image['height']) for image in images), (np.inf, np.inf)], float)
    unknown = len(images)
    return sizes[[positions.get(annotation['image_id'], unknown) for annotation in content['annotations']]]


def find_normalized(boxes: np.ndarray) -> Iterator[Finding]:
    """Find coordinates that were divided by the size of the image."""
    if len(boxes) and np.abs(boxes).max() <= 1:
        yield error(
            'all values of "bbox" are between 0 and 1, so no instance is a pixel wide. Write pixels: multiply x of '
            'boxes and polygons by the width of the image, y by its height.'
        )


def find_dropped(annotations: list[dict], boxes: np.ndarray, image_sizes: np.ndarray) -> Iterator[Finding]:
    """Find instances that MMDetection leaves out of training because of their box or area."""
    areas = np.array([annotation['area'] for annotation in annotations], float)
    ends = np.minimum(boxes[:, :2] + boxes[:, 2:], image_sizes)
    outside = (ends <= np.maximum(boxes[:, :2], 0)).any(1)
    reasons = {
        'an "area" of 0 or less': areas <= 0,
        'a "bbox" that is narrower or lower than 1 pixel': (boxes[:, 2:] < 1).any(1),
        'a "bbox" outside of the image': outside & (boxes[:, 2:] >= 1).all(1),
    }
    for reason, is_dropped in reasons.items():
        wrong = np.flatnonzero(is_dropped).tolist()
        if not wrong:
            continue
        make = error if len(wrong) == len(annotations) else warning
        yield make(
            f'{len(wrong)} of {len(annotations)} annotations have {reason}, so they are not learned: '
            f'{name_entries(annotations, wrong)}. Correct them, for example with fill_in.py of docs/own-data.md.',
            **locate('annotations', annotations, wrong),
        )


def find_box_problems(content: dict, image_sizes: np.ndarray) -> list[Finding]:
    """Check the boxes and areas of an annotation file.

    Args:
        content: An annotation file with annotations, in which :func:`find_structure_problems` found no errors.
        image_sizes: Of :func:`list_image_sizes`.
    """
    boxes = list_boxes(content['annotations'])
    return list(find_normalized(boxes)) or list(find_dropped(content['annotations'], boxes, image_sizes))
