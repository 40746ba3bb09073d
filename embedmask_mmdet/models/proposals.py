"""What the box head predicts and learns at each location, by name."""

from __future__ import annotations

from typing import NamedTuple

import torch
from mmdet.structures.bbox import bbox2distance
from mmengine.structures import InstanceData
from torch import Tensor

from embedmask_mmdet.targets import NO_INSTANCE


class ProposalMaps(NamedTuple):
    """What the box head predicts at each location: five lists with a map for each level, ``L x (B, ?, h, w)``."""

    cls_scores: list[Tensor]
    bbox_preds: list[Tensor]
    centernesses: list[Tensor]
    proposal_embeds: list[Tensor]
    proposal_margins: list[Tensor]


class LocationTargets(NamedTuple):
    """What the ``P`` locations of an image learn.

    Attributes:
        gt_inds: Int64 ``(P,)``, index of the instance, -1 for background.
        labels: Int64 ``(P,)``, class of the instance, ``C`` for background.
        bbox_targets: ``(P, 4)``, distances from the location to the sides of the box in input pixels.
    """

    gt_inds: Tensor
    labels: Tensor
    bbox_targets: Tensor


def flatten_levels(mlvl_maps: list[Tensor]) -> Tensor:
    """Line up the cells of all levels: ``L x (B, C, h, w) -> (B, P, C)``."""
    return torch.cat([level.flatten(2).transpose(1, 2) for level in mlvl_maps], dim=1)


def make_targets(gt_inds: Tensor, points: Tensor, gt_instances: InstanceData, num_classes: int) -> LocationTargets:
    """Make what the locations of an image learn from the instances that they are assigned to.

    Args:
        gt_inds: Int64 ``(P,)`` from :func:`assign_locations`.
        points: ``(P, 2)`` in input pixels.
        gt_instances: ``bboxes`` in input pixels and ``labels`` of the image.
        num_classes: ``C``.

    Returns:
        Targets of each location.
    """
    positive = gt_inds != NO_INSTANCE
    labels = gt_inds.new_full(gt_inds.shape, num_classes)
    labels[positive] = gt_instances.labels[gt_inds[positive]]
    bbox_targets = points.new_zeros((len(points), 4))
    bbox_targets[positive] = bbox2distance(points[positive], gt_instances.bboxes[gt_inds[positive]])
    return LocationTargets(gt_inds, labels, bbox_targets)


def rank_candidates(
    cls_score: Tensor, centerness: Tensor, score_thr: float, nms_pre: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Pick the cells of a map that may be detections: by class alone, ranked by class and centerness.

    Args:
        cls_score: Class logits ``(C, P)``.
        centerness: Logits ``(P,)``.
        score_thr: Class probability above which a cell counts.
        nms_pre: Cells to keep at most, the best ones; -1 for all.

    Returns:
        Of each candidate, best first: score, label and cell, ``(K,)`` each.
    """
    # Few of many scores pass, so it is cheaper to convert the threshold to a logit than the logits to scores.
    labels, cells = (cls_score > cls_score.new_tensor(score_thr).logit()).nonzero(as_tuple=True)
    scores = cls_score[labels, cells].sigmoid() * centerness[cells].sigmoid()
    scores, order = scores.topk(min(nms_pre, len(scores)) if nms_pre > 0 else len(scores))
    return scores, labels[order], cells[order]


def index_positives(targets: list[LocationTargets], batch_gt_instances: list[InstanceData]) -> InstanceData:
    """Find the positive locations of a batch, and the instances that they stand for.

    Args:
        targets: Of each image.
        batch_gt_instances: ``bboxes`` of each image.

    Returns:
        ``K`` positives by image and location, int64 ``(K,)`` each: ``img_inds``; ``locations``; ``gt_inds``, the
        instance within its image; ``batch_gt_inds``, the instance within the batch. With ``gt_bboxes`` ``(K, 4)``.
    """
    num_gts = [len(gt_instances) for gt_instances in batch_gt_instances]
    gt_bboxes = torch.cat([gt_instances.bboxes for gt_instances in batch_gt_instances])
    first_gts = torch.tensor([0, *num_gts[:-1]], device=gt_bboxes.device).cumsum(0)
    matched_gts = torch.stack([image.gt_inds for image in targets])
    img_inds, locations = (matched_gts != NO_INSTANCE).nonzero(as_tuple=True)
    gt_inds = matched_gts[img_inds, locations]
    batch_gt_inds = gt_inds + first_gts[img_inds]
    return InstanceData(
        img_inds=img_inds,
        locations=locations,
        gt_inds=gt_inds,
        batch_gt_inds=batch_gt_inds,
        gt_bboxes=gt_bboxes[batch_gt_inds],
    )
