"""Masks as run lengths, which detections hold with ``mask_format='rle'``, and the boxes around masks."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pycocotools.mask
import torch
from mmdet.structures.mask import mask2bbox
from mmengine.structures import BaseDataElement
from torch import Tensor

from embedmask_mmdet.lazy_bitmaps import LazyBitmaps


class RLE(LazyBitmaps, dict):
    """Mask of one instance: a COCO RLE dict for pycocotools, and a bool tensor ``(h, w)`` for everything else.

    Strings are keys of the dict; other indices are pixels. Pickles are OrderedDicts.

    Args:
        rle: COCO RLE dict.
        device: Where its bitmap is.
    """

    def __init__(self, rle: dict, device: torch.device | str = 'cpu') -> None:
        super().__init__(rle)
        self.device = torch.device(device)

    @property
    def shape(self) -> torch.Size:
        """Shape ``(h, w)`` of the bitmap."""
        return torch.Size(self['size'])

    def numpy(self, *, force: bool = False) -> np.ndarray:
        """Decode the mask to bool ``(h, w)``."""
        return np.ascontiguousarray(pycocotools.mask.decode(dict(self))).view(bool)

    def _place(self, device: torch.device) -> RLE:
        return RLE(self, device)

    def __getitem__(self, index: Any) -> Any:
        return super().__getitem__(index) if isinstance(index, str) else self.to_tensor()[index]

    def __eq__(self, other: Any) -> Any:
        return dict.__eq__(self, other) if isinstance(other, dict) else super().__eq__(other)

    def __ne__(self, other: Any) -> Any:
        return dict.__ne__(self, other) if isinstance(other, dict) else super().__ne__(other)

    __hash__ = None

    def __reduce__(self) -> tuple:
        # Files of results need no class of this package, and torch's safe unpickler knows this one.
        return OrderedDict, (list(self.items()),)


class RLEMasks(LazyBitmaps, BaseDataElement):
    """Sequence of COCO RLE dicts that can replace the bool tensor ``(N, h, w)`` of ``InstanceData.masks``.

    An item is both a COCO RLE dict and a bool tensor, see :class:`RLE`. Slices and indices that choose masks give run
    lengths. Every other use decodes the bitmaps, see :class:`LazyBitmaps`.

    Args:
        rles: N COCO RLE dicts.
        ori_shape: ``(h, w)`` of the masks. It is stored because N may be 0.
        device: Where bitmaps are.
    """

    def __init__(
        self, rles: Sequence[dict] = (), ori_shape: tuple[int, int] = (0, 0), device: torch.device | str = 'cpu'
    ) -> None:
        metainfo = dict(ori_shape=tuple(ori_shape), device=torch.device(device))
        # CocoMetric writes into the items.
        super().__init__(metainfo=metainfo, rles=[RLE(rle, device) for rle in rles])

    def __len__(self) -> int:
        return len(self.rles)

    def __iter__(self) -> Iterator[RLE]:
        return iter(self.rles)

    def __getitem__(self, index: Any) -> RLE | RLEMasks | Tensor:
        if isinstance(index, Tensor):
            index = index.cpu().numpy()
        if index is None or index is Ellipsis or isinstance(index, (tuple, LazyBitmaps)) or np.ndim(index) > 1:
            return self.to_tensor()[index]
        chosen = np.arange(len(self))[index]
        if chosen.ndim == 0:
            return self.rles[chosen]
        return RLEMasks([self.rles[i] for i in chosen], self.ori_shape, self.device)

    @staticmethod
    def cat(masks: Sequence[RLEMasks]) -> RLEMasks:
        """Concatenate sequences. MMEngine's ``InstanceData`` calls this for indexing too."""
        return RLEMasks([rle for group in masks for rle in group.rles], masks[0].ori_shape, masks[0].device)

    @property
    def shape(self) -> torch.Size:
        """Shape ``(N, h, w)`` of the bitmaps."""
        return torch.Size((len(self), *self.ori_shape))

    def numpy(self, *, force: bool = False) -> np.ndarray:
        """Decode the masks to bool ``(N, h, w)``."""
        if not self.rles:
            return np.zeros(self.shape, dtype=bool)
        return np.ascontiguousarray(pycocotools.mask.decode(self.rles).transpose(2, 0, 1)).view(bool)

    def _place(self, device: torch.device) -> RLEMasks:
        return RLEMasks(self.rles, self.ori_shape, device)

    def to_dict(self) -> RLEMasks:
        """Return itself, so that ``to_dict`` of a result keeps the masks as it keeps a tensor."""
        return self

    def __deepcopy__(self, memo: dict) -> RLEMasks:
        return self._place(self.device)

    def __reduce__(self) -> tuple:
        # Without the device, which may not exist where the file is read.
        return RLEMasks, ([dict(rle) for rle in self.rles], self.ori_shape)


def allow_saved_masks() -> None:
    """Allow ``torch.load(..., weights_only=True)`` to load masks; torch can do so since 2.4."""
    if hasattr(torch.serialization, 'add_safe_globals'):
        torch.serialization.add_safe_globals([RLEMasks])


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


allow_saved_masks()
