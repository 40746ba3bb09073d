"""The mask loss in plain PyTorch, one instance after another, with every tensor that the formulas name.

The loss of the mask head is tested against it and measured against it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from mmengine.structures import InstanceData
from torch import Tensor
from torch.nn import functional

MIN_PROB = 1e-9


def embedding_log_prob(pixel_embed: Tensor, proposal_embed: Tensor, proposal_margin: Tensor) -> Tensor:
    """Compute the log-probability that a pixel belongs to an instance.

    Args:
        pixel_embed: ``(D, h, w)``.
        proposal_embed: ``(N, D)``.
        proposal_margin: ``(N, D)``.

    Returns:
        ``(N, h, w)``.
    """
    distance = (pixel_embed[None] - proposal_embed[:, :, None, None]) ** 2
    return -(proposal_margin[:, :, None, None] * distance).sum(dim=1)


def log_prob_to_logit(log_prob: Tensor) -> Tensor:
    """Compute the logit of a probability, which is clamped to ``[1e-9, 1 - 1e-9]``, from its logarithm."""
    log_prob = log_prob.clamp(math.log(MIN_PROB), -MIN_PROB)
    return log_prob - torch.log(-torch.expm1(log_prob))


def jaccard_steps(target: Tensor) -> Tensor:
    """Compute by how much the Jaccard loss grows with each pixel that is misclassified, in the order of the pixels.

    Args:
        target: Bool ``(K,)``, whether a pixel is foreground.

    Returns:
        Float64 ``(K,)``.
    """
    target = target.double()
    total = target.sum()
    jaccard = 1 - (total - target.cumsum(0)) / (total + (1 - target).cumsum(0))
    return torch.cat([jaccard[:1], jaccard[1:] - jaccard[:-1]])


def lovasz_hinge(log_prob: Tensor, target: Tensor) -> Tensor:
    """Compute the Lovász hinge loss of each instance by sorting all of its pixels.

    Args:
        log_prob: ``(N, ...)``.
        target: Bool ``(N, ...)``.

    Returns:
        ``(N,)``.
    """
    losses = [log_prob.flatten()[:0]]
    for instance_log_prob, instance_target in zip(log_prob.flatten(1), target.flatten(1)):
        signs = 2 * instance_target.to(log_prob.dtype) - 1
        errors, order = (1 - log_prob_to_logit(instance_log_prob) * signs).sort(descending=True)
        steps = jaccard_steps(instance_target[order]).to(log_prob.dtype)
        losses.append(torch.dot(errors.relu(), steps)[None])
    return torch.cat(losses)


def resize_mask(mask: Tensor, grid_size: tuple[int, int], mask_stride: int) -> Tensor:
    """Resize a mask to the grid of the loss. A cell with a value above 0 is foreground.

    Args:
        mask: ``(H, W)``; it is padded with zeros to the size of the grid.
        grid_size: Height and width of the grid.
        mask_stride: Input pixels per cell.

    Returns:
        Bool tensor of the grid's size.
    """
    padded = mask.new_zeros(grid_size[0] * mask_stride, grid_size[1] * mask_stride, dtype=torch.float32)
    padded[: mask.shape[0], : mask.shape[1]] = mask
    return functional.interpolate(padded[None, None], grid_size, mode='bilinear', align_corners=False)[0, 0] > 0


def mask_loss(
    pixel_embeds: Tensor,
    batch_masks: Sequence[Tensor],
    batch_positives: Sequence[InstanceData],
    mask_scale: int = 2,
    mask_stride: int = 4,
) -> Tensor:
    """Compute the mask loss of a batch.

    Args:
        pixel_embeds: ``(B, D, h, w)``.
        batch_masks: Ground-truth masks ``(N, H, W)`` of each image.
        batch_positives: Chosen locations of each image: ``gt_inds`` ``(K,)``, ``proposal_embed`` and
            ``proposal_margin`` ``(K, D)``.
        mask_scale: How many times the grid of the loss is finer than ``pixel_embeds``.
        mask_stride: Input pixels per cell of the grid of the loss.

    Returns:
        Half of the mean over locations, then over images.
    """
    mask_embeds = functional.interpolate(pixel_embeds, scale_factor=mask_scale, mode='bilinear', align_corners=False)
    loss = pixel_embeds.sum() * 0
    for mask_embed, masks, positives in zip(mask_embeds, batch_masks, batch_positives):
        if len(positives):
            log_prob = embedding_log_prob(mask_embed, positives.proposal_embed, positives.proposal_margin)
            targets = [resize_mask(masks[i], mask_embed.shape[1:], mask_stride) for i in positives.gt_inds.tolist()]
            loss = loss + lovasz_hinge(log_prob, torch.stack(targets)).mean()
    return 0.5 * loss / len(pixel_embeds)
