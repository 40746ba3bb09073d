"""The mask loss written down plainly, instance by instance, with every tensor that the formulas name.

It is what the lean loss is tested and measured against.
"""

from __future__ import annotations

import math

import torch
from mmengine.structures import InstanceData
from torch import Tensor
from torch.nn import functional

from embedmask_mmdet.targets import aligned_ious

MIN_PROB = 1e-9


def embedding_log_prob(pixel_embed: Tensor, proposal_embed: Tensor, proposal_margin: Tensor) -> Tensor:
    """``(D, h, w), (N, D), (N, D) -> (N, h, w)`` by way of ``(N, D, h, w)``."""
    distance = (pixel_embed[None] - proposal_embed[:, :, None, None]) ** 2
    return -(proposal_margin[:, :, None, None] * distance).sum(dim=1)


def logit(log_prob: Tensor) -> Tensor:
    """Logit of a probability that is clamped to ``[1e-9, 1 - 1e-9]``."""
    log_prob = log_prob.clamp(math.log(MIN_PROB), -MIN_PROB)
    return log_prob - torch.log(-torch.expm1(log_prob))


def jaccard_steps(target: Tensor) -> Tensor:
    """Differences of the Jaccard loss as pixels ``(K,)`` are misclassified one after another."""
    target = target.double()
    total = target.sum()
    jaccard = 1 - (total - target.cumsum(0)) / (total + (1 - target).cumsum(0))
    return torch.cat([jaccard[:1], jaccard[1:] - jaccard[:-1]])


def lovasz_hinge(log_prob: Tensor, target: Tensor) -> Tensor:
    """Lovász hinge of each instance, ``(N, ...) -> (N,)``, by sorting all of its pixels."""
    losses = [log_prob.flatten()[:0]]
    for instance_log_prob, instance_target in zip(log_prob.flatten(1), target.flatten(1)):
        signs = 2 * instance_target.to(log_prob.dtype) - 1
        errors, order = (1 - logit(instance_log_prob) * signs).sort(descending=True)
        steps = jaccard_steps(instance_target[order]).to(log_prob.dtype)
        losses.append(torch.dot(errors.relu(), steps)[None])
    return torch.cat(losses)


def best_location(gt_inds: Tensor, bboxes: Tensor, gt_bboxes: Tensor) -> list[int]:
    """Index of each instance's candidate with the highest IoU; instances without one are left out."""
    chosen = []
    for gt_ind, gt_bbox in enumerate(gt_bboxes):
        candidates = (gt_inds == gt_ind).nonzero().squeeze(1)
        if len(candidates):
            ious = aligned_ious(bboxes[candidates], gt_bbox.expand(len(candidates), 4))
            chosen.append(int(candidates[ious.argmax()]))
    return chosen


def mask_target(mask: Tensor, mask_size: tuple[int, int], mask_stride: int) -> Tensor:
    """One mask ``(H, W)``, padded with zeros, resized to the grid; what is above 0 is foreground."""
    padded = mask.new_zeros(mask_size[0] * mask_stride, mask_size[1] * mask_stride, dtype=torch.float32)
    padded[: mask.shape[0], : mask.shape[1]] = mask
    return functional.interpolate(padded[None, None], mask_size, mode='bilinear', align_corners=False)[0, 0] > 0


def mask_loss(
    pixel_embeds: Tensor,
    batch_masks: list[Tensor],
    positive_infos: list[InstanceData],
    mask_scale: int = 2,
    mask_stride: int = 4,
) -> Tensor:
    """The whole mask loss from pixel embeddings ``(B, D, h, w)``; masks ``(N, H, W)`` of each image."""
    mask_embeds = functional.interpolate(pixel_embeds, scale_factor=mask_scale, mode='bilinear', align_corners=False)
    loss = pixel_embeds.sum() * 0
    for mask_embed, masks, positives in zip(mask_embeds, batch_masks, positive_infos):
        if len(positives):
            log_prob = embedding_log_prob(mask_embed, positives.proposal_embed, positives.proposal_margin)
            targets = [mask_target(masks[i], mask_embed.shape[1:], mask_stride) for i in positives.gt_inds.tolist()]
            loss = loss + lovasz_hinge(log_prob, torch.stack(targets)).mean()
    return 0.5 * loss / len(pixel_embeds)
