"""Score thresholds for drawing: for each class the score that balances precision and recall best."""

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
TOOL = 'tools/analysis_tools/score_thresholds.py'


class ScoreThreshold(NamedTuple):
    """Quality of the detections of one class whose score is at least ``threshold``.

    F-measure, precision and recall are None if the class has no correct detection.
    """

    threshold: float
    f_measure: float | None
    precision: float | None
    recall: float | None
    instances: int


def best_threshold(scores: np.ndarray, correct: np.ndarray, num_instances: int) -> ScoreThreshold | None:
    """Find the score with the highest F = 2PR / (P + R). If several scores share it, return the highest score.

    Args:
        scores: Scores of detections, ``(N,)``.
        correct: Bool ``(N,)``, whether a detection is matched to an instance. No two detections share an instance.
        num_instances: Number of annotated instances.

    Returns:
        The best threshold, which is the score of a detection. None if no detection is correct.
    """
    if not correct.any():
        return None
    order = np.argsort(-scores, kind='stable')
    scores, num_correct = scores[order], np.cumsum(correct[order])
    # Detections with equal scores are kept or dropped together.
    ends = np.append(scores[1:] < scores[:-1], True).nonzero()[0]
    scores, num_correct, num_kept = scores[ends], num_correct[ends], ends + 1
    f_measure = 2 * num_correct / (num_kept + num_instances)
    best = int(f_measure.argmax())
    return ScoreThreshold(
        threshold=float(scores[best]),
        f_measure=float(f_measure[best]),
        precision=float(num_correct[best] / num_kept[best]),
        recall=float(num_correct[best] / num_instances),
        instances=int(num_instances),
    )


def merge_images(images: Sequence[dict]) -> tuple[np.ndarray, np.ndarray, int]:
    """Merge what ``COCOeval`` matched in the images of one category.

    Args:
        images: Elements of ``COCOeval.evalImgs``.

    Returns:
        Scores, whether each detection is correct, and the number of instances, as :func:`best_threshold` takes them.
    """
    num_instances = sum(int((image['gtIgnore'] == 0).sum()) for image in images)
    scores, correct = [np.zeros(0)], [np.zeros(0, dtype=bool)]
    for image in images:
        # Detections that are matched to a crowd region count neither as correct nor as wrong.
        counted = ~image['dtIgnore'][0].astype(bool)
        scores.append(np.array(image['dtScores'])[counted])
        # Not from dtMatches, where a match with the instance whose id is 0 looks like no match.
        correct.append(np.isin(image['dtIds'], image['gtMatches'][0])[counted])
    return np.concatenate(scores), np.concatenate(correct), num_instances


def class_thresholds(evaluation: COCOeval, cat_ids: Sequence[int]) -> list[ScoreThreshold]:
    """Find the best threshold of each class.

    A class without a correct detection gets the median of the other thresholds, or ``DEFAULT_THRESHOLD`` if no class
    has a correct detection.

    Args:
        evaluation: Evaluation with one area range after ``evaluate()``. Its first IoU threshold counts.
        cat_ids: Category of each class.

    Returns:
        A threshold for each class.
    """
    images: dict[int, list[dict]] = {cat_id: [] for cat_id in cat_ids}
    for image in filter(None, evaluation.evalImgs):
        images[image['category_id']].append(image)
    merged = [merge_images(images[cat_id]) for cat_id in cat_ids]
    best = [best_threshold(*parts) for parts in merged]
    known = [threshold.threshold for threshold in best if threshold is not None]
    fallback = median(known) if known else DEFAULT_THRESHOLD
    return [
        threshold or ScoreThreshold(fallback, None, None, None, num_instances)
        for threshold, (_, _, num_instances) in zip(best, merged)
    ]


def thresholds_file(checkpoint: str | Path) -> Path:
    """Return the path of a checkpoint's thresholds: ``epoch_12.thresholds.json`` next to ``epoch_12.pth``."""
    return Path(checkpoint).expanduser().with_suffix('.thresholds.json')


def save_thresholds(path: Path, thresholds: Mapping[str, ScoreThreshold], **about: str | float) -> None:
    """Write thresholds as JSON.

    Args:
        path: File to write.
        thresholds: Thresholds by names of classes.
        about: What else the file says, such as the checkpoint.

    Raises:
        OSError: If the file cannot be written.
    """
    classes = {name: threshold._asdict() for name, threshold in thresholds.items()}
    write_atomically(path, json.dumps({**about, 'classes': classes}, indent=1) + '\n')


def load_thresholds(path: Path, classes: Sequence[str]) -> list[float]:
    """Read the file that :func:`save_thresholds` writes.

    Args:
        path: The file.
        classes: Names of the model's classes.

    Returns:
        A threshold for each class.

    Raises:
        InputError: If the file cannot be read, contains no thresholds, or has other classes.
    """
    try:
        content = json.loads(path.read_text())
        thresholds = {name: float(values['threshold']) for name, values in content['classes'].items()}
    except OSError as error:
        raise InputError(f'{path} cannot be read: {error.strerror}') from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f'{path} contains no score thresholds. Write it with {TOOL}.') from error
    if set(thresholds) != set(classes):
        raise InputError(
            f'{path} is about other classes: it has {name_some(list(thresholds))}, the checkpoint has '
            f'{name_some(list(classes))}. Write it again with {TOOL}, or remove it.'
        )
    return [thresholds[name] for name in classes]
