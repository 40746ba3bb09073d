"""Check the masks of an annotation file: polygons and run lengths that pycocotools would die of, or misread.

An instance's mask is a list of polygons ``[[x, y, x, y, ...], ...]``, or a run length ``{"size", "counts"}``. Missing
masks are found elsewhere, where it is known which classes are used.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import chain
from typing import NamedTuple

import numpy as np
from pycocotools import mask as mask_utils

from embedmask_mmdet.engine.data_checks.boxes import list_boxes
from embedmask_mmdet.engine.data_checks.findings import Finding, error, warning
from embedmask_mmdet.engine.data_checks.structure import NUMBER, locate, name_entries

CHUNK = 20_000  # annotations whose polygons are in memory at once as arrays
MAX_COORDINATE = 1e6  # pixels; pycocotools allocates memory for each pixel of an outline
MIN_VALUES = 6  # of a polygon: three points
NUM_DECODED = 200  # run lengths; decoding all would take too long
TOLERANCE = 2  # pixels that outlines may be beyond the image or the box
EXPORT_POLYGONS = 'Write polygons as [[x, y, x, y, ...], ...]'


def is_usable(piece: list) -> bool:
    """Return whether a polygon has three points or more, as MMDetection requires in training."""
    return len(piece) >= MIN_VALUES and len(piece) % 2 == 0


def describe_malformed(mask: object) -> str | None:
    """Say what is wrong with the structure of a mask; None if nothing is."""
    if not isinstance(mask, (list, dict)):
        return f'is neither polygons nor a run length. {EXPORT_POLYGONS}'
    if isinstance(mask, dict):
        return describe_malformed_rle(mask)
    kinds = set(map(type, mask))
    if kinds <= {list}:
        kinds = set(map(type, chain.from_iterable(mask)))
        if kinds <= NUMBER:
            return None
        if list in kinds or dict in kinds:
            return f'has a list for each point. {EXPORT_POLYGONS}'
        return f'has coordinates that are not numbers. {EXPORT_POLYGONS}'
    if kinds <= NUMBER:
        return 'is one list of numbers, not a list of polygons. Write another pair of brackets around it'
    return f'is not a list of polygons. {EXPORT_POLYGONS}'


def describe_malformed_rle(rle: dict) -> str | None:
    """Say what is wrong with the structure of a run length that has any keys; None if nothing is."""
    size, counts = rle.get('size'), rle.get('counts')
    if not rle:
        return None  # counts as a missing mask
    if not (isinstance(size, list) and len(size) == 2 and set(map(type, size)) <= {int}):
        return 'has no "size": [height, width]. Add it'
    if isinstance(counts, str) and counts:
        return None
    if not (isinstance(counts, list) and counts and set(map(type, counts)) <= {int}):
        return 'has no "counts". Export the run length again'
    if min(counts) < 0 or sum(counts) != size[0] * size[1]:
        return f'has "counts" whose sum is not height x width. Export the run length again ({size[0]} x {size[1]})'
    return None


def are_polygons(masks: list) -> bool:
    """Return whether all masks are lists of lists of numbers."""
    return (
        set(map(type, masks)) <= {list}
        and set(map(type, chain.from_iterable(masks))) <= {list}
        and set(map(type, chain.from_iterable(chain.from_iterable(masks)))) <= NUMBER
    )


def iterate_malformed(annotations: list[dict]) -> Iterator[tuple[int, str]]:
    """Yield the index of each mask of a wrong structure, and what is wrong with it."""
    for first in range(0, len(annotations), CHUNK):
        masks = [annotation.get('segmentation') for annotation in annotations[first : first + CHUNK]]
        # One look at many masks is faster than many looks at one.
        fine = are_polygons([mask for mask in masks if mask and not isinstance(mask, dict)])
        for index, mask in enumerate(masks, start=first):
            problem = describe_malformed(mask) if mask and not (fine and isinstance(mask, list)) else None
            if problem:
                yield index, problem


def find_malformed(annotations: list[dict]) -> Iterator[Finding]:
    """Find masks of a wrong structure; one finding for each kind of mistake."""
    by_problem: dict[str, list[int]] = {}
    for index, problem in iterate_malformed(annotations):
        by_problem.setdefault(problem, []).append(index)
    for problem, wrong in by_problem.items():
        what, _, advice = problem.partition('. ')
        yield error(
            f'"segmentation" {what}: annotations {name_entries(annotations, wrong)}. {advice}.',
            **locate('annotations', annotations, wrong),
        )


def find_short_polygons(annotations: list[dict]) -> Iterator[Finding]:
    """Find polygons with fewer than three points, which are left out."""
    wrong = [
        index
        for index, annotation in enumerate(annotations)
        if isinstance(annotation.get('segmentation'), list) and not all(map(is_usable, annotation['segmentation']))
    ]
    if wrong:
        yield warning(
            f'polygons with fewer than three points, or with an odd number of coordinates, are left out in training '
            f'and evaluation: annotations {name_entries(annotations, wrong)}. Remove or redraw them.',
            **locate('annotations', annotations, wrong),
        )


class Outlines(NamedTuple):
    """Smallest and largest coordinates of some instances' polygons.

    Attributes:
        indexes: ``(n,)`` of the annotations.
        low: ``(n, 2)`` smallest x and y.
        high: ``(n, 2)`` largest x and y; NaN or infinite if a coordinate is.
    """

    indexes: np.ndarray
    low: np.ndarray
    high: np.ndarray


def measure_outlines(annotations: list[dict], first: int = 0) -> Outlines:
    """Measure the usable polygons of annotations.

    Args:
        annotations: With well-formed masks.
        first: Index of the first annotation.
    """
    indexes, lengths, pieces = [], [], []
    for index, annotation in enumerate(annotations, start=first):
        mask = annotation.get('segmentation')
        usable = list(filter(is_usable, mask)) if isinstance(mask, list) else None
        if usable:
            indexes.append(index)
            lengths.append(sum(map(len, usable)) // 2)
            pieces += usable
    if not indexes:
        return Outlines(np.zeros(0, int), np.zeros((0, 2)), np.zeros((0, 2)))
    points = np.fromiter(chain.from_iterable(pieces), float).reshape(-1, 2)
    starts = np.cumsum([0, *lengths[:-1]])
    return Outlines(np.array(indexes), np.minimum.reduceat(points, starts), np.maximum.reduceat(points, starts))


def measure_all_outlines(annotations: list[dict]) -> Outlines:
    """Measure polygons piece by piece, so that memory stays small."""
    parts = [measure_outlines(annotations[first : first + CHUNK], first) for first in range(0, len(annotations), CHUNK)]
    return Outlines(*map(np.concatenate, zip(*parts)))


def find_wild_coordinates(annotations: list[dict], outlines: Outlines) -> Iterator[Finding]:
    """Find coordinates that are NaN, infinite, or so large that pycocotools would use up all memory."""
    largest = np.maximum(np.abs(outlines.low), np.abs(outlines.high)).max(1)
    wrong = outlines.indexes[~(largest <= MAX_COORDINATE)].tolist()
    if wrong:
        yield error(
            f'polygons have coordinates that are NaN, infinite or above {MAX_COORDINATE:.0f}: annotations '
            f'{name_entries(annotations, wrong)}. Redraw or remove them.',
            **locate('annotations', annotations, wrong),
        )


def find_outlines_beyond_images(
    annotations: list[dict], outlines: Outlines, image_sizes: np.ndarray
) -> Iterator[Finding]:
    """Find polygons that extend beyond their image, as after images were resized but annotations were not."""
    sizes = image_sizes[outlines.indexes]
    beyond = (outlines.high > 1.05 * sizes + TOLERANCE) | (outlines.low < -0.05 * sizes - TOLERANCE)
    wrong = outlines.indexes[beyond.any(1)].tolist()
    if wrong:
        yield warning(
            f'{len(wrong)} of {len(annotations)} annotations have polygons beyond their image: '
            f'{name_entries(annotations, wrong)}. If the images were resized or rotated after labelling, export the '
            'annotations again.',
            **locate('annotations', annotations, wrong),
        )


def find_flat_outlines(annotations: list[dict], outlines: Outlines) -> Iterator[Finding]:
    """Find polygons on one horizontal or vertical line, whose masks are empty."""
    wrong = outlines.indexes[(outlines.high <= outlines.low).any(1)].tolist()
    if wrong:
        make = error if len(wrong) == len(annotations) else warning
        yield make(
            f'{len(wrong)} of {len(annotations)} annotations have polygons without area: '
            f'{name_entries(annotations, wrong)}. Redraw or remove them.',
            **locate('annotations', annotations, wrong),
        )


def find_boxes_apart_from_outlines(annotations: list[dict], outlines: Outlines) -> Iterator[Finding]:
    """Find files in which boxes are in general not around the polygons."""
    if not len(outlines.indexes):
        return
    boxes = list_boxes([annotations[index] for index in outlines.indexes])
    apart = np.maximum(np.abs(boxes[:, :2] - outlines.low), np.abs(boxes[:, :2] + boxes[:, 2:] - outlines.high))
    wrong = outlines.indexes[(apart > TOLERANCE + 0.1 * (outlines.high - outlines.low)).any(1)].tolist()
    if len(wrong) > 0.1 * len(outlines.indexes):
        yield warning(
            f'{len(wrong)} of {len(outlines.indexes)} annotations have a "bbox" that is not around their polygons: '
            f'{name_entries(annotations, wrong)}. "bbox" is [left, top, width, height] in pixels; fill_in.py of '
            'docs/own-data.md computes it.',
            **locate('annotations', annotations, wrong),
        )


def find_rles_of_other_sizes(content: dict) -> Iterator[Finding]:
    """Find run lengths whose size is not that of their image; detections would never overlap with them."""
    annotations = content['annotations']
    sizes = {image['id']: [image['height'], image['width']] for image in content['images']}
    wrong = []
    for index, annotation in enumerate(annotations):
        mask = annotation.get('segmentation')
        if isinstance(mask, dict) and mask and mask['size'] != sizes.get(annotation['image_id'], mask['size']):
            wrong.append(index)
    if wrong:
        first = annotations[wrong[0]]
        size, image_size = first['segmentation']['size'], sizes[first['image_id']]
        swapped = ' Height and width are swapped.' if size == image_size[::-1] else ''
        yield error(
            f'"size" of {len(wrong)} run lengths is not [height, width] of their image, for example {size} instead '
            f'of {image_size}: annotations {name_entries(annotations, wrong)}.{swapped} Export them again.',
            **locate('annotations', annotations, wrong),
        )


def is_decodable(rle: dict) -> bool:
    """Return whether pycocotools can decode a compressed run length."""
    try:
        mask_utils.decode(rle)
    except (ValueError, TypeError):
        return False
    return True


def find_undecodable_rles(annotations: list[dict]) -> Iterator[Finding]:
    """Find compressed run lengths that cannot be decoded, in a sample."""
    compressed = [
        index
        for index, annotation in enumerate(annotations)
        if isinstance(annotation.get('segmentation'), dict)
        and isinstance(annotation['segmentation'].get('counts'), str)
    ]
    sample = random.Random(0).sample(compressed, min(NUM_DECODED, len(compressed)))
    wrong = [index for index in sorted(sample) if not is_decodable(annotations[index]['segmentation'])]
    if wrong:
        yield error(
            f'"counts" of run lengths cannot be decoded: annotations {name_entries(annotations, wrong)}. Export them '
            'again.',
            **locate('annotations', annotations, wrong),
        )


def find_polygon_problems(annotations: list[dict], image_sizes: np.ndarray) -> list[Finding]:
    """Check the coordinates of polygons."""
    outlines = measure_all_outlines(annotations)
    return list(find_wild_coordinates(annotations, outlines)) or [
        *find_outlines_beyond_images(annotations, outlines, image_sizes),
        *find_boxes_apart_from_outlines(annotations, outlines),
        *find_flat_outlines(annotations, outlines),
    ]


def find_mask_problems(content: dict, image_sizes: np.ndarray) -> list[Finding]:
    """Check the masks of an annotation file.

    Args:
        content: An annotation file with annotations, in which :func:`find_structure_problems` found no errors.
        image_sizes: Of :func:`list_image_sizes`.
    """
    annotations = content['annotations']
    malformed = list(find_malformed(annotations))
    if malformed:
        return malformed
    return [
        *find_short_polygons(annotations),
        *find_polygon_problems(annotations, image_sizes),
        *(list(find_rles_of_other_sizes(content)) or find_undecodable_rles(annotations)),
    ]
