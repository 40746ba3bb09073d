"""The op in C++ and CUDA. torch.compile and torch.export see its operators.

Importing this module raises ImportError if the extension was not built.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

import embedmask_mmdet._ext  # noqa: F401 (registers the operators)

from .mask_stage import MaskStage

_operators = torch.ops.embedmask
_register_fake = getattr(torch.library, 'register_fake', None) or torch.library.impl_abstract  # torch < 2.4

DEVICES = frozenset(
    device
    for device in ('cpu', 'cuda')
    if torch._C._dispatch_has_kernel_for_dispatch_key('embedmask::instance_masks', device.upper())
)


def embedding_log_prob(pixel_embed: Tensor, proposal_embed: Tensor, proposal_margin: Tensor) -> Tensor:
    """Compute what :func:`embedmask_mmdet.ops.embedding_log_prob` describes."""
    tensors = (pixel_embed, proposal_embed, proposal_margin)
    dtype = torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32
    return _operators.embedding_log_prob(*(tensor.to(dtype) for tensor in tensors))


def _operator_arguments(stage: MaskStage) -> tuple:
    tensors = (stage.pixel_embed, stage.proposal_embed, stage.proposal_margin, stage.bboxes)
    sizes = (stage.stride, stage.img_shape, stage.ori_shape)
    return *tensors, *sizes, stage.mask_thr, stage.outside_value, stage.resize_prob, stage.upscale


def instance_masks(stage: MaskStage) -> Tensor:
    """Compute what :func:`embedmask_mmdet.ops.instance_masks` describes."""
    return _operators.instance_masks(*_operator_arguments(stage))


def instance_rles(stage: MaskStage) -> list[dict]:
    """Compute what :func:`embedmask_mmdet.ops.instance_rles` describes."""
    strings, starts = _operators.instance_rles(*_operator_arguments(stage))
    strings, starts, (h, w) = strings.numpy().tobytes(), starts.tolist(), map(int, stage.ori_shape)
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
