"""Resize an image as OpenCV does, to the last bit: detections with similar scores would change places otherwise."""

from __future__ import annotations

import torch
from torch import Tensor

COEF_SCALE = 2048  # OpenCV computes with whole numbers, and counts weights in this unit


def weigh_pixels(size: Tensor, new_size: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Find the two pixels of a row or column that each new pixel lies between.

    Args:
        size: Of the row, int64 ``()``.
        new_size: After the resize, int64 ``()``.

    Returns:
        Indices of both, int64 ``(new_size,)``, and their weights, int32 ``(new_size,)`` in units of ``1 / COEF_SCALE``.
    """
    # As vectors, because the exporter computes in single precision with single numbers.
    scale = 1 / (new_size[None].double() / size[None].double())
    position = ((torch.arange(new_size).double() + 0.5) * scale - 0.5).float()
    first = position.floor()
    fraction = position - first
    indices = ((first + step).long().clamp(min=0).minimum(size - 1) for step in (0, 1))
    weights = ((weight * COEF_SCALE).round().int() for weight in (1 - fraction, fraction))
    return (*indices, *weights)


def divide(values: Tensor, divisor: int) -> Tensor:
    """Divide whole numbers that are at least 0, rounding down."""
    return values.div(divisor, rounding_mode='trunc').int()


def resize(image: Tensor, shape: Tensor, new_shape: Tensor) -> Tensor:
    """Do what ``cv2.resize`` with ``INTER_LINEAR`` does.

    Args:
        image: uint8 ``(H, W, C)``.
        shape: int64 ``(2,)``, its height and width.
        new_shape: The same after the resize.

    Returns:
        int32 ``(h, w, C)``.
    """
    top, bottom, top_weight, bottom_weight = weigh_pixels(shape[0], new_shape[0])
    left, right, left_weight, right_weight = weigh_pixels(shape[1], new_shape[1])
    image = image.int()
    # Repeated weights are faster: runtimes multiply in rows as long as the last axis, otherwise 3.
    left_weight, right_weight = (weight[:, None].repeat(1, image.shape[2]) for weight in (left_weight, right_weight))
    rows = image[:, left] * left_weight + image[:, right] * right_weight
    # OpenCV drops digits here, and at the next step, that would not fit into 32 bits.
    rows = divide(rows, 16)
    upper, lower = rows[top] * top_weight[:, None, None], rows[bottom] * bottom_weight[:, None, None]
    return divide(divide(upper, 65536) + divide(lower, 65536) + 2, 4)
