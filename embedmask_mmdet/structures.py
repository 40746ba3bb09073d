"""What a detection carries with ``mask_format='rle'``, and the boxes around masks of either format."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pycocotools.mask
import torch
from mmdet.structures.mask import mask2bbox
from mmengine.structures import BaseDataElement
from torch import Tensor
from torch.utils._pytree import tree_map


class RLEMasks(BaseDataElement):
    """A sequence of COCO RLE dicts that stands in for the bool tensor ``(N, h, w)`` of ``InstanceData.masks``.

    An item is a plain dict, as pycocotools wants it. ``numpy()``, ``astype()``, ``to_tensor()`` and torch's functions
    see the bitmaps, which are decoded there and not kept.

    Args:
        rles: N COCO RLE dicts.
        ori_shape: ``(h, w)`` of the masks, needed where there is none to ask.
    """

    def __init__(self, rles: Sequence[dict] = (), ori_shape: tuple[int, int] = (0, 0)) -> None:
        super().__init__(metainfo=dict(ori_shape=tuple(ori_shape)), rles=list(rles))

    def __len__(self) -> int:
        return len(self.rles)

    def __getitem__(self, index: int | slice) -> dict | RLEMasks:
        rles = self.rles[index]
        return RLEMasks(rles, self.ori_shape) if isinstance(index, slice) else rles

    @staticmethod
    def cat(masks: Sequence[RLEMasks]) -> RLEMasks:
        """All masks of several sequences, which MMEngine's ``InstanceData`` uses for indexing too."""
        return RLEMasks([rle for group in masks for rle in group], masks[0].ori_shape)

    @property
    def shape(self) -> torch.Size:
        """``(N, h, w)`` of the bitmaps."""
        return torch.Size((len(self), *self.ori_shape))

    def numpy(self) -> np.ndarray:
        """Bool ``(N, h, w)``."""
        if not self.rles:
            return np.zeros(self.shape, dtype=bool)
        return np.ascontiguousarray(pycocotools.mask.decode(self.rles).transpose(2, 0, 1)).view(bool)

    def astype(self, dtype: Any) -> np.ndarray:
        """The bitmaps as an array of ``dtype``."""
        return self.numpy().astype(dtype)

    def to_tensor(self) -> Tensor:
        """Bool ``(N, h, w)`` on the CPU."""
        return torch.from_numpy(self.numpy())

    def new_zeros(self, *args, **kwargs) -> Tensor:
        """As ``Tensor.new_zeros`` of a bool tensor on the CPU."""
        return torch.empty(0, dtype=torch.bool).new_zeros(*args, **kwargs)

    def to_dict(self) -> RLEMasks:
        """Itself: a result that becomes a dict for the metrics keeps its masks whole, as it keeps a tensor."""
        return self

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        def bitmaps(value: Any) -> Any:
            return value.to_tensor() if isinstance(value, cls) else value

        return func(*tree_map(bitmaps, args), **tree_map(bitmaps, kwargs or {}))


def mask_bboxes(masks: Tensor | RLEMasks) -> Tensor:
    """Find the boxes around masks.

    Args:
        masks: Of ``N`` instances, bool ``(N, h, w)`` or run lengths.

    Returns:
        Float32 ``(N, 4)``, ``(x1, y1, x2, y2)`` in pixels of the masks, right and bottom edge exclusive; 0 where a
        mask is empty. On the device of a tensor, else on the CPU.
    """
    if not isinstance(masks, RLEMasks):
        return mask2bbox(masks)
    # Columns for no mask at all, too.
    bboxes = torch.from_numpy(pycocotools.mask.toBbox(masks.rles)).float().view(-1, 4)
    bboxes[:, 2:] += bboxes[:, :2]
    return bboxes
