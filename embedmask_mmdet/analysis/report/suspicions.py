"""Find labels that are probably wrong: by themselves, and where a confident model disagrees with them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
from pycocotools import mask as mask_utils

from embedmask_mmdet.analysis.report.data import Detection, Instance, Labels, group_by_image
from embedmask_mmdet.analysis.report.errors import FOUND_IOU, TOUCH_IOU, Mistake, Outcome

DUPLICATE_IOU = 0.8  # of the masks of two labels of the same object
INSIDE = 0.9  # share of a label inside another one
TINY_AREA = 16  # pixels
BOX_IOU = 0.8  # of a label's box and the box around its mask
BOX_TOLERANCE = 2  # pixels that any side of a box may differ

KINDS = {
    'labeled twice': f'The masks of two labels have an IoU above {DUPLICATE_IOU}: delete one of them.',
    'label inside another': 'A label lies inside another one of the same class: delete one, or cut it out.',
    'box does not fit': 'The box of the label (yellow) is not around its mask: the export or a resize went wrong.',
    'outside the image': 'The box (yellow) reaches beyond the image: is the size in the file that of the image?',
    'tiny': f'The mask has less than {TINY_AREA} pixels: usually a slip of the pen.',
    'no label': 'The image has no label at all: right only if nothing is in it.',
}
MODEL_KINDS = {
    'probably a missing label': 'The model is confident that something is there, and no label is.',
    'probably a wrong class': 'A mask of the model fits the label, but has another class; confident ones are first.',
    'probably several objects in one label': 'The model is confident of several objects where one label is.',
    'probably one object in several labels': 'The model is confident of one object where several labels are.',
    'label of nothing?': 'No detection, not even one with a low score, touches this label.',
}


@dataclass(frozen=True)
class Suspicion:
    """A label that is probably wrong.

    Attributes:
        kind: A key of ``KINDS`` or ``MODEL_KINDS``.
        image_id: Id of the image.
        instances: The labels.
        detections: Detections that disagree.
        note: What is odd, in a few words.
        weight: The higher, the more probable it is.
    """

    kind: str
    image_id: int
    instances: tuple[Instance, ...]
    detections: tuple[Detection, ...]
    note: str
    weight: float


def box_iou(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the IoU of two boxes ``(left, top, width, height)``."""
    return float(mask_utils.iou(np.array([first], float), np.array([second], float), [0])[0, 0])


def compare_pairs(instances: Sequence[Instance]) -> Iterator[Suspicion]:
    """Find duplicates among the labels of one image, and labels inside others."""
    instances = [instance for instance in instances if not instance.crowd]
    if len(instances) < 2:
        return
    rles = [instance.rle for instance in instances]
    iou = mask_utils.iou(rles, rles, [0] * len(rles))
    inside = mask_utils.iou(rles, rles, [1] * len(rles))
    for i, j in zip(*np.triu(iou > DUPLICATE_IOU, 1).nonzero()):
        pair = instances[i], instances[j]
        note = f'IoU {iou[i, j]:.2f}'
        yield Suspicion('labeled twice', pair[0].image_id, pair, (), note, float(iou[i, j]))
    for i, j in zip(*((inside > INSIDE) & (iou <= DUPLICATE_IOU)).nonzero()):
        pair = instances[i], instances[j]
        if i != j and pair[0].category_id == pair[1].category_id:
            note = f'{inside[i, j]:.0%} of it is inside'
            yield Suspicion('label inside another', pair[0].image_id, pair, (), note, float(iou[i, j]))


def check_box(instance: Instance) -> Iterator[Suspicion]:
    """Compare the box of a label with its mask."""
    around = mask_utils.toBbox(instance.rle)
    box = np.array(instance.bbox)
    sides = np.abs(np.concatenate([box[:2], box[:2] + box[2:]]) - np.concatenate([around[:2], around[:2] + around[2:]]))
    iou = box_iou(instance.bbox, around)
    if iou < BOX_IOU and sides.max() > BOX_TOLERANCE:
        note = f'off by up to {sides.max():.0f} pixels'
        yield Suspicion('box does not fit', instance.image_id, (instance,), (), note, 1 - iou)


def check_size(instance: Instance, image: dict) -> Iterator[Suspicion]:
    """Find labels that are tiny or reach beyond the image."""
    pixels = int(mask_utils.area(instance.rle))
    if pixels < TINY_AREA and not instance.crowd:
        note = f'{pixels} pixels'
        yield Suspicion('tiny', instance.image_id, (instance,), (), note, 1 / pixels)
    left, top, width, height = instance.bbox
    beyond = max(-left, -top, left + width - image['width'], top + height - image['height'])
    if beyond > BOX_TOLERANCE:
        note = f'by {beyond:.0f} pixels'
        yield Suspicion('outside the image', instance.image_id, (instance,), (), note, float(beyond))


def suspect_labels(labels: Labels) -> list[Suspicion]:
    """Find labels that are odd by themselves, the oddest of each kind first."""
    by_image = labels.by_image()
    found: list[Suspicion] = []
    for image_id, instances in by_image.items():
        found.extend(compare_pairs(instances))
        for instance in instances:
            found.extend(check_box(instance))
            found.extend(check_size(instance, labels.images[image_id]))
    if labels.names:
        found.extend(
            Suspicion('no label', image_id, (), (), '', 0.0) for image_id in labels.images if image_id not in by_image
        )
    return sorted(found, key=lambda suspicion: -suspicion.weight)


def find_confident_scores(outcome: Outcome, thresholds: dict[int, float]) -> dict[int, float]:
    """Return, by category, the score from which a detection is confident: the median of the right detections."""
    scores = defaultdict(list)
    for _, detection, _ in outcome.matches:
        scores[detection.category_id].append(detection.score)
    return {c: median(scores[c] or [threshold]) for c, threshold in thresholds.items()}


BOX_KINDS = {'box does not fit', 'outside the image'}  # those whose pictures show the box of the label
MISTAKES = {
    'invented': 'probably a missing label',
    'wrong class': 'probably a wrong class',
    'split': 'probably several objects in one label',
    'merged': 'probably one object in several labels',
}


def suspect_by_model(
    outcome: Outcome, detections: Sequence[Detection], thresholds: dict[int, float]
) -> list[Suspicion]:
    """Find labels that a confident model disagrees with, the most probable of each kind first.

    Args:
        outcome: How the shown detections compare with the labels.
        detections: All detections, with low scores too.
        thresholds: Lowest score of a detection that is shown, by category.
    """
    confident = find_confident_scores(outcome, thresholds)
    found = []
    for mistake in outcome.mistakes:
        sure = all(d.score >= confident[d.category_id] for d in mistake.detections)
        # A mask that fits says by itself that something is there.
        if mistake.kind in MISTAKES and (sure or mistake.kind == 'wrong class'):
            found.append(suspect_mistake(mistake))
    missed = [mistake.instances[0] for mistake in outcome.mistakes if mistake.kind == 'missed']
    found.extend(suspect_untouched(missed, detections))
    return drop_repeated(sorted(found, key=lambda suspicion: -suspicion.weight))


def suspect_mistake(mistake: Mistake) -> Suspicion:
    """Turn a mistake of the model into one of the labels."""
    scores = [detection.score for detection in mistake.detections]
    note = f'score {", ".join(f"{score:.2f}" for score in scores)}'
    # What overlaps a label is more often a bad mask of it than something without a label.
    weight = min(scores) * (1 - mistake.iou if mistake.kind == 'invented' else 1)
    return Suspicion(MISTAKES[mistake.kind], mistake.image_id, mistake.instances, mistake.detections, note, weight)


def drop_repeated(suspicions: Sequence[Suspicion]) -> list[Suspicion]:
    """Keep the first of several missing labels at one place: a model can find an object as several classes."""
    kept: list[Suspicion] = []
    places: dict[int, list[dict]] = defaultdict(list)
    for suspicion in suspicions:
        if suspicion.kind == MISTAKES['invented']:
            rle, before = suspicion.detections[0].rle, places[suspicion.image_id]
            if before and mask_utils.iou([rle], before, [0] * len(before)).max() >= FOUND_IOU:
                continue
            before.append(rle)
        kept.append(suspicion)
    return kept


def suspect_untouched(instances: Sequence[Instance], detections: Sequence[Detection]) -> Iterator[Suspicion]:
    """Find instances that no detection touches, the largest first: those are hardest to overlook."""
    by_image = group_by_image(detections)
    for instance in instances:
        near = by_image.get(instance.image_id, [])
        iou = mask_utils.iou([d.rle for d in near], [instance.rle], [0]).max() if near else 0.0
        if iou < TOUCH_IOU:
            pixels = float(mask_utils.area(instance.rle))
            yield Suspicion('label of nothing?', instance.image_id, (instance,), (), f'{pixels:.0f} pixels', pixels)


def count_kinds(suspicions: Sequence[Suspicion]) -> Counter:
    """Count suspicions by kind."""
    return Counter(suspicion.kind for suspicion in suspicions)
