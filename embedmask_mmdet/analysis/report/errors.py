"""Sort what a model does wrong into kinds, after TIDE (https://arxiv.org/abs/2008.08115).

Each instance and each detection is explained by at most one mistake. The kinds are tried in the order of ``KINDS``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from pycocotools import mask as mask_utils

from embedmask_mmdet.analysis.report.data import Detection, Instance, group_by_image

FOUND_IOU = 0.5  # lowest IoU of a found instance, as in COCO's AP50
EXACT_IOU = 0.75  # below it, the outline of a found instance is coarse
TOUCH_IOU = 0.1  # lowest IoU of a detection that means an instance, as in TIDE
COVERED = 0.5  # share of an instance inside a detection, or of a detection inside an instance
PIECE = 0.1  # lowest share of an instance that a piece of it covers
PART = 0.2  # lowest share of a merged detection that an instance in it has

KINDS = {
    'merged': (
        'One detection covers at least half of two or more instances, and one that makes up at least '
        f'{PART:.0%} of it is not found.'
    ),
    'split': 'Two or more detections each lie mostly inside one instance and cover different parts of it.',
    'wrong class': f'The mask fits an instance (IoU {FOUND_IOU} or more), but the class is another one.',
    'duplicate': 'The instance is already found by a detection with a higher score or with the right class.',
    'coarse outline': f'The class is right, but the IoU of the masks is only {TOUCH_IOU} to {EXACT_IOU}.',
    'invented': 'The detection fits no instance.',
    'missed': 'No detection fits the instance.',
}


@dataclass(frozen=True)
class Repair:
    """What would undo a mistake.

    Attributes:
        removed: Detections that would not be there.
        replaced: Detections with the instances whose mask and class they would have.
        ignored: Instances that would not count.
    """

    removed: tuple[Detection, ...] = ()
    replaced: tuple[tuple[Detection, Instance], ...] = ()
    ignored: tuple[Instance, ...] = ()


@dataclass(frozen=True)
class Mistake:
    """Something that a model did wrong.

    Attributes:
        kind: A key of ``KINDS``.
        instances: Annotated instances that it is about.
        detections: Detections that it is about.
        iou: Highest IoU between one of these instances and one of these detections; for missed and invented ones,
            the highest IoU with any that is shown.
        repair: What would undo it.
    """

    kind: str
    instances: tuple[Instance, ...]
    detections: tuple[Detection, ...]
    iou: float
    repair: Repair

    @property
    def image_id(self) -> int:
        """The id of the image."""
        return (*self.instances, *self.detections)[0].image_id

    @property
    def score(self) -> float | None:
        """The highest score of its detections; None without detections."""
        return max((detection.score for detection in self.detections), default=None)


@dataclass(frozen=True)
class Outcome:
    """How detections compare with annotations: pairs that fit, with their IoU, and mistakes."""

    matches: list[tuple[Instance, Detection, float]] = field(default_factory=list)
    mistakes: list[Mistake] = field(default_factory=list)


class Scene:
    """The instances and detections of an image, and which of them are not explained yet.

    D: number of detections, from the highest score down. N: number of instances that are no crowd.

    Attributes:
        iou: IoU of masks, ``(D, N)``.
        inside: Share of a detection that is inside an instance, ``(D, N)``.
        covered: Share of an instance that is inside a detection, ``(D, N)``.
        matches: Instance by detection (indices), as COCO's evaluation matches them at IoU 0.5.
        free_detections: Detections that are not explained.
        free_instances: Instances that are not explained.
        coarse: Matched detections that no other kind explains.
    """

    def __init__(self, instances: Sequence[Instance], detections: Sequence[Detection]) -> None:
        self.instances = [instance for instance in instances if not instance.crowd]
        self.detections = sorted(detections, key=lambda detection: -detection.score)
        self.iou, self.inside, self.covered = compute_overlaps(self.detections, self.instances)
        self.same_class = np.array(
            [[d.category_id == i.category_id for i in self.instances] for d in self.detections], dtype=bool
        ).reshape(self.iou.shape)
        self.matches = match(np.where(self.same_class, self.iou, 0))
        self.free_instances = set(range(len(self.instances))) - set(self.matches.values())
        self.coarse = set(self.matches)
        crowd = [instance.rle for instance in instances if instance.crowd]
        in_crowd = find_in_crowd(self.detections, crowd)
        self.free_detections = set(range(len(self.detections))) - set(self.matches) - in_crowd

    def explain(
        self, kind: str, instances: Sequence[int], detections: Sequence[int], repair: Repair, iou: float | None = None
    ) -> Mistake:
        """Make a mistake of instances and detections (indices); they are then explained."""
        self.free_instances -= set(instances)
        self.free_detections -= set(detections)
        self.coarse -= set(detections)
        if iou is None:
            iou = self.iou[np.ix_(detections, instances)].max()
        about = tuple(self.instances[i] for i in instances), tuple(self.detections[d] for d in detections)
        return Mistake(kind, *about, float(iou), repair)


def compute_overlaps(
    detections: Sequence[Detection], instances: Sequence[Instance]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return IoU, intersection over detection and intersection over instance, each ``(D, N)``."""
    shape = len(detections), len(instances)
    if 0 in shape:
        return np.zeros(shape), np.zeros(shape), np.zeros(shape)
    found, truth = [d.rle for d in detections], [i.rle for i in instances]
    iou = mask_utils.iou(found, truth, [0] * len(truth))
    inside = mask_utils.iou(found, truth, [1] * len(truth))
    covered = mask_utils.iou(truth, found, [1] * len(found)).T
    return iou, inside, covered


def find_in_crowd(detections: Sequence[Detection], crowd: list[dict]) -> set[int]:
    """Return the detections that are mostly inside a crowd region: they count neither as right nor as wrong."""
    if not crowd or not detections:
        return set()
    inside = mask_utils.iou([d.rle for d in detections], crowd, [1] * len(crowd)).max(1)
    return set(np.flatnonzero(inside >= FOUND_IOU).tolist())


def match(iou: np.ndarray) -> dict[int, int]:
    """Give each detection, best first, the free instance with the highest IoU of at least 0.5.

    Args:
        iou: ``(D, N)``, from the highest score down.

    Returns:
        The index of the instance by that of the detection.
    """
    iou, matches = iou.copy(), {}
    for d in range(len(iou)):
        if iou.shape[1] and iou[d].max() >= FOUND_IOU:
            # The last of equal ones, as in COCO's evaluation.
            matches[d] = int(np.flatnonzero(iou[d] == iou[d].max())[-1])
            iou[:, matches[d]] = 0
    return matches


def find_own(scene: Scene, d: int) -> int | None:
    """Return the instance that a detection is matched to or, if there is none, the one that it fits best."""
    best = int(scene.iou[d].argmax()) if scene.instances else None
    fits = best is not None and scene.iou[d, best] >= FOUND_IOU
    return scene.matches.get(d, best if fits else None)


def find_merged(scene: Scene) -> list[Mistake]:
    """Find detections of several instances at once. Repair: give them one mask, do not count the other instances."""
    mistakes = []
    for d in sorted(scene.free_detections | scene.coarse):
        own = find_own(scene, d)
        parts = np.flatnonzero((scene.covered[d] >= COVERED) & (scene.inside[d] >= PART)).tolist()
        about = sorted({*parts, own} - {None})
        # What it fits well is not lost in it: this may be a second label of the same object.
        lost = [i for i in parts if i in scene.free_instances and i != own and scene.iou[d, i] <= FOUND_IOU]
        if len(about) < 2 or not lost:
            continue
        # An instance that another detection found already needs no second one.
        is_open = scene.matches.get(d) == own or own in scene.free_instances
        head = own if own is not None and is_open else max(lost, key=lambda i: scene.iou[d, i])
        repair = Repair(
            replaced=((scene.detections[d], scene.instances[head]),),
            ignored=tuple(scene.instances[i] for i in lost if i != head),
        )
        mistakes.append(scene.explain('merged', about, [d], repair))
    return mistakes


def fits_another(scene: Scene, d: int, i: int) -> bool:
    """Return whether a detection fits an instance other than a given one."""
    return bool(np.delete(scene.iou[d], i).max(initial=0) >= FOUND_IOU)


def find_pieces(scene: Scene, i: int) -> list[int]:
    """Return detections that cover different parts of an instance, the largest part first."""
    candidates = [
        d
        for d in sorted(scene.free_detections | scene.coarse)
        if scene.matches.get(d, i) == i
        and not fits_another(scene, d, i)
        and scene.inside[d, i] >= COVERED
        and scene.covered[d, i] >= PIECE
    ]
    pieces: list[int] = []
    for d in sorted(candidates, key=lambda d: -scene.covered[d, i]):
        larger = [scene.detections[piece].rle for piece in pieces]
        overlap = mask_utils.iou([scene.detections[d].rle], larger, [1] * len(larger)) if larger else np.zeros(1)
        if overlap.max() < COVERED:
            pieces.append(d)
    return pieces


def find_split(scene: Scene) -> list[Mistake]:
    """Find instances that were found in pieces. Repair: give the largest piece the whole mask, drop the others."""
    detection_of = {i: d for d, i in scene.matches.items()}
    mistakes = []
    for i in range(len(scene.instances)):
        own = detection_of.get(i)
        exact = own is not None and (own not in scene.coarse or scene.iou[own, i] >= EXACT_IOU)
        if exact or (own is None and i not in scene.free_instances):
            continue
        pieces = find_pieces(scene, i)
        if len(pieces) < 2:
            continue
        largest, *others = [scene.detections[d] for d in pieces]
        repair = Repair(removed=tuple(others), replaced=((largest, scene.instances[i]),))
        mistakes.append(scene.explain('split', [i], pieces, repair))
    return mistakes


def find_wrong_class(scene: Scene) -> list[Mistake]:
    """Find masks that fit an instance of another class. Repair: give them its class."""
    mistakes = []
    for d in sorted(scene.free_detections):
        fits = [i for i in scene.free_instances if scene.iou[d, i] >= FOUND_IOU]
        if fits:
            i = max(fits, key=lambda i: scene.iou[d, i])
            repair = Repair(replaced=((scene.detections[d], scene.instances[i]),))
            mistakes.append(scene.explain('wrong class', [i], [d], repair))
    return mistakes


def find_duplicates(scene: Scene) -> list[Mistake]:
    """Find further detections of instances that were found. Repair: drop them."""
    mistakes = []
    for d in sorted(scene.free_detections):
        i = int(scene.iou[d].argmax()) if scene.instances else 0
        if scene.instances and scene.iou[d, i] >= FOUND_IOU:
            mistakes.append(scene.explain('duplicate', [i], [d], Repair(removed=(scene.detections[d],))))
    return mistakes


def find_coarse(scene: Scene) -> list[Mistake]:
    """Find detections of the right class whose masks fit badly. Repair: give them the mask of the instance."""
    pairs = [(d, scene.matches[d]) for d in sorted(scene.coarse) if scene.iou[d, scene.matches[d]] < EXACT_IOU]
    taken: set[int] = set()
    for d in sorted(scene.free_detections):
        near = [i for i in scene.free_instances - taken if scene.same_class[d, i] and scene.iou[d, i] >= TOUCH_IOU]
        if near:
            pairs.append((d, max(near, key=lambda i: scene.iou[d, i])))
            taken.add(pairs[-1][1])
    return [
        scene.explain('coarse outline', [i], [d], Repair(replaced=((scene.detections[d], scene.instances[i]),)))
        for d, i in pairs
    ]


def find_invented(scene: Scene) -> list[Mistake]:
    """Find detections of nothing. Repair: drop them."""
    return [
        scene.explain('invented', [], [d], Repair(removed=(scene.detections[d],)), scene.iou[d].max(initial=0))
        for d in sorted(scene.free_detections)
    ]


def find_missed(scene: Scene) -> list[Mistake]:
    """Find instances without a detection. Repair: do not count them."""
    return [
        scene.explain('missed', [i], [], Repair(ignored=(scene.instances[i],)), scene.iou[:, i].max(initial=0))
        for i in sorted(scene.free_instances)
    ]


FINDERS = (find_merged, find_split, find_wrong_class, find_duplicates, find_coarse, find_invented, find_missed)


def compare(instances: Sequence[Instance], detections: Sequence[Detection], thresholds: Mapping[int, float]) -> Outcome:
    """Compare the detections of all images with the annotations.

    Args:
        instances: Annotated instances.
        detections: Detections.
        thresholds: Lowest score of a detection that is shown, by category. Others are not looked at.
    """
    shown = [d for d in detections if d.score >= thresholds.get(d.category_id, 0)]
    truth, found, outcome = group_by_image(instances), group_by_image(shown), Outcome()
    for image_id in sorted({*truth, *found}, key=str):
        scene = Scene(truth.get(image_id, []), found.get(image_id, []))
        outcome.matches.extend(
            (scene.instances[i], scene.detections[d], float(scene.iou[d, i])) for d, i in scene.matches.items()
        )
        for find in FINDERS:
            outcome.mistakes.extend(find(scene))
    return outcome
