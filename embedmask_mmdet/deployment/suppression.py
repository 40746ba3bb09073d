"""Non-maximum suppression as ``mmcv.ops.batched_nms`` does it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from mmengine.structures import InstanceData
from torch import Tensor

from embedmask_mmdet.deployment.operators import NonMaxSuppression
from embedmask_mmdet.errors import InputError
from embedmask_mmdet.models.class_votes import pairwise_ious

UNLIMITED = 2**31 - 1


def sort_by_score(results: InstanceData) -> InstanceData:
    """Bring detections into the order best first; equal scores keep theirs."""
    _, order = results.scores.topk(results.scores.shape[0])
    return results[order]


def separate_classes(bboxes: Tensor, labels: Tensor) -> Tensor:
    """Move the boxes ``(N, 4)`` of each class so far that they overlap with none of another."""
    # The 0 is for images without boxes.
    farthest = torch.cat([bboxes.flatten(), bboxes.new_zeros(1)]).max()
    return bboxes + (labels.to(bboxes) * (farthest + 1))[:, None]


@torch.jit.script
def decay_scores(scores: Tensor, weights: Tensor) -> Tensor:
    """Lower the scores ``(N,)`` of boxes near better ones, whose ``weights`` ``(N, N)`` say how much of them stays."""
    waiting = torch.ones_like(scores)
    for _ in range(scores.shape[0]):
        best = (scores * waiting - (1 - waiting)).argmax(0, keepdim=True)
        waiting = waiting.scatter(0, best, torch.zeros(1))
        kept = weights.index_select(0, best)[0]
        scores = scores * torch.where(waiting > 0, kept, torch.ones_like(kept))
    return scores


class HardNMS:
    """Remove boxes that overlap with better ones, as mmcv's ``nms``.

    Args:
        iou_threshold: Overlap above which a box is removed.
        offset: Pixels that are added to the sides of boxes.
        max_num: Boxes to keep at most.
    """

    def __init__(self, iou_threshold: float, offset: int = 0, max_num: int = UNLIMITED) -> None:
        self.iou_threshold = iou_threshold
        self.offset = offset
        self.max_num = max_num

    def __call__(self, results: InstanceData, bboxes: Tensor) -> InstanceData:
        """Select detections, by ``bboxes`` ``(N, 4)``, best first."""
        bboxes = bboxes + bboxes.new_tensor([0, 0, self.offset, self.offset])
        return results[NonMaxSuppression.apply(bboxes, results.scores, self.iou_threshold, self.max_num)]


class GaussianNMS:
    """Lower the scores of boxes that overlap with better ones, as mmcv's ``soft_nms`` with ``method='gaussian'``.

    Args:
        sigma: The larger, the less scores fall.
        min_score: Score below which a box is removed.
        offset: Pixels that are added to the sides of boxes.
        iou_threshold: Not used by this method.
    """

    def __init__(
        self, sigma: float = 0.5, min_score: float = 1e-3, offset: int = 0, iou_threshold: float = 0.3
    ) -> None:
        self.sigma = sigma
        self.min_score = min_score
        self.offset = offset

    def __call__(self, results: InstanceData, bboxes: Tensor) -> InstanceData:
        """Select detections, by ``bboxes`` ``(N, 4)``, best first, with their new scores."""
        bboxes = bboxes + bboxes.new_tensor([0, 0, self.offset, self.offset])
        weights = (-pairwise_ious(bboxes, bboxes).square() / self.sigma).exp()
        results.scores = decay_scores(results.scores, weights)
        results = sort_by_score(results)
        # mmcv never removes the best one.
        is_best = torch.arange(results.scores.shape[0]) == 0
        kept = (results.scores >= self.min_score) | is_best
        return results[kept.nonzero()[:, 0]]


class BatchedNMS:
    """Suppress within classes, or among all with ``class_agnostic``.

    Args:
        nms: Config as ``mmcv.ops.batched_nms`` takes it.
        where: Setting that has it, for the message.

    Raises:
        InputError: If it cannot be exported.
    """

    def __init__(self, nms: Mapping, where: str) -> None:
        options = dict(nms)
        self.class_agnostic = options.pop('class_agnostic', False)
        options.pop('split_thr', None)  # the result is the same
        self.suppress = make_suppression(options, f'{where} has {dict(nms)}')

    def __call__(self, results: InstanceData) -> InstanceData:
        """Select detections with ``bboxes`` ``(N, 4)``, ``scores`` and ``labels`` ``(N,)``, best first."""
        bboxes = results.bboxes
        return self.suppress(results, bboxes if self.class_agnostic else separate_classes(bboxes, results.labels))


def make_suppression(options: dict, described: str) -> Callable[[InstanceData, Tensor], InstanceData]:
    """Make the suppression of a config without what ``batched_nms`` itself takes.

    Args:
        options: Config; it is emptied.
        described: Beginning of the message.

    Raises:
        InputError: If it cannot be exported.
    """
    kind, method = options.pop('type', 'nms'), options.pop('method', None)
    makers = {('nms', None): HardNMS, ('soft_nms', 'gaussian'): GaussianNMS}
    try:
        return makers[kind, method](**options)
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{described}, which cannot be exported. Use nms with iou_threshold, or soft_nms with method='gaussian'."
        ) from error
