"""What the box head predicts and learns at each location, by name."""

from __future__ import annotations

from typing import NamedTuple

import torch
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
