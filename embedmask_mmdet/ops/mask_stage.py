"""The arguments of the mask stage of inference, and the arithmetic of its grids that all implementations share.

N: instances, D: embedding channels, (h, w): the pixel embedding's grid, cell: a cell of the grid after its resize.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .checks import check_embeddings, check_positive_int, check_shape, check_tensor

DEFAULT_MASK_THR = 0.53  # probability above which a pixel belongs to an instance
BOX_PADDING = 2  # cells by which a box is grown on each side
OUTSIDE = -10.0  # log-probability of the cells outside the box


@dataclass(frozen=True, eq=False)
class MaskStage:
    """Check and hold the arguments of :func:`embedmask_mmdet.ops.instance_masks`, which describes them.

    Raises:
        TypeError: If a tensor is not floating point, or a shape is not a pair.
        ValueError: If shapes or devices do not match, or a number is out of range.
    """

    pixel_embed: Tensor
    proposal_embed: Tensor
    proposal_margin: Tensor
    bboxes: Tensor
    stride: int
    img_shape: tuple[int, int]
    ori_shape: tuple[int, int]
    mask_thr: float = DEFAULT_MASK_THR
    upscale: int = 2
    resize_prob: bool = False

    def __post_init__(self) -> None:
        check_embeddings(self.pixel_embed, self.proposal_embed, self.proposal_margin)
        instances = len(self.proposal_embed)
        expected = f"({instances}, 4), proposal_embed's N"
        check_tensor('bboxes', self.bboxes, (instances, 4), expected, self.pixel_embed)
        check_positive_int('stride', self.stride)
        check_positive_int('upscale', self.upscale)
        check_shape('img_shape', self.img_shape)
        check_shape('ori_shape', self.ori_shape)
        if not 0 < self.mask_thr < 1:
            raise ValueError(f'mask_thr must be a probability between 0 and 1, both excluded, got {self.mask_thr}')
        covered = tuple(cells * self.stride for cells in self.grid_shape)
        if any(covers < img for covers, img in zip(covered, self.img_shape)):
            raise ValueError(
                f'img_shape {tuple(self.img_shape)} is larger than the {covered} input pixels that pixel_embed covers: '
                f'{self.grid_shape} cells of stride {self.stride}. Pass the stride and img_shape of this pixel_embed'
            )

    @property
    def grid_shape(self) -> tuple[int, int]:
        """``(h, w)`` of the pixel embedding before its resize."""
        return tuple(self.pixel_embed.shape[-2:])

    @property
    def cell_shape(self) -> tuple[int, int]:
        """``(h, w)`` in cells of the pixel embedding after its resize."""
        return tuple(size * self.upscale for size in self.grid_shape)

    @property
    def cell(self) -> float:
        """Side of a cell in input pixels."""
        return self.stride / self.upscale

    @property
    def resized_shape(self) -> tuple[int, int]:
        """``(h, w)`` of the complete grid in original pixels, rounded up. Masks are cut from its top left corner."""
        sizes = zip(self.grid_shape, self.img_shape, self.ori_shape)
        return tuple(-(-size * self.stride * ori // img) for size, img, ori in sizes)

    @property
    def log_thr(self) -> float:
        """Log-probability above which a pixel is on."""
        return math.log(self.mask_thr)

    @property
    def outside_value(self) -> float:
        """Value of cells outside a box, in what is resized to the image."""
        return find_outside_value(self.mask_thr, self.resize_prob)


def find_outside_value(mask_thr: float, resize_prob: bool) -> float:
    """Find :attr:`MaskStage.outside_value`.

    It is at most the double of the threshold's logarithm, so that no threshold lets a mask leave its box.
    """
    return 0.0 if resize_prob else min(OUTSIDE, 2 * math.log(mask_thr))


def box_cells(bboxes: Tensor, grid_shape: tuple[int, int], cell: float, padding: int = BOX_PADDING) -> Tensor:
    """Compute the cells that a mask may touch: its box in cells, truncated, grown and clipped to the grid.

    Arguments are those of :func:`inside_boxes`.

    Returns:
        int64 ``(N, 4)``, right and bottom exclusive; all 0 for a box that holds a NaN.
    """
    size = bboxes.new_tensor(grid_shape[::-1] * 2, dtype=torch.float64)
    cells = (bboxes.double() / cell).trunc() + padding * size.new_tensor([-1, -1, 1, 1])
    cells[cells.isnan().any(1)] = 0
    return cells.clamp(min=0).minimum(size).long()


def inside_boxes(bboxes: Tensor, grid_shape: tuple[int, int], cell: float, padding: int = BOX_PADDING) -> Tensor:
    """Mark the cells of a grid that lie in each box, which is truncated to cells, grown and clipped to the grid.

    Args:
        bboxes: ``(N, 4)`` boxes ``x1, y1, x2, y2`` in input pixels.
        grid_shape: ``(h, w)`` of the grid in cells.
        cell: Side of a cell in input pixels.
        padding: Cells by which a box is grown on each side.

    Returns:
        bool ``(N, h, w)``, False everywhere for a box that holds a NaN.
    """
    x1, y1, x2, y2 = box_cells(bboxes, grid_shape, cell, padding)[..., None].unbind(1)
    y, x = (torch.arange(cells, device=bboxes.device) for cells in grid_shape)
    return ((y1 <= y) & (y < y2))[:, :, None] & ((x1 <= x) & (x < x2))[:, None, :]
