"""The op through the extension of C++ and CUDA kernels, whose operators are seen by torch.compile and torch.export.

Importing this module fails where the extension was not built.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

import embedmask_mmdet._ext  # noqa: F401 (registers the operators)

from .plain import outside_value

_operators = torch.ops.embedmask
_register_fake = getattr(torch.library, 'register_fake', None) or torch.library.impl_abstract  # torch < 2.4

DEVICES = frozenset(
    device
    for device in ('cpu', 'cuda')
    if torch._C._dispatch_has_kernel_for_dispatch_key('embedmask::instance_masks', device.upper())
)


def embedding_log_prob(pixel_embed: Tensor, proposal_embed: Tensor, proposal_margin: Tensor) -> Tensor:
    """See :func:`embedmask_mmdet.ops.embedding_log_prob`."""
    tensors = (pixel_embed, proposal_embed, proposal_margin)
    dtype = torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32
    return _operators.embedding_log_prob(*(tensor.to(dtype) for tensor in tensors))


def instance_masks(
    pixel_embed: Tensor,
    proposal_embed: Tensor,
    proposal_margin: Tensor,
    bboxes: Tensor,
    *,
    stride: int,
    img_shape: tuple[int, int],
    ori_shape: tuple[int, int],
    mask_thr: float,
    upscale: int,
    resize_prob: bool,
) -> Tensor:
    """See :func:`embedmask_mmdet.ops.instance_masks`."""
    tensors = (pixel_embed, proposal_embed, proposal_margin, bboxes)
    values = (mask_thr, outside_value(mask_thr, resize_prob), resize_prob)
    return _operators.instance_masks(*tensors, stride, img_shape, ori_shape, *values, upscale)


def instance_rles(
    pixel_embed: Tensor,
    proposal_embed: Tensor,
    proposal_margin: Tensor,
    bboxes: Tensor,
    *,
    stride: int,
    img_shape: tuple[int, int],
    ori_shape: tuple[int, int],
    mask_thr: float,
    upscale: int,
    resize_prob: bool,
) -> list[dict]:
    """See :func:`embedmask_mmdet.ops.instance_rles`."""
    tensors = (pixel_embed, proposal_embed, proposal_margin, bboxes)
    values = (mask_thr, outside_value(mask_thr, resize_prob), resize_prob)
    strings, starts = _operators.instance_rles(*tensors, stride, img_shape, ori_shape, *values, upscale)
    strings, starts, (h, w) = strings.numpy().tobytes(), starts.tolist(), map(int, ori_shape)
    return [{'size': [h, w], 'counts': strings[begin:end]} for begin, end in pairwise(starts)]


class _EmbeddingLogProb(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors)
        with torch._C._AutoDispatchBelowAutograd():
            return _operators.embedding_log_prob(*tensors)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return _operators.embedding_log_prob_backward(grad, *ctx.saved_tensors)


_autograd = torch.library.Library('embedmask', 'IMPL')
_autograd.impl('embedding_log_prob', _EmbeddingLogProb.apply, 'Autograd')


@_register_fake('embedmask::embedding_log_prob')
def _(pixel_embed: Tensor, proposal_embed: Tensor, proposal_margin: Tensor) -> Tensor:
    return pixel_embed.new_empty((len(proposal_embed), *pixel_embed.shape[1:]))


@_register_fake('embedmask::embedding_log_prob_backward')
def _(grad: Tensor, pixel_embed: Tensor, proposal_embed: Tensor, proposal_margin: Tensor) -> tuple[Tensor, ...]:
    tensors = (pixel_embed, proposal_embed, proposal_margin)
    return tuple(torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in tensors)


@_register_fake('embedmask::instance_masks')
def _(pixel_embed: Tensor, proposal_embed: Tensor, proposal_margin, bboxes, stride, img_shape, ori_shape, *_) -> Tensor:
    return pixel_embed.new_empty((len(proposal_embed), *ori_shape), dtype=torch.bool)


@_register_fake('embedmask::instance_rles')
def _(pixel_embed: Tensor, proposal_embed: Tensor, *_) -> tuple[Tensor, Tensor]:
    length = torch.library.get_ctx().new_dynamic_size()
    strings = torch.empty(length, dtype=torch.uint8, device='cpu')
    return strings, torch.empty(len(proposal_embed) + 1, dtype=torch.int64, device='cpu')
