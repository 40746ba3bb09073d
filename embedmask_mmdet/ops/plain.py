"""The op in plain PyTorch, for installations without the extension. The tests compare the kernels with it.

N: instances, D: embedding channels, (h, w): a grid.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from mmdet.structures.mask import encode_mask_results
from torch import Tensor

from .mask_stage import MaskStage, inside_boxes

# The log-probability -sum_c margin_c * (pixel_c - proposal_c) ** 2, for all instances, for one, and at points ---------


def at_least_float32(*tensors: Tensor) -> list[Tensor]:
    """Convert half precision to float32, as distances between embeddings need more than half precision."""
    return [t if t.dtype == torch.float64 else t.float() for t in tensors]


class LogProb(torch.autograd.Function):
    """Compute log-probabilities of all instances channel by channel, so that memory does not grow with D."""

    @staticmethod
    def _channels(
        pixel_embed: Tensor, proposal_embed: Tensor, proposal_margin: Tensor
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield differences ``(N, h, w)`` and margins ``(N, 1, 1)`` of each channel."""
        for pixel, proposal, margin in zip(pixel_embed, proposal_embed.t(), proposal_margin.t()):
            yield pixel - proposal[:, None, None], margin[:, None, None]

    @staticmethod
    def forward(ctx, pixel_embed: Tensor, proposal_embed: Tensor, proposal_margin: Tensor) -> Tensor:  # noqa: D102
        ctx.save_for_backward(pixel_embed, proposal_embed, proposal_margin)
        dtype = torch.promote_types(pixel_embed.dtype, torch.promote_types(proposal_embed.dtype, proposal_margin.dtype))
        log_prob = pixel_embed.new_zeros(len(proposal_embed), *pixel_embed.shape[1:], dtype=dtype)
        for difference, margin in LogProb._channels(pixel_embed, proposal_embed, proposal_margin):
            log_prob.sub_(margin * difference.square_())
        return log_prob

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # noqa: D102
        grads = []
        for difference, margin in LogProb._channels(*ctx.saved_tensors):
            weighted = grad * difference
            pixel_grad = -2 * (margin * weighted).sum(0)
            proposal_grad = 2 * margin[:, 0, 0] * weighted.sum((1, 2))
            grads.append((pixel_grad, proposal_grad, -weighted.mul_(difference).sum((1, 2))))
        pixel_grads, proposal_grads, margin_grads = zip(*grads)
        return torch.stack(pixel_grads), torch.stack(proposal_grads, 1), torch.stack(margin_grads, 1)


def embedding_log_prob(pixel_embed: Tensor, proposal_embed: Tensor, proposal_margin: Tensor) -> Tensor:
    """Compute what :func:`embedmask_mmdet.ops.embedding_log_prob` describes."""
    return LogProb.apply(*at_least_float32(pixel_embed, proposal_embed, proposal_margin))


def single_log_prob(pixel_embed: Tensor, proposal_embed: Tensor, proposal_margin: Tensor) -> Tensor:
    """Compute the log-probabilities ``(h, w)`` of one instance ``(D,)``, ``(D,)``: all channels in few calls."""
    distance = (pixel_embed - proposal_embed[:, None, None]).square_()
    return -torch.tensordot(proposal_margin.to(distance.dtype), distance, 1)


def point_log_prob(points_embed: Tensor, proposal_embed: Tensor, proposal_margin: Tensor) -> Tensor:
    """Compute what :func:`embedmask_mmdet.ops.point_log_prob` describes."""
    points_embed, embed, margin = at_least_float32(points_embed, proposal_embed, proposal_margin)
    distance = (points_embed - embed[..., None, None]).square()
    return -(margin[..., None, None] * distance).sum(dim=1)


# The mask stage -------------------------------------------------------------------------------------------------------


def instance_log_probs(stage: MaskStage) -> Iterator[Tensor]:
    """Yield what :func:`embedmask_mmdet.ops.instance_log_probs` describes."""
    pixel_embed, embeds, margins = at_least_float32(stage.pixel_embed, stage.proposal_embed, stage.proposal_margin)
    resized_embed = F.interpolate(pixel_embed[None], stage.cell_shape, mode='bilinear')[0]
    # One instance at a time, so that its values stay in the caches.
    for bbox, embed, margin in zip(stage.bboxes, embeds, margins):
        log_prob = single_log_prob(resized_embed, embed, margin)[None]
        inside = inside_boxes(bbox[None], stage.cell_shape, stage.cell)
        values = log_prob.exp() if stage.resize_prob else log_prob
        values = values.masked_fill(~inside, stage.outside_value)
        values = F.interpolate(values[None], stage.resized_shape, mode='bilinear')[0, 0]
        values = values[: stage.ori_shape[0], : stage.ori_shape[1]]
        yield values.log() if stage.resize_prob else values


def instance_masks(stage: MaskStage) -> Tensor:
    """Compute what :func:`embedmask_mmdet.ops.instance_masks` describes."""
    masks = torch.empty((len(stage.bboxes), *stage.ori_shape), dtype=torch.bool, device=stage.pixel_embed.device)
    for i, log_prob in enumerate(instance_log_probs(stage)):
        masks[i] = log_prob > stage.log_thr
    return masks


def instance_rles(stage: MaskStage) -> list[dict]:
    """Compute what :func:`embedmask_mmdet.ops.instance_rles` describes."""
    return encode_mask_results(instance_masks(stage).cpu().numpy())
