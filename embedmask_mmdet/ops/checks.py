"""Checks of the op's arguments: an error names the argument, what it is and what was expected."""

from __future__ import annotations

import numbers
from typing import Any

import torch
from torch import Tensor


def check_tensor(
    name: str, tensor: Any, shape: tuple[int | None, ...], expected: str, like: Tensor | None = None
) -> None:
    """Checks kind, shape and device of one argument.

    Args:
        name: The argument's name.
        tensor: Its value.
        shape: Its sizes, None where any positive size will do.
        expected: The shape in words.
        like: The tensor whose device it must share.

    Raises:
        TypeError: If it is no floating-point tensor.
        ValueError: If its shape or its device is another.
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f'{name} must be a floating-point tensor {expected}, got {type(tensor).__name__}')
    if not tensor.is_floating_point():
        raise TypeError(f'{name} must be a floating-point tensor {expected}, got {tensor.dtype}')
    fits = tensor.dim() == len(shape) and all(
        n > 0 if want is None else n == want for n, want in zip(tensor.shape, shape)
    )
    if not fits:
        raise ValueError(f'{name} must have the shape {expected}, got {tuple(tensor.shape)}')
    if like is not None and tensor.device != like.device:
        raise ValueError(f'{name} is on {tensor.device}, but pixel_embed is on {like.device}: move one to the other')


def check_embeddings(pixel_embed: Tensor, proposal_embed: Tensor, proposal_margin: Tensor) -> None:
    """Checks the three tensors ``(D, h, w)``, ``(N, D)`` and ``(N, D)``; for errors see :func:`check_tensor`."""
    check_tensor('pixel_embed', pixel_embed, (None, None, None), '(D, h, w) without a size of 0')
    channels = len(pixel_embed)
    instances = len(proposal_embed) if isinstance(proposal_embed, Tensor) and proposal_embed.dim() else None
    check_tensor(
        'proposal_embed', proposal_embed, (instances, channels), f"(N, {channels}), pixel_embed's D", pixel_embed
    )
    expected = f"({instances}, {channels}), proposal_embed's N and pixel_embed's D"
    check_tensor('proposal_margin', proposal_margin, (instances, channels), expected, pixel_embed)


def check_shape(name: str, shape: Any) -> None:
    """Raises TypeError or ValueError unless ``shape`` is a pair ``(h, w)`` of positive integers."""
    if not isinstance(shape, (tuple, list, torch.Size)):
        raise TypeError(f'{name} must be a pair (h, w) of pixels, got {type(shape).__name__}')
    if len(shape) != 2 or not all(isinstance(n, numbers.Integral) and n > 0 for n in shape):
        raise ValueError(f'{name} must be a pair (h, w) of positive integers, got {tuple(shape)}')


def check_positive_int(name: str, value: Any) -> None:
    """Raises ValueError unless ``value`` is an integer above 0."""
    if not isinstance(value, numbers.Integral) or value <= 0:
        raise ValueError(f'{name} must be a positive integer, got {value!r}')


def check_mask_stage(
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
) -> None:
    """Checks the arguments of the mask stage of inference; raises TypeError or ValueError."""
    check_embeddings(pixel_embed, proposal_embed, proposal_margin)
    instances = len(proposal_embed)
    check_tensor('bboxes', bboxes, (instances, 4), f"({instances}, 4), proposal_embed's N", pixel_embed)
    check_positive_int('stride', stride)
    check_positive_int('upscale', upscale)
    check_shape('img_shape', img_shape)
    check_shape('ori_shape', ori_shape)
    if not 0 < mask_thr < 1:
        raise ValueError(f'mask_thr must be a probability between 0 and 1, both excluded, got {mask_thr}')
    grid = tuple(pixel_embed.shape[-2:])
    if any(n * stride < img for n, img in zip(grid, img_shape)):
        raise ValueError(
            f'img_shape {tuple(img_shape)} is larger than what pixel_embed covers: '
            f'{grid} cells of stride {stride} are {tuple(n * stride for n in grid)} input pixels'
        )
