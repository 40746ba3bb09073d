"""The masks of detections: the mask stage of ``embedmask_mmdet.ops`` for a graph, in loops that look into boxes only.

PyTorch's exporter makes a ``Loop`` of a scripted function, whose arguments can be tensors, numbers and tuples of them.
Loops count the rows of ``proposal_embed``: the exporter takes the number of windows to be the same in all images.

N: detections, D: embedding channels, (h, w): cells of the grid, (H, W): original pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from mmengine.structures import InstanceData
from torch import Tensor

from embedmask_mmdet.deployment import operators  # noqa: F401, it defines torch.ops.embedmask_onnx
from embedmask_mmdet.deployment.grid import Crops, MaskGrid
from embedmask_mmdet.models import EmbedMaskMaskHead
from embedmask_mmdet.ops.mask_stage import find_outside_value


class Cells(NamedTuple):
    """What the values of cells are computed from.

    Attributes:
        pixel_embed: ``(D, h, w)``.
        proposal_embed: ``(N, D, 1, 1)``.
        proposal_margin: ``(N, D, 1, 1)``.
        begin: First row and column of the cells in the box, int64 ``(N, 2)``.
        end: Row and column after the last.
        sides: How many other cells are needed above, left, below and right, int64 ``(N, 4)``.
    """

    pixel_embed: Tensor
    proposal_embed: Tensor
    proposal_margin: Tensor
    begin: Tensor
    end: Tensor
    sides: Tensor


class Pixels(NamedTuple):
    """How cells become pixels: by a matrix product on either side.

    Attributes:
        row_weights: ``(H, h)``.
        row_begin: First row and column of ``row_weights`` that are needed, int64 ``(N, 2)``.
        row_end: Row and column after the last.
        column_weights: ``(w, W)``.
        column_begin: First row and column of ``column_weights`` that are needed, int64 ``(N, 2)``.
        column_end: Row and column after the last.
        sides: How many other pixels the image has above, left, below and right, int64 ``(N, 4)``.
    """

    row_weights: Tensor
    row_begin: Tensor
    row_end: Tensor
    column_weights: Tensor
    column_begin: Tensor
    column_end: Tensor
    sides: Tensor


# A call that is traced passes a named tuple as a tuple.
CellsTuple = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
PixelsTuple = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def count_sides(inner: Tensor, outer: Tensor) -> Tensor:
    """Count the rows and columns between windows and larger windows, above, left, below and right, ``(N, 4)``."""
    return torch.cat((inner - outer).abs().unbind(1), dim=1)


def gather_cells(results: InstanceData, crops: Crops, grid: MaskGrid) -> Cells:
    """Gather what the values of detections with crops in a grid are computed from."""
    return Cells(
        grid.pixel_embed,
        results.proposal_embed[:, :, None, None],
        results.proposal_margin[:, :, None, None],
        *crops.boxes.unbind(1),
        count_sides(crops.boxes, crops.cells),
    )


def gather_pixels(crops: Crops, grid: MaskGrid) -> Pixels:
    """Find how crops of a grid become pixels."""
    image = torch.stack([torch.zeros_like(grid.image_size), grid.image_size])
    rows = torch.stack([crops.pixels[..., 0], crops.cells[..., 0]], dim=2)
    columns = torch.stack([crops.cells[..., 1], crops.pixels[..., 1]], dim=2)
    return Pixels(
        grid.rows.weigh_cells(),
        *rows.unbind(1),
        grid.columns.weigh_cells().t(),
        *columns.unbind(1),
        count_sides(crops.pixels, image),
    )


def log_prob(distances: Tensor) -> Tensor:
    """Convert weighted distances between embeddings to log-probabilities."""
    return -distances


def prob(distances: Tensor) -> Tensor:
    """Convert weighted distances between embeddings to probabilities."""
    return (-distances).exp()


def script_cells(convert: Callable[[Tensor], Tensor]) -> torch.jit.ScriptFunction:
    """Script a function that computes the values of a detection's cells, by `convert` where they are in its box."""

    def compute(i: int, cells: CellsTuple, outside: float) -> Tensor:
        pixel_embed, proposal_embed, proposal_margin, begin, end, sides = cells
        pixels = torch.ops.embedmask_onnx.crop(pixel_embed, begin[i], end[i])
        distances = ((pixels - proposal_embed[i]).square() * proposal_margin[i]).sum(0)
        return torch.ops.embedmask_onnx.pad(convert(distances), sides[i], outside)

    return torch.jit.script(compute)


def script_pixels(compute_cells: torch.jit.ScriptFunction) -> torch.jit.ScriptFunction:
    """Script a function that computes the values of a detection's pixels."""

    def compute(i: int, cells: CellsTuple, pixels: PixelsTuple, outside: float) -> Tensor:
        row_weights, row_begin, row_end, column_weights, column_begin, column_end, _ = pixels
        rows = torch.ops.embedmask_onnx.crop(row_weights, row_begin[i], row_end[i])
        columns = torch.ops.embedmask_onnx.crop(column_weights, column_begin[i], column_end[i])
        return rows @ compute_cells(i, cells, outside) @ columns

    return torch.jit.script(compute)


def script_bitmap_loop(compute_pixels: torch.jit.ScriptFunction) -> torch.jit.ScriptFunction:
    """Script a loop that computes bitmaps."""

    def loop(cells: CellsTuple, pixels: PixelsTuple, image_size: Tensor, outside: float, threshold: float) -> Tensor:
        # The first entry is for images without detections.
        bitmaps, sides = [torch.zeros([0, int(image_size[0]), int(image_size[1])], dtype=torch.bool)], pixels[-1]
        for i in range(cells[1].shape[0]):
            is_on = compute_pixels(i, cells, pixels, outside) > threshold
            bitmaps.append(torch.ops.embedmask_onnx.pad(is_on, sides[i], 0.0)[None])
        return torch.cat(bitmaps)

    return torch.jit.script(loop)


def script_extent_loop(compute_pixels: torch.jit.ScriptFunction) -> torch.jit.ScriptFunction:
    """Script a loop that computes the largest value in each row and column of the image."""

    def loop(cells: CellsTuple, pixels: PixelsTuple, image_size: Tensor, outside: float) -> tuple[Tensor, Tensor]:
        rows, columns = [torch.zeros([0, int(image_size[0])])], [torch.zeros([0, int(image_size[1])])]
        row_sides, column_sides = pixels[-1][:, ::2], pixels[-1][:, 1::2]
        for i in range(cells[1].shape[0]):
            values = compute_pixels(i, cells, pixels, outside)
            rows.append(torch.ops.embedmask_onnx.pad(values.amax(1), row_sides[i], outside)[None])
            columns.append(torch.ops.embedmask_onnx.pad(values.amax(0), column_sides[i], outside)[None])
        return torch.cat(rows), torch.cat(columns)

    return torch.jit.script(loop)


def script_cell_loop(compute_cells: torch.jit.ScriptFunction) -> torch.jit.ScriptFunction:
    """Script a loop that computes the values of cells, of one detection after the other, row by row."""

    def loop(cells: CellsTuple, outside: float) -> Tensor:
        values = [torch.zeros([0])]
        for i in range(cells[1].shape[0]):
            values.append(compute_cells(i, cells, outside).flatten())
        return torch.cat(values)

    return torch.jit.script(loop)


class MaskStage:
    """Make masks, or a part of them, of an image's detections.

    Args:
        mask_head: Of the detector.

    Attributes:
        threshold: What the value of a pixel must exceed.
    """

    def __init__(self, mask_head: EmbedMaskMaskHead) -> None:
        mask_thr, resize_prob = mask_head.mask_thr, mask_head.resize_prob
        self.threshold = mask_thr if resize_prob else math.log(mask_thr)
        self.outside = find_outside_value(mask_thr, resize_prob)
        compute_cells = script_cells(prob if resize_prob else log_prob)
        compute_pixels = script_pixels(compute_cells)
        self.cell_loop = script_cell_loop(compute_cells)
        self.extent_loop = script_extent_loop(compute_pixels)
        self.bitmap_loop = script_bitmap_loop(compute_pixels)

    def compute_values(self, results: InstanceData, crops: Crops, grid: MaskGrid) -> Tensor:
        """Compute the values in ``crops.cells`` of one detection after the other, row by row."""
        return self.cell_loop(gather_cells(results, crops, grid), self.outside)

    def compute_bitmaps(self, results: InstanceData, crops: Crops, grid: MaskGrid) -> Tensor:
        """Compute masks, bool ``(N, H, W)``."""
        cells, pixels = gather_cells(results, crops, grid), gather_pixels(crops, grid)
        return self.bitmap_loop(cells, pixels, grid.image_size, self.outside, self.threshold)

    def find_extents(self, results: InstanceData, crops: Crops, grid: MaskGrid) -> tuple[Tensor, Tensor]:
        """Find the rows and the columns that masks touch, bool ``(N, H)`` and ``(N, W)``."""
        cells, pixels = gather_cells(results, crops, grid), gather_pixels(crops, grid)
        rows, columns = self.extent_loop(cells, pixels, grid.image_size, self.outside)
        return rows > self.threshold, columns > self.threshold
