"""The detections of an image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from embedmask_mmdet.errors import InputError
from embedmask_mmdet.runtime.masks import Bitmaps, Crop, GridMasks
from embedmask_mmdet.runtime.rle import encode


@dataclass(frozen=True, eq=False)
class Detections:
    """The detections of an image, best first. Index them like an array: ``detections[detections.scores > 0.3]``.

    Attributes:
        bboxes: float32 ``(N, 4)``, ``x1, y1, x2, y2`` in pixels of the image.
        scores: float32 ``(N,)``.
        labels: int64 ``(N,)``, indices of classes.
        class_names: Names of all classes.
        image_shape: ``(H, W)``.
    """

    bboxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    image_shape: tuple[int, int]
    _masks: Bitmaps | GridMasks = field(repr=False)

    @cached_property
    def masks(self) -> np.ndarray:
        """Masks, bool ``(N, H, W)``. They are made when they are asked for; for large images, ``rles`` are smaller."""
        return self._masks.to_array()

    @cached_property
    def rles(self) -> list[dict]:
        """COCO's run lengths of the masks: dicts ``size`` and ``counts``, as pycocotools reads them."""
        return encode(list(self.crops()), self.image_shape)

    def crops(self) -> Iterator[Crop]:
        """Iterate over the masks inside boxes, outside of which they are off: ``corner`` (x, y) and ``bitmap``."""
        return self._masks.crops()

    def cut_masks_at(self, probability: float) -> Detections:
        """Make the masks with another threshold: a pixel is on if its probability is higher. Boxes and scores stay.

        Args:
            probability: Above 0 and below 1.

        Raises:
            InputError: If the file was not exported with ``--masks grid``.
        """
        if not isinstance(self._masks, GridMasks):
            raise InputError(
                'the masks of this file have a fixed threshold. Export it with --masks grid to choose another.'
            )
        return replace(self, _masks=self._masks.cut_at(probability))

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, index: int | slice | Sequence[int] | Sequence[bool] | np.ndarray) -> Detections:
        chosen = np.atleast_1d(np.arange(len(self))[index])
        arrays = {name: getattr(self, name)[chosen] for name in ('bboxes', 'scores', 'labels', '_masks')}
        return replace(self, **arrays)

    def __repr__(self) -> str:
        names = Counter(map(self.name_class, self.labels.tolist()))
        height, width = self.image_shape
        listed = ', '.join(f'{count} {name}' for name, count in names.items()) or 'none'
        return f'Detections({listed}; image of {width}x{height} pixels)'

    def name_class(self, label: int) -> str:
        """Return the name of a class; its number if the file has no names."""
        return self.class_names[label] if label < len(self.class_names) else str(label)

    def to_coco(self, image_id: int, category_ids: Sequence[int] | None = None) -> list[dict]:
        """Make entries of a COCO result file.

        Args:
            image_id: Id of the image.
            category_ids: Id of each class in the annotation file; by default classes are counted from 1.

        Returns:
            N dicts with ``image_id``, ``category_id``, ``bbox`` (x, y, width, height), ``score`` and ``segmentation``,
            which ``json`` can write.
        """
        category_ids = category_ids or range(1, int(self.labels.max(initial=0)) + 2)
        corners, sizes = self.bboxes[:, :2], self.bboxes[:, 2:] - self.bboxes[:, :2]
        return [
            dict(
                image_id=image_id,
                category_id=category_ids[label],
                bbox=bbox,
                score=score,
                segmentation=dict(size=rle['size'], counts=rle['counts'].decode()),
            )
            for label, bbox, score, rle in zip(
                self.labels.tolist(), np.hstack([corners, sizes]).tolist(), self.scores.tolist(), self.rles
            )
        ]
