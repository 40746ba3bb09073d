"""Compare detections with annotations in every respect that the page of a model shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pycocotools.cocoeval import COCOeval

from embedmask_mmdet.analysis.report import evaluation
from embedmask_mmdet.analysis.report.costs import sort_by_cost
from embedmask_mmdet.analysis.report.data import Detection, Labels
from embedmask_mmdet.analysis.report.errors import Mistake, Outcome, compare
from embedmask_mmdet.analysis.report.suspicions import Suspicion, suspect_by_model, suspect_labels
from embedmask_mmdet.analysis.thresholds import ScoreThreshold, class_thresholds


@dataclass
class Analysis:
    """All that the page shows.

    Attributes:
        labels: The annotations.
        detections: All detections.
        mask: Evaluation of masks, all sizes.
        box: Evaluation of boxes, all sizes.
        single: Evaluation of masks without sizes.
        thresholds: Recommended score threshold by category.
        outcome: How the shown detections compare with the annotations.
        costs: Mistakes with the AP that each costs, the most expensive first.
        repaired: Mask AP without the mistakes of a kind, by kind.
        suspicions: Labels that are probably wrong.
    """

    labels: Labels
    detections: list[Detection]
    mask: COCOeval
    box: COCOeval
    single: COCOeval
    thresholds: dict[int, ScoreThreshold]
    outcome: Outcome
    costs: list[tuple[float, Mistake]]
    repaired: dict[str, float]
    suspicions: list[Suspicion]

    @property
    def shown(self) -> list[Detection]:
        """Detections whose score reaches the threshold of their class."""
        return [d for d in self.detections if d.score >= self.thresholds[d.category_id].threshold]


def analyze(labels: Labels, detections: Sequence[Detection]) -> Analysis:
    """Compare detections with annotations in every respect that the page shows."""
    single = evaluation.evaluate(labels, detections)
    thresholds = dict(zip(labels.names, class_thresholds(single, list(labels.names))))
    lowest = {category_id: each.threshold for category_id, each in thresholds.items()}
    outcome = compare(labels.instances, detections, lowest)
    return Analysis(
        labels=labels,
        detections=list(detections),
        mask=evaluation.evaluate(labels, detections, 'segm', evaluation.SIZES),
        box=evaluation.evaluate(labels, detections, 'bbox', evaluation.SIZES),
        single=single,
        thresholds=thresholds,
        outcome=outcome,
        costs=sort_by_cost(outcome.mistakes, single),
        repaired=evaluation.compute_repaired_ap(labels, detections, outcome.mistakes),
        suspicions=[*suspect_by_model(outcome, detections, lowest), *suspect_labels(labels)],
    )
