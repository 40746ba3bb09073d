"""The grid of cells that masks are computed on, and the part of it that each detection needs.

N: detections, D: embedding channels, (h, w): cells of the grid, (H, W): original pixels. Sizes are int64 tensors.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.onnx.operators import shape_as_tensor

from embedmask_mmdet.deployment.preprocessing import Sizes
from embedmask_mmdet.models import EmbedMaskMaskHead
from embedmask_mmdet.models.refine import PixelGrid
from embedmask_mmdet.ops.mask_stage import BOX_PADDING


class Axis(NamedTuple):
    """One axis of the resize from cells to original pixels. A pixel lies between cell ``cell`` and the cell after it.

    Attributes:
        cell: int64, of each pixel.
        weight: float32, of the cell after ``cell``, for each pixel.
        size: int64 ``()``, number of cells.
    """

    cell: Tensor
    weight: Tensor
    size: Tensor

    def count_pixels(self, ends: Tensor) -> Tensor:
        """Count the pixels whose cell is before each of `ends`, int64 ``(N,)``."""
        return (self.cell < ends[:, None]).long().sum(1)

    def weigh_cells(self) -> Tensor:
        """Return the weights of all cells for each pixel, ``(pixels, cells)``."""
        steps = (self.cell[:, None] - torch.arange(self.size)).float()
        return (1 - (steps + self.weight[:, None]).abs()).clamp(min=0)


def make_axis(size: Tensor, resized_size: Tensor, num_pixels: Tensor) -> Axis:
    """Resize `size` cells to `resized_size` pixels, of which the first `num_pixels` are in the image."""
    # In single precision, as PyTorch does.
    position = (torch.arange(num_pixels).float() + 0.5) * (size.float() / resized_size.float()) - 0.5
    position = torch.minimum(position.clamp(min=0), size.float() - 1)
    cell = position.floor()
    return Axis(cell.long(), position - cell, size)


class MaskGrid(NamedTuple):
    """The mask grid of an image.

    Attributes:
        pixels: The pixel embedding before its resize, for refinements.
        pixel_embed: ``(D, h, w)``, resized.
        cell: Side of a cell in input pixels.
        resized_size: ``(2,)``, height and width of the complete grid in original pixels, rounded up. Masks are cut from
            its top left corner.
        rows: The vertical axis.
        columns: The horizontal axis.
    """

    pixels: PixelGrid
    pixel_embed: Tensor
    cell: float
    resized_size: Tensor
    rows: Axis
    columns: Axis

    @property
    def grid_size(self) -> Tensor:
        """``(2,)``, ``h`` and ``w``."""
        return torch.stack([self.rows.size, self.columns.size])

    @property
    def image_size(self) -> Tensor:
        """``(2,)``, ``H`` and ``W``."""
        return torch.cat([shape_as_tensor(axis.cell) for axis in (self.rows, self.columns)])


class MakeGrid(nn.Module):
    """Make the mask grid of an image.

    Args:
        mask_head: Of the detector.
    """

    def __init__(self, mask_head: EmbedMaskMaskHead) -> None:
        super().__init__()
        self.stride = mask_head.stride
        self.upscale = mask_head.mask_scale
        self.mask_thr = mask_head.mask_thr

    def forward(self, pixel_embed: Tensor, sizes: Sizes) -> MaskGrid:
        """Make the grid of a pixel embedding before its resize, of an image with `sizes`."""
        grid_shape = shape_as_tensor(pixel_embed)[1:]
        covered = grid_shape * self.stride * sizes.ori_shape
        resized_size = (covered + sizes.img_shape - 1).div(sizes.img_shape, rounding_mode='floor')
        axes = zip((grid_shape * self.upscale).unbind(), resized_size.unbind(), sizes.ori_shape.unbind())
        return MaskGrid(
            PixelGrid(pixel_embed, self.stride, self.mask_thr),
            functional.interpolate(pixel_embed[None], scale_factor=self.upscale, mode='bilinear')[0],
            self.stride / self.upscale,
            resized_size,
            *(make_axis(*axis) for axis in axes),
        )


class Crops(NamedTuple):
    """What the mask of each detection depends on, and where it can be: windows, int64 ``(N, 2, 2)``.

    The first two numbers of a window are its first row and column, the others are the row and column after the last.

    Attributes:
        boxes: Cells that the box does not cut off.
        cells: Cells that ``pixels`` lie between: those of ``boxes`` and one more on each side.
        pixels: Pixels that depend on a cell of ``boxes``.
    """

    boxes: Tensor
    cells: Tensor
    pixels: Tensor


def find_crops(bboxes: Tensor, grid: MaskGrid) -> Crops:
    """Find the cells that :func:`embedmask_mmdet.ops.inside_boxes` marks, and what belongs to them.

    Args:
        bboxes: ``(N, 4)`` in input pixels.
        grid: Of the image.
    """
    corners = (bboxes.double() / grid.cell).long().unflatten(1, (2, 2)).flip(2)
    size = grid.grid_size
    begin, end = (corners + torch.tensor([[-BOX_PADDING], [BOX_PADDING]])).clamp(min=0).minimum(size).unbind(1)
    end = torch.maximum(begin, end)
    before = (begin - 1).clamp(min=0)
    axes = (grid.rows, grid.columns)
    pixels = [
        torch.stack([axis.count_pixels(cells) for axis, cells in zip(axes, edge.unbind(1))], dim=1)
        for edge in (before, end)
    ]
    after = torch.minimum(end + 1, size)
    return Crops(*(torch.stack(window, dim=1) for window in ([begin, end], [before, after], pixels)))


def to_xyxy(windows: Tensor) -> Tensor:
    """Convert windows to ``x1, y1, x2, y2``, right and bottom exclusive, int64 ``(N, 4)``."""
    return torch.cat(windows.flip(2).unbind(1), dim=1)
