"""Estimate how much mask AP each single mistake costs, to show the most expensive ones first.

Matches of other detections are left as they are, which makes an estimate take microseconds. The AP of a complete kind
is computed anew by COCO's evaluation, in ``evaluation.py``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pycocotools.cocoeval import COCOeval

from embedmask_mmdet.analysis.report.errors import Mistake

RECALLS = np.linspace(0, 1, 101)


@dataclass
class Ranking:
    """The detections of a category as COCO's evaluation matched them. T: number of IoU thresholds, D: detections.

    Attributes:
        ids: Ids of the detections, ``(D,)``.
        scores: Their scores, ``(D,)``.
        correct: Whether they are matched, bool ``(T, D)``.
        counted: Whether they count, bool ``(T, D)``: what is in a crowd region does not.
        instances: Matched instances by detection, ``(T, D)``; 0 for none.
        num_instances: Number of instances.
    """

    ids: np.ndarray
    scores: np.ndarray
    correct: np.ndarray
    counted: np.ndarray
    instances: np.ndarray
    num_instances: int


def read_rankings(evaluation: COCOeval) -> dict[int, Ranking]:
    """Collect what an evaluation of one size matched, by category."""
    images = defaultdict(list)
    for image in filter(None, evaluation.evalImgs):
        images[image['category_id']].append(image)
    rankings = {}
    for category_id, parts in images.items():
        matches = np.concatenate([part['dtMatches'] for part in parts], axis=1).astype(int)
        counted = ~np.concatenate([part['dtIgnore'] for part in parts], axis=1).astype(bool)
        rankings[category_id] = Ranking(
            ids=np.concatenate([part['dtIds'] for part in parts]).astype(int),
            scores=np.concatenate([part['dtScores'] for part in parts]).astype(float),
            correct=(matches > 0) & counted,
            counted=counted,
            instances=matches,
            num_instances=sum(int((part['gtIgnore'] == 0).sum()) for part in parts),
        )
    return rankings


def compute_ap(scores: np.ndarray, correct: np.ndarray, counted: np.ndarray, num_instances: int) -> float:
    """Compute COCO's AP of a category: the mean, over IoU and 101 recalls, of the highest precision from there on.

    Args:
        scores: ``(D,)``.
        correct: Bool ``(T, D)``.
        counted: Bool ``(T, D)``.
        num_instances: Number of instances.
    """
    if num_instances <= 0:
        return 1.0
    order = np.argsort(-scores, kind='stable')
    found = np.cumsum(correct[:, order], axis=1)
    shown = np.cumsum(counted[:, order], axis=1)
    precision = found / np.maximum(shown, 1)
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    ap = 0.0
    for recall, row in zip(found / num_instances, precision):
        ranks = np.searchsorted(recall, RECALLS)
        ap += row[ranks[ranks < len(row)]].sum() / len(RECALLS)
    return ap / max(len(correct), 1)


def repair_ranking(ranking: Ranking, dropped: set[int], gained: Sequence[float], ignored: set[int]) -> float:
    """Compute the AP of a category if something changes.

    Args:
        ranking: Its detections.
        dropped: Ids of detections that vanish.
        gained: Scores of further correct detections.
        ignored: Ids of instances that do not count any more, nor do their detections.
    """
    keep = ~np.isin(ranking.ids, list(dropped))
    matched = np.isin(ranking.instances, list(ignored))
    correct, counted = (ranking.correct & ~matched)[:, keep], (ranking.counted & ~matched)[:, keep]
    new = np.ones((len(correct), len(gained)), dtype=bool)
    return compute_ap(
        np.concatenate([ranking.scores[keep], gained]),
        np.concatenate([correct, new], axis=1),
        np.concatenate([counted, new], axis=1),
        ranking.num_instances - len(ignored),
    )


def estimate_cost(mistake: Mistake, rankings: dict[int, Ranking], aps: dict[int, float]) -> float:
    """Estimate the AP, from 0 to 1, that repairing a mistake would give.

    Args:
        mistake: The mistake.
        rankings: Detections by category.
        aps: AP by category, as it is.
    """
    repair = mistake.repair
    dropped = {d.id for d in (*repair.removed, *(d for d, _ in repair.replaced))}
    gained, ignored = defaultdict(list), defaultdict(set)
    for detection, instance in repair.replaced:
        gained[instance.category_id].append(detection.score)
    for instance in repair.ignored:
        ignored[instance.category_id].add(instance.id)
    categories = {item.category_id for item in (*mistake.instances, *mistake.detections)}
    gain = sum(
        repair_ranking(rankings[category_id], dropped, gained[category_id], ignored[category_id]) - aps[category_id]
        for category_id in categories & aps.keys()
    )
    return max(gain, 0.0) / max(len(aps), 1)


def sort_by_cost(mistakes: Sequence[Mistake], evaluation: COCOeval) -> list[tuple[float, Mistake]]:
    """Return mistakes with what they cost, the most expensive first.

    Args:
        mistakes: The mistakes.
        evaluation: Evaluation of all detections with one size.
    """
    rankings = {c: ranking for c, ranking in read_rankings(evaluation).items() if ranking.num_instances}
    aps = {c: compute_ap(r.scores, r.correct, r.counted, r.num_instances) for c, r in rankings.items()}
    costs = [(estimate_cost(mistake, rankings, aps), mistake) for mistake in mistakes]
    return sorted(costs, key=lambda pair: (-pair[0], -(pair[1].score or 0)))
