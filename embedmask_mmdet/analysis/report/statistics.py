"""Numbers of data sets and of models: what the tables of the report show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from pycocotools import mask as mask_utils
from pycocotools.cocoeval import COCOeval

from embedmask_mmdet.analysis.report.data import Labels
from embedmask_mmdet.analysis.report.errors import Outcome
from embedmask_mmdet.analysis.report.evaluation import SIZES, count_instances, read_ap
from embedmask_mmdet.analysis.thresholds import merge_images

MISSED = INVENTED = None  # the side of the confusion matrix without a class


def count_confusions(outcome: Outcome) -> Counter:
    """Count pairs of classes (category ids).

    Returns:
        The count by ``(truth, prediction)``. ``(truth, None)`` is missed, ``(None, prediction)`` is invented: a further
        detection or piece of something, or a mask that fits nothing.
    """
    counts = Counter((i.category_id, d.category_id) for i, d, _ in outcome.matches)
    explained_truth = {i.id for i, _, _ in outcome.matches}
    explained_found = {d.id for _, d, _ in outcome.matches}
    wrong = [mistake for mistake in outcome.mistakes if mistake.kind == 'wrong class']
    for mistake in wrong:
        counts[mistake.instances[0].category_id, mistake.detections[0].category_id] += 1
        explained_truth.add(mistake.instances[0].id)
        explained_found.add(mistake.detections[0].id)
    instances = {i.id: i for mistake in outcome.mistakes for i in mistake.instances if i.id not in explained_truth}
    detections = {d.id: d for mistake in outcome.mistakes for d in mistake.detections if d.id not in explained_found}
    counts.update((i.category_id, MISSED) for i in instances.values())
    counts.update((INVENTED, d.category_id) for d in detections.values())
    return counts


def tabulate_ap(labels: Labels, mask: COCOeval, box: COCOeval) -> list[list]:
    """Make rows: a class, its instances, box AP, mask AP, mask AP of each of COCO's sizes; the first row is the mean.

    Args:
        labels: The annotations.
        mask: Evaluation of masks with the sizes of ``SIZES``.
        box: Likewise of boxes.
    """
    counts = count_instances(labels)
    rows = [[c, labels.names[c], counts[c]] for c in labels.names]
    rows = [[None, 'all classes', counts.total()], *rows] if len(rows) > 1 else rows
    sizes = [size for size in SIZES if size != 'all']
    return [
        [name, number, read_ap(box, c), read_ap(mask, c), *(read_ap(mask, c, size) for size in sizes)]
        for c, name, number in rows
    ]


def tabulate_sizes(labels: Labels, mask: COCOeval, box: COCOeval) -> list[list]:
    """Make rows: a size, its instances, box AP and mask AP. The arguments are those of :func:`tabulate_ap`."""
    limits = {'small': 'below 32² pixels', 'medium': '32² to 96² pixels', 'large': 'above 96² pixels'}
    return [
        [f'{size}: {words}', count_instances(labels, size).total(), read_ap(box, None, size), read_ap(mask, None, size)]
        for size, words in limits.items()
    ]


def collect_scores(evaluation: COCOeval, category_ids: Sequence[int]) -> tuple[np.ndarray, np.ndarray, int]:
    """Return scores, whether each mask is right at IoU 0.5, and the number of instances, of some categories.

    Args:
        evaluation: Evaluation with one size.
        category_ids: The categories.
    """
    images = [image for image in evaluation.evalImgs if image and image['category_id'] in set(category_ids)]
    return merge_images(images)


def measure_sides(labels: Labels) -> list[float]:
    """Return the square root of the area of each mask, in pixels."""
    return [float(mask_utils.area(instance.rle)) ** 0.5 for instance in labels.instances if not instance.crowd]


def count_per_image(labels: Labels) -> list[int]:
    """Return the number of instances of each image, without crowd regions."""
    counts = Counter(instance.image_id for instance in labels.instances if not instance.crowd)
    return [counts[image_id] for image_id in labels.images]


def tabulate_classes(labels: Labels) -> list[list]:
    """Make rows: a class, its instances, its images, and the median side of its masks in pixels."""
    sides, images = {c: [] for c in labels.names}, {c: set() for c in labels.names}
    for instance in labels.instances:
        if not instance.crowd:
            sides[instance.category_id].append(float(mask_utils.area(instance.rle)) ** 0.5)
            images[instance.category_id].add(instance.image_id)
    return [
        [name, len(sides[c]), len(images[c]), round(np.median(sides[c])) if sides[c] else None]
        for c, name in labels.names.items()
    ]
