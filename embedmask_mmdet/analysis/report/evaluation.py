"""COCO's evaluation of detections, and of detections in which mistakes are repaired."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from embedmask_mmdet.analysis.report.data import Detection, Instance, Labels
from embedmask_mmdet.analysis.report.errors import KINDS, Mistake, Repair

MAX_DETECTIONS = 100  # per image and class, as in COCO's AP
NO_SIZE = dict(height=0, width=0)  # pycocotools looks at sizes of images, although masks have their own
ALL_SIZES = {'all': (0, 1e10)}
# COCO's sizes, in pixels of the original image.
SIZES = {**ALL_SIZES, 'small': (0, 32**2), 'medium': (32**2, 96**2), 'large': (96**2, 1e10)}


def make_coco(labels: Labels, annotations: Iterable[dict]) -> COCO:
    """Make pycocotools' object of annotations or detections of all images."""
    coco = COCO()
    coco.dataset = dict(
        images=[{**NO_SIZE, **image} for image in labels.images.values()],
        categories=[dict(id=category_id, name=name) for category_id, name in labels.names.items()],
        annotations=list(annotations),
    )
    with contextlib.redirect_stdout(None):
        coco.createIndex()
    return coco


def to_truth(instance: Instance) -> dict:
    """Return an instance as COCO's evaluation takes it."""
    return dict(
        id=instance.id,
        image_id=instance.image_id,
        category_id=instance.category_id,
        segmentation=instance.rle,
        bbox=list(instance.bbox),
        area=instance.area,
        iscrowd=int(instance.crowd),
    )


def to_result(detection: Detection, iou_type: str) -> dict:
    """Return a detection as COCO's evaluation takes it. Its size is that of its mask, or of its box for ``bbox``."""
    width, height = detection.bbox[2:]
    return dict(
        id=detection.id,
        image_id=detection.image_id,
        category_id=detection.category_id,
        segmentation=detection.rle,
        bbox=list(detection.bbox),
        area=width * height if iou_type == 'bbox' else float(mask_utils.area(detection.rle)),
        iscrowd=0,
        score=detection.score,
    )


def run_evaluation(
    labels: Labels,
    truth: Iterable[dict],
    results: Iterable[dict],
    iou_type: str = 'segm',
    sizes: Mapping[str, tuple[float, float]] = ALL_SIZES,
) -> COCOeval:
    """Evaluate results, which may be empty.

    Args:
        labels: Images and categories.
        truth: Instances from :func:`to_truth`.
        results: Detections from :func:`to_result`.
        iou_type: ``segm`` or ``bbox``.
        sizes: Ranges of areas in pixels, by name.

    Returns:
        The evaluation after ``accumulate()``.
    """
    evaluation = COCOeval(make_coco(labels, truth), make_coco(labels, results), iou_type)
    evaluation.params.maxDets = [MAX_DETECTIONS]
    evaluation.params.areaRng = [list(limits) for limits in sizes.values()]
    evaluation.params.areaRngLbl = list(sizes)
    with contextlib.redirect_stdout(None):
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def evaluate(labels: Labels, detections: Sequence[Detection], iou_type: str = 'segm', sizes=ALL_SIZES) -> COCOeval:
    """Evaluate detections against all annotations; the arguments are those of :func:`run_evaluation`."""
    results = [to_result(detection, iou_type) for detection in detections]
    return run_evaluation(labels, map(to_truth, labels.instances), results, iou_type, sizes)


def read_ap(evaluation: COCOeval, category_id: int | None = None, size: str = 'all') -> float | None:
    """Return COCO's AP over IoU 0.5 to 0.95.

    Args:
        evaluation: After ``accumulate()``.
        category_id: A category; None for the mean of all that have instances.
        size: A name of its sizes.

    Returns:
        AP from 0 to 1; None if there are no such instances.
    """
    precision = evaluation.eval['precision'][..., evaluation.params.areaRngLbl.index(size), -1]
    if category_id is not None:
        precision = precision[:, :, list(evaluation.params.catIds).index(category_id)]
    known = precision[precision > -1]
    return float(known.mean()) if len(known) else None


def count_instances(labels: Labels, size: str = 'all') -> Counter:
    """Count the instances of a size by category, without crowd regions."""
    low, high = SIZES[size]
    return Counter(i.category_id for i in labels.instances if not i.crowd and low <= i.area <= high)


def replace_mask(detection: Detection, instance: Instance) -> dict:
    """Return a result with the mask and the category of an instance and the score of a detection."""
    result = to_result(detection, 'segm')
    result.update(
        category_id=instance.category_id,
        segmentation=instance.rle,
        bbox=list(instance.bbox),
        area=float(mask_utils.area(instance.rle)),
    )
    return result


def apply_repairs(
    instances: Sequence[Instance], detections: Sequence[Detection], repairs: Iterable[Repair]
) -> tuple[list[dict], list[dict]]:
    """Return truth and results as they would be without some mistakes.

    An ignored instance becomes a crowd region, so that detections inside it, with low scores, do not count either.
    """
    repairs = list(repairs)
    ignored = {instance.id for repair in repairs for instance in repair.ignored}
    removed = {detection.id for repair in repairs for detection in repair.removed}
    replaced = {detection.id: instance for repair in repairs for detection, instance in repair.replaced}
    truth = [{**to_truth(i), 'iscrowd': int(i.crowd or i.id in ignored)} for i in instances]
    results = [
        replace_mask(d, replaced[d.id]) if d.id in replaced else to_result(d, 'segm')
        for d in detections
        if d.id not in removed
    ]
    return truth, results


def compute_repaired_ap(
    labels: Labels, detections: Sequence[Detection], mistakes: Sequence[Mistake]
) -> dict[str, float]:
    """Compute the mask AP that there would be without the mistakes of each kind.

    Returns:
        AP from 0 to 1 by kind. Kinds without a mistake are left out.
    """
    repaired = {}
    for kind in KINDS:
        repairs = [mistake.repair for mistake in mistakes if mistake.kind == kind]
        if repairs:
            truth, results = apply_repairs(labels.instances, detections, repairs)
            # None if all instances were missed: nothing is left that could be wrong.
            ap = read_ap(run_evaluation(labels, truth, results))
            repaired[kind] = 1.0 if ap is None else ap
    return repaired
