"""The masks in the two kinds of ONNX file: bitmaps, and values on the mask grid that are resized inside their boxes.

N: detections, (H, W): the image, cell: of the mask grid.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

BLOCK_SIZE = 65536  # pixels that are resized at once, few enough for the cache


class Crop(NamedTuple):
    """A mask inside a box, outside of which it is off.

    Attributes:
        corner: ``(x, y)`` of the box in the image.
        bitmap: bool ``(h, w)``.
    """

    corner: tuple[int, int]
    bitmap: np.ndarray


def bound(bitmap: np.ndarray) -> Crop:
    """Cut a mask ``(H, W)`` to the box around it."""
    ys, xs = (np.flatnonzero(bitmap.any(axis)) for axis in (1, 0))
    if not len(ys):
        return Crop((0, 0), bitmap[:0, :0])
    return Crop((int(xs[0]), int(ys[0])), bitmap[ys[0] : ys[-1] + 1, xs[0] : xs[-1] + 1])


class Bitmaps:
    """Masks as the file gives them by default.

    Args:
        bitmaps: bool ``(N, H, W)``.
    """

    def __init__(self, bitmaps: np.ndarray) -> None:
        self.bitmaps = bitmaps

    @classmethod
    def from_outputs(cls, outputs: Mapping[str, np.ndarray], shape: tuple[int, int], threshold: float) -> Bitmaps:
        """Take the masks from the outputs of a file."""
        return cls(outputs['masks'])

    def __getitem__(self, index: np.ndarray) -> Bitmaps:
        return Bitmaps(self.bitmaps[index])

    def crops(self) -> Iterator[Crop]:
        """Iterate over the masks inside the boxes around them."""
        return map(bound, self.bitmaps)

    def to_array(self) -> np.ndarray:
        """Return bool ``(N, H, W)``."""
        return self.bitmaps


class Axis(NamedTuple):
    """Where the pixels of a row or a column lie between cells, as ``interpolate`` of PyTorch computes it.

    Attributes:
        cell: int64, the cell before each pixel.
        before: float32, the weight of this cell.
        after: float32, the weight of the next cell.
    """

    cell: np.ndarray
    before: np.ndarray
    after: np.ndarray

    @classmethod
    def make(cls, num_pixels: int, num_cells: int, resized_size: int) -> Axis:
        """Place pixels.

        Args:
            num_pixels: Pixels of the image.
            num_cells: Cells of the complete grid.
            resized_size: Pixels that the complete grid is resized to.
        """
        scale = np.float32(num_cells) / np.float32(resized_size)
        position = np.maximum((np.arange(num_pixels, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5), 0)
        cell = position.astype(np.int64)
        after = position - cell.astype(np.float32)
        return cls(cell, 1 - after, after)

    def crop(self, begin: int, end: int, first_cell: int) -> Axis:
        """Keep some of the pixels, and count cells from `first_cell` on."""
        return Axis(self.cell[begin:end] - first_cell, self.before[begin:end], self.after[begin:end])


def resize_rows(values: np.ndarray, axis: Axis) -> np.ndarray:
    """Interpolate between the rows of float32 ``(cells, n)``."""
    resized = values.take(axis.cell, 0, mode='clip')
    resized *= axis.before[:, None]
    # Pixels after the center of the last cell have its value.
    after = values.take(axis.cell + 1, 0, mode='clip')
    after *= axis.after[:, None]
    resized += after
    return resized


def resize_columns(values: np.ndarray, axis: Axis) -> np.ndarray:
    """Interpolate between the columns of float32 ``(n, cells)``."""
    resized = values.take(axis.cell, 1, mode='clip')
    resized *= axis.before
    after = values.take(axis.cell + 1, 1, mode='clip')
    after *= axis.after
    resized += after
    return resized


@dataclass(frozen=True, eq=False)
class GridMasks:
    """Masks of a file that was exported with ``--masks grid``. Each is made when it is asked for, inside its box.

    Attributes:
        shape: ``(H, W)``.
        boxes: int64 ``(N, 4)``, ``x1, y1, x2, y2`` in pixels, outside of which masks are off.
        starts: int64 ``(N, 2)``, column and row of the first cell of each detection.
        values: N arrays float32 ``(rows, columns)``, what is resized.
        rows: Where the rows of the image lie in the grid.
        columns: Where its columns lie.
        threshold: A pixel is on if its resized value is higher.
    """

    shape: tuple[int, int]
    boxes: np.ndarray
    starts: np.ndarray
    values: list[np.ndarray]
    rows: Axis
    columns: Axis
    threshold: np.float32

    @classmethod
    def from_outputs(cls, outputs: Mapping[str, np.ndarray], shape: tuple[int, int], threshold: float) -> GridMasks:
        """Take the masks from the outputs of a file.

        Args:
            outputs: By name.
            shape: ``(H, W)`` of the image.
            threshold: Of the file.
        """
        cells = outputs['grid_crops']
        sizes = (cells[:, 2:] - cells[:, :2])[:, ::-1]
        parts = np.split(outputs['values'], np.cumsum(sizes.prod(1))[:-1]) if len(cells) else []
        axes = map(Axis.make, shape, outputs['grid_size'].tolist(), outputs['resized_size'].tolist())
        values = [part.reshape(size) for part, size in zip(parts, sizes)]
        return cls(shape, outputs['crops'], cells[:, :2], values, *axes, np.float32(threshold))

    def __getitem__(self, index: np.ndarray) -> GridMasks:
        values = [self.values[i] for i in index]
        chosen = self.boxes[index], self.starts[index], values
        return GridMasks(self.shape, *chosen, self.rows, self.columns, self.threshold)

    def cut_at(self, probability: float) -> GridMasks:
        """Return the masks with another threshold. Files have values that are probabilities or logarithms of them."""
        threshold = math.log(probability) if self.threshold < 0 else probability
        return replace(self, threshold=np.float32(threshold))

    def crops(self) -> Iterator[Crop]:
        """Iterate over the masks inside their boxes."""
        for box, start, values in zip(self.boxes.tolist(), self.starts.tolist(), self.values):
            yield Crop((box[0], box[1]), self._finish(box, start, values))

    def _finish(self, box: list[int], start: list[int], values: np.ndarray) -> np.ndarray:
        x1, y1, x2, y2 = box
        if x1 >= x2 or y1 >= y2:
            return np.zeros((0, 0), bool)
        with np.errstate(invalid='ignore'):  # infinite values
            wide = resize_columns(values, self.columns.crop(x1, x2, start[0]))
            num_rows = max(1, BLOCK_SIZE // (x2 - x1))
            blocks = [
                resize_rows(wide, self.rows.crop(y, min(y + num_rows, y2), start[1])) > self.threshold
                for y in range(y1, y2, num_rows)
            ]
        return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)

    def to_array(self) -> np.ndarray:
        """Return bool ``(N, H, W)``."""
        bitmaps = np.zeros((len(self.values), *self.shape), bool)
        for bitmap, ((x, y), crop) in zip(bitmaps, self.crops()):
            bitmap[y : y + crop.shape[0], x : x + crop.shape[1]] = crop
        return bitmaps
