"""Random boxes with sizes as they are common in photographs."""

from __future__ import annotations

import torch
from torch import Tensor

MEDIAN_SIDE = 110  # input pixels, in images whose short side has SHORT_SIDE pixels
SHORT_SIDE = 800


def draw_box_sides(num_boxes: int, generator: torch.Generator) -> Tensor:
    """Draw log-normal widths and heights with a median of 110 input pixels, ``(N, 2)``."""
    return MEDIAN_SIDE * torch.exp(0.6 * torch.randn(num_boxes, 2, generator=generator))


def draw_bboxes(num_boxes: int, img_shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Draw boxes ``(N, 4)`` with uniform centers and the sides of :func:`draw_box_sides`, clipped to the image."""
    size = torch.tensor(img_shape[::-1])
    centers = torch.rand(num_boxes, 2, generator=generator) * size
    sides = draw_box_sides(num_boxes, generator)
    return torch.cat([centers - sides / 2, centers + sides / 2], 1).clamp(min=0).minimum(size.repeat(2).float())
