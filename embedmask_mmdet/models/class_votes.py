"""Scores that also say whether the candidates of an object agree on its class."""

from __future__ import annotations

import torch
from mmdet.registry import TASK_UTILS
from mmengine.structures import InstanceData
from torch import Tensor


def pairwise_ious(bboxes: Tensor, others: Tensor) -> Tensor:
    """Compute the IoU of each of ``N`` boxes with each of ``M`` others: ``(N, 4), (M, 4) -> (N, M)``.

    Boxes without extent overlap nothing. MMDetection's function has branches in Python, of which an exported graph
    would keep one.
    """
    x1, y1, x2, y2 = bboxes[:, :, None].unbind(1)
    other_x1, other_y1, other_x2, other_y2 = others.unbind(1)
    width = (torch.minimum(x2, other_x2) - torch.maximum(x1, other_x1)).clamp(min=0)
    shared = width * (torch.minimum(y2, other_y2) - torch.maximum(y1, other_y1)).clamp(min=0)
    areas = (x2 - x1) * (y2 - y1) + (other_x2 - other_x1) * (other_y2 - other_y1)
    return shared / (areas - shared).clamp(min=torch.finfo(shared.dtype).tiny)


def class_shares(results: InstanceData, candidates: InstanceData) -> Tensor:
    """Compute which part of the votes about its object each detection's class gets.

    Args:
        results: ``N`` detections: ``bboxes`` ``(N, 4)`` and ``labels`` ``(N,)``.
        candidates: ``M`` of the same image, before NMS: ``bboxes`` ``(M, 4)``, ``scores`` and ``labels`` ``(M,)``. Each
            has a vote, its score times the square of its IoU with the detection.

    Returns:
        ``(N,)`` from 0 to 1; 1 where there is no vote, as for boxes without extent.
    """
    votes = pairwise_ious(results.bboxes, candidates.bboxes).square() * candidates.scores
    for_class = (votes * (results.labels[:, None] == candidates.labels)).sum(1)
    total = votes.sum(1)
    return torch.where(total > 0, for_class / total, torch.ones_like(total))


@TASK_UTILS.register_module()
class EmbedMaskClassVotes:
    """Multiply each score by a power of the part of votes that its class gets, see :func:`class_shares`.

    Neighboring locations see the same object, but a young detector often gives them different classes. NMS only keeps
    the best location of each class. docs/accuracy.md shows what the others' votes gain.

    Args:
        weight: Exponent, from 0 (scores stay) to 1.

    Raises:
        ValueError: If ``weight`` is not from 0 to 1.
    """

    def __init__(self, weight: float = 0.5) -> None:
        if not 0 <= weight <= 1:
            raise ValueError(f'EmbedMaskClassVotes.weight must be from 0 to 1, got {weight}')
        self.weight = weight

    def __call__(self, results: InstanceData, candidates: InstanceData) -> InstanceData:
        """Lower the scores of detections whose class is in doubt.

        Args:
            results: Detections of an image after NMS, see :func:`class_shares`; with ``scores`` ``(N,)``.
            candidates: Those before NMS.

        Returns:
            The same detections with other ``scores``, in the order they had.
        """
        results.scores = results.scores * class_shares(results, candidates) ** self.weight
        return results
