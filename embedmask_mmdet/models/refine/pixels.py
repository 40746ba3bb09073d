"""What a refinement knows of the image that its detections are in."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class PixelGrid(NamedTuple):
    """The pixel embedding of an image, and how masks are made of it.

    Attributes:
        pixel_embed: ``(D, h, w)``.
        stride: Input pixels per cell.
        mask_thr: Probability above which a pixel belongs to an instance.
    """

    pixel_embed: Tensor
    stride: int
    mask_thr: float
