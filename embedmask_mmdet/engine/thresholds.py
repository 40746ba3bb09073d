"""Score thresholds for drawing: for each class the score that gives the best balance of precision and recall."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
from pycocotools.cocoeval import COCOeval

from embedmask_mmdet.errors import InputError, name_some
from embedmask_mmdet.fileio import write_atomically

DEFAULT_THRESHOLD = 0.3


class ScoreThreshold(NamedTuple):
    """What keeping the detections of one class with a score of at least ``threshold`` gives.

    F-measure, precision and recall are None for a class for which no threshold could be found.
    """

    threshold: float
    f_measure: float | None
    precision: float | None
    recall: float | None
    instances: int


def best_threshold(scores: np.ndarray, correct: np.ndarray, num_instances: int) -> ScoreThreshold | None:
    """Find the score at which F = 2PR / (P + R) is highest, and of several the highest.

    Args:
        scores: ``(N,)`` of detections.
        correct: Bool ``(N,)``, whether a detection is matched to an instance that no other one is matched to.
        num_instances: How many there are to find.

    Returns:
        The best threshold, the score of a detection; None if no detection is correct.
    """
    if not correct.any():
        return None
    order = np.argsort(-scores, kind='stable')
    scores, found = scores[order], np.cumsum(correct[order])
    # Detections of equal scores are kept or dropped together.
    ends = np.append(scores[1:] < scores[:-1], True).nonzero()[0]
    scores, found, kept = scores[ends], found[ends], ends + 1
    f_measure = 2 * found / (kept + num_instances)
    best = int(f_measure.argmax())
    precision, recall = found[best] / kept[best], found[best] / num_instances
    return ScoreThreshold(
        float(scores[best]), float(f_measure[best]), float(precision), float(recall), int(num_instances)
    )


def class_thresholds(evaluation: COCOeval, cat_ids: Sequence[int]) -> list[ScoreThreshold]:
    """Find the best threshold of each class from what ``COCOeval.evaluate`` matched.

    A class without a correct detection gets the median of the others' thresholds, or ``DEFAULT_THRESHOLD`` if all are
    like that.

    Args:
        evaluation: Evaluated, with one range of areas; the first of its IoU thresholds counts.
        cat_ids: Category of each class.

    Returns:
        One for each class.
    """
    images = {cat_id: [] for cat_id in cat_ids}
    for image in filter(None, evaluation.evalImgs):
        images[image['category_id']].append(image)

    def best_of(found: list[dict]) -> tuple[ScoreThreshold | None, int]:
        num_instances = sum(int((image['gtIgnore'] == 0).sum()) for image in found)
        # Those matched to a crowd region are neither right nor wrong.
        counted = [~image['dtIgnore'][0].astype(bool) for image in found]
        scores = [np.array(image['dtScores'])[keep] for image, keep in zip(found, counted)]
        # Not by dtMatches, where the instance of id 0 looks like none.
        correct = [np.isin(image['dtIds'], image['gtMatches'][0])[keep] for image, keep in zip(found, counted)]
        if not found:
            return None, 0
        return best_threshold(np.concatenate(scores), np.concatenate(correct), num_instances), num_instances

    best = [best_of(images[cat_id]) for cat_id in cat_ids]
    known = [each.threshold for each, _ in best if each is not None]
    fallback = median(known) if known else DEFAULT_THRESHOLD
    return [each or ScoreThreshold(fallback, None, None, None, num_instances) for each, num_instances in best]


def thresholds_file(checkpoint: str | Path) -> Path:
    """Return where the thresholds of a checkpoint are kept: beside it, ``epoch_12.thresholds.json``."""
    return Path(checkpoint).expanduser().with_suffix('.thresholds.json')


def save_thresholds(path: Path, thresholds: Mapping[str, ScoreThreshold], **about: str | float) -> None:
    """Write thresholds by the names of their classes, and how they came about, as JSON.

    Raises:
        OSError: The file cannot be written.
    """
    classes = {name: each._asdict() for name, each in thresholds.items()}
    write_atomically(path, json.dumps({**about, 'classes': classes}, indent=1) + '\n')


def load_thresholds(path: Path, classes: Sequence[str]) -> list[float]:
    """Read what :func:`save_thresholds` wrote.

    Args:
        path: The file.
        classes: Names of the model's classes.

    Returns:
        A threshold for each class.

    Raises:
        InputError: The file cannot be read, is none of this kind, or is about other classes.
    """
    try:
        found = {name: float(each['threshold']) for name, each in json.loads(path.read_text())['classes'].items()}
    except OSError as error:
        raise InputError(f'{path} cannot be read: {error.strerror}') from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f'{path} holds no thresholds as tools/analysis_tools/score_thresholds.py writes them'
        ) from error
    if set(found) != set(classes):
        raise InputError(
            f"{path} is about other classes than the checkpoint's: the file's are {name_some(list(found))}, the "
            f"checkpoint's {name_some(list(classes))}; compute it anew with tools/analysis_tools/score_thresholds.py, "
            'or remove it'
        )
    return [found[name] for name in classes]
