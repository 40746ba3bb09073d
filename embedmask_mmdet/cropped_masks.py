"""MMDetection's bitmaps, each stored only inside a box around its mask."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import mmcv
import numpy as np
from mmdet.structures.bbox import HorizontalBoxes, get_box_type
from mmdet.structures.mask import BitmapMasks

from embedmask_mmdet.runtime.masks import Crop, bound


def find_columns(width: int, new_width: int) -> np.ndarray:
    """Find the column that ``BitmapMasks.resize`` reads for each column of the result, int64 ``(new_width,)``."""
    high, low = np.divmod(np.arange(width), 256)
    image = np.stack([high, low]).astype(np.uint8)
    high, low = mmcv.imresize(image, (new_width, 2), interpolation='nearest').astype(np.int64)
    return 256 * high + low


def find_rows(height: int, new_height: int) -> np.ndarray:
    """Find the row that ``BitmapMasks.resize`` reads for each row of the result, int64 ``(new_height,)``."""
    high, low = np.divmod(np.arange(height), 256)
    image = np.stack([high, low], axis=1).astype(np.uint8)
    high, low = mmcv.imresize(image, (2, new_height), interpolation='nearest').T.astype(np.int64)
    return 256 * high + low


def resize_crop(crop: Crop, columns: np.ndarray, rows: np.ndarray) -> Crop:
    """Resize a mask.

    Args:
        crop: The mask.
        columns: Of :func:`find_columns`.
        rows: Of :func:`find_rows`.
    """
    (left, top), bitmap = crop
    x1, x2 = columns.searchsorted((left, left + bitmap.shape[1])).tolist()
    y1, y2 = rows.searchsorted((top, top + bitmap.shape[0])).tolist()
    return Crop((x1, y1), bitmap.take(rows[y1:y2] - top, axis=0).take(columns[x1:x2] - left, axis=1))


def cut_crop(crop: Crop, x1: int, y1: int, x2: int, y2: int) -> Crop:
    """Cut a part out of an image with a mask, whose corner becomes ``(0, 0)``."""
    (left, top), bitmap = crop
    bitmap = bitmap[max(y1 - top, 0) : max(y2 - top, 0), max(x1 - left, 0) : max(x2 - left, 0)]
    return Crop((max(left - x1, 0), max(top - y1, 0)), bitmap)


def flip_columns(crop: Crop, width: int) -> Crop:
    """Mirror an image of a width with a mask, left to right."""
    (left, top), bitmap = crop
    return Crop((width - left - bitmap.shape[1], top), bitmap[:, ::-1])


def flip_rows(crop: Crop, height: int) -> Crop:
    """Mirror an image of a height with a mask, top to bottom."""
    (left, top), bitmap = crop
    return Crop((left, height - top - bitmap.shape[0]), bitmap[::-1])


class CroppedMasks(BitmapMasks):
    """Bitmaps of ``N`` instances that take only the memory of the boxes around them.

    Everything that ``BitmapMasks`` can do gives equal bitmaps. Choosing, flipping, cutting, padding with background and
    resizing with ``'nearest'`` give ``CroppedMasks`` again, and take time for the boxes alone. So do areas and boxes.
    Every other use makes bitmaps of the complete image, which :attr:`masks` then keeps.

    Args:
        masks: As in ``BitmapMasks``; :meth:`from_crops` makes masks without bitmaps of the complete image.
        height: Of the image.
        width: Of the image.

    Attributes:
        crops: The masks.
    """

    @classmethod
    def from_crops(cls, crops: Iterable[Crop], height: int, width: int) -> CroppedMasks:
        """Make masks.

        Args:
            crops: The masks, uint8.
            height: Of the image.
            width: Of the image.
        """
        masks = cls([], height, width)
        masks.crops, masks._bitmaps = list(crops), None
        return masks

    @property
    def masks(self) -> np.ndarray:
        """Bitmaps, uint8 ``(N, height, width)``; writing into them changes the masks."""
        if self._bitmaps is None:
            bitmaps = np.zeros((len(self), self.height, self.width), np.uint8)
            for complete, ((left, top), bitmap) in zip(bitmaps, self.crops):
                complete[top : top + bitmap.shape[0], left : left + bitmap.shape[1]] = bitmap
            self.masks = bitmaps
        return self._bitmaps

    @masks.setter
    def masks(self, bitmaps: np.ndarray) -> None:
        self._bitmaps = bitmaps
        # What is written into the bitmaps must be in the crops as well.
        self.crops = [Crop((0, 0), bitmap) for bitmap in bitmaps]

    def __len__(self) -> int:
        return len(self.crops)

    def __repr__(self) -> str:
        return f'CroppedMasks(num_masks={len(self)}, height={self.height}, width={self.width})'

    def __getitem__(self, index: Any) -> CroppedMasks:
        chosen = np.arange(len(self))[index].ravel()
        return CroppedMasks.from_crops([self.crops[i] for i in chosen], self.height, self.width)

    def __reduce__(self) -> tuple:
        return CroppedMasks.from_crops, (self.crops, self.height, self.width)

    def _change(self, change: Callable[[Crop], Crop], height: int, width: int) -> CroppedMasks:
        return CroppedMasks.from_crops(map(change, self.crops), height, width)

    def rescale(self, scale: float | tuple[int, int], interpolation: str = 'nearest') -> BitmapMasks:
        """Resize the masks and keep the aspect ratio, see ``BitmapMasks.rescale``."""
        width, height = mmcv.rescale_size((self.width, self.height), scale)
        return self.resize((height, width), interpolation)

    def resize(self, out_shape: tuple[int, int], interpolation: str = 'nearest') -> BitmapMasks:
        """Resize the masks to ``(height, width)``, see ``BitmapMasks.resize``."""
        if interpolation != 'nearest' or not self.crops:
            return super().resize(out_shape, interpolation)
        rows, columns = find_rows(self.height, out_shape[0]), find_columns(self.width, out_shape[1])
        return self._change(lambda crop: resize_crop(crop, columns, rows), *out_shape)

    def flip(self, flip_direction: str = 'horizontal') -> CroppedMasks:
        """Mirror the masks, see ``BitmapMasks.flip``."""
        assert flip_direction in ('horizontal', 'vertical', 'diagonal')
        flipped = self
        if flip_direction != 'vertical':
            flipped = flipped._change(lambda crop: flip_columns(crop, self.width), self.height, self.width)
        if flip_direction != 'horizontal':
            flipped = flipped._change(lambda crop: flip_rows(crop, self.height), self.height, self.width)
        return flipped

    def pad(self, out_shape: tuple[int, int], pad_val: int = 0) -> BitmapMasks:
        """Pad the masks at the right and bottom, see ``BitmapMasks.pad``."""
        if pad_val or out_shape[0] < self.height or out_shape[1] < self.width:
            return super().pad(out_shape, pad_val)
        return CroppedMasks.from_crops(self.crops, *out_shape)

    def crop(self, bbox: np.ndarray) -> BitmapMasks:
        """Cut the box ``(x1, y1, x2, y2)`` out of the masks, see ``BitmapMasks.crop``."""
        x1, y1, x2, y2 = np.clip(bbox, 0, (self.width, self.height) * 2).tolist()
        if x1 >= self.width or y1 >= self.height:
            return super().crop(bbox)
        # MMDetection's boxes have one pixel at least.
        x2, y2 = max(x2, x1 + 1), max(y2, y1 + 1)
        return self._change(lambda crop: cut_crop(crop, x1, y1, x2, y2), y2 - y1, x2 - x1)

    @property
    def areas(self) -> np.ndarray:
        """Pixels of each mask, uint64 ``(N,)``."""
        return np.array([crop.bitmap.sum() for crop in self.crops], np.uint64)

    def get_bboxes(self, dst_type: str | type = 'hbb') -> Any:
        """Find the boxes around masks, see ``BitmapMasks.get_bboxes``."""
        if get_box_type(dst_type)[1] is not HorizontalBoxes:
            return super().get_bboxes(dst_type)
        boxes = np.zeros((len(self), 4), np.float32)
        for box, ((left, top), bitmap) in zip(boxes, self.crops):
            (x, y), inside = bound(bitmap)
            if inside.size:
                box[:] = left + x, top + y, left + x + inside.shape[1], top + y + inside.shape[0]
        return HorizontalBoxes(boxes)

    @classmethod
    def cat(cls, masks: Sequence[BitmapMasks]) -> BitmapMasks:
        """Concatenate masks of images of the same size."""
        if not all(isinstance(part, CroppedMasks) for part in masks):
            return BitmapMasks.cat(masks)
        sizes = {(part.height, part.width) for part in masks}
        if len(sizes) != 1:
            return BitmapMasks.cat(masks)
        return CroppedMasks.from_crops([crop for part in masks for crop in part.crops], *sizes.pop())
