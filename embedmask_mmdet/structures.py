"""Masks as run lengths, which detections hold with ``mask_format='rle'``, and the boxes around masks."""

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
    """Sequence of COCO RLE dicts that can replace the bool tensor ``(N, h, w)`` of ``InstanceData.masks``.

    An item is a plain dict, as pycocotools expects it. ``numpy()``, ``astype()``, ``to_tensor()`` and torch's functions
    decode the bitmaps at each call.

    Args:
        rles: N COCO RLE dicts.
        ori_shape: ``(h, w)`` of the masks. It is stored because N may be 0.
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
        """Concatenate sequences. MMEngine's ``InstanceData`` calls this for indexing too."""
        return RLEMasks([rle for group in masks for rle in group], masks[0].ori_shape)

    @property
    def shape(self) -> torch.Size:
        """Shape ``(N, h, w)`` of the bitmaps."""
        return torch.Size((len(self), *self.ori_shape))

    def numpy(self) -> np.ndarray:
        """Decode the masks to bool ``(N, h, w)``."""
        if not self.rles:
            return np.zeros(self.shape, dtype=bool)
        return np.ascontiguousarray(pycocotools.mask.decode(self.rles).transpose(2, 0, 1)).view(bool)

    def astype(self, dtype: Any) -> np.ndarray:
        """Decode the masks to an array of ``dtype``."""
        return self.numpy().astype(dtype)

    def to_tensor(self) -> Tensor:
        """Decode the masks to a bool tensor ``(N, h, w)`` on the CPU."""
        return torch.from_numpy(self.numpy())

    def new_zeros(self, *args, **kwargs) -> Tensor:
        """Do what ``Tensor.new_zeros`` of a bool tensor on the CPU does."""
        return torch.empty(0, dtype=torch.bool).new_zeros(*args, **kwargs)

    def to_dict(self) -> RLEMasks:
        """Return itself, so that ``to_dict`` of a result keeps the masks as it keeps a tensor."""
        return self

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        def decode(value: Any) -> Any:
            return value.to_tensor() if isinstance(value, cls) else value

        return func(*tree_map(decode, args), **tree_map(decode, kwargs or {}))


def mask_bboxes(masks: Tensor | RLEMasks) -> Tensor:
    """Find the boxes around masks.

    Args:
        masks: Bool ``(N, h, w)`` or run lengths.

    Returns:
        float32 ``(N, 4)``, ``(x1, y1, x2, y2)`` in pixels of the masks, right and bottom edge exclusive; 0 for an
        empty mask. It is on the device of a tensor, and on the CPU for run lengths.
    """
    if not isinstance(masks, RLEMasks):
        return mask2bbox(masks)
    # `view` keeps the four columns if there is no mask.
    bboxes = torch.from_numpy(pycocotools.mask.toBbox(masks.rles)).float().view(-1, 4)
    bboxes[:, 2:] += bboxes[:, :2]
    return bboxes
