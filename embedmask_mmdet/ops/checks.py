"""Checks of the op's arguments. An error names the argument, its value and what was expected."""

from __future__ import annotations

import numbers
from typing import Any

import torch
from torch import Tensor


def check_tensor(
    name: str, tensor: Any, shape: tuple[int | None, ...], expected: str, like: Tensor | None = None
) -> None:
    """Check type, shape and device of one argument.

    Args:
        name: The argument's name.
        tensor: Its value.
        shape: The sizes that it must have, None for any positive size.
        expected: The shape in words.
        like: ``pixel_embed``, if the tensor must be on the same device.

    Raises:
        TypeError: If it is not a floating-point tensor.
        ValueError: If its shape or its device is wrong.
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
        raise ValueError(f'{name} is on {tensor.device}, but pixel_embed is on {like.device}: move them to one device')


def _length(tensor: Any) -> int | None:
    return len(tensor) if isinstance(tensor, Tensor) and tensor.dim() else None


def check_embeddings(pixel_embed: Tensor, proposal_embed: Tensor, proposal_margin: Tensor) -> None:
    """Check the three tensors ``(D, h, w)``, ``(N, D)`` and ``(N, D)``; for errors see :func:`check_tensor`."""
    check_tensor('pixel_embed', pixel_embed, (None, None, None), '(D, h, w) without a size of 0')
    channels, instances = len(pixel_embed), _length(proposal_embed)
    expected = f"(N, {channels}), pixel_embed's D"
    check_tensor('proposal_embed', proposal_embed, (instances, channels), expected, pixel_embed)
    expected = f"({instances}, {channels}), proposal_embed's N and pixel_embed's D"
    check_tensor('proposal_margin', proposal_margin, (instances, channels), expected, pixel_embed)


def check_points(points_embed: Tensor, proposal_embed: Tensor, proposal_margin: Tensor) -> None:
    """Check the three tensors ``(N, D, h, w)``, ``(N, D)`` and ``(N, D)``; for errors see :func:`check_tensor`."""
    instances = _length(points_embed)
    expected = '(N, D, h, w) without a size of 0 but N'
    check_tensor('points_embed', points_embed, (instances, None, None, None), expected)
    shape = (instances, points_embed.shape[1])
    check_tensor('proposal_embed', proposal_embed, shape, f"{shape}, points_embed's (N, D)")
    check_tensor('proposal_margin', proposal_margin, shape, f"{shape}, points_embed's (N, D)")


def check_shape(name: str, shape: Any) -> None:
    """Raise TypeError or ValueError unless ``shape`` is a pair ``(h, w)`` of positive integers."""
    if not isinstance(shape, (tuple, list, torch.Size)):
        raise TypeError(f'{name} must be a pair (h, w) of pixels, got {type(shape).__name__}')
    if len(shape) != 2 or not all(isinstance(n, numbers.Integral) and n > 0 for n in shape):
        raise ValueError(f'{name} must be a pair (h, w) of positive integers, got {tuple(shape)}')


def check_positive_int(name: str, value: Any) -> None:
    """Raise ValueError unless ``value`` is an integer above 0."""
    if not isinstance(value, numbers.Integral) or value <= 0:
        raise ValueError(f'{name} must be a positive integer, got {value!r}')
