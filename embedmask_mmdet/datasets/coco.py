"""Write datasets in COCO's format, with exact (RLE) masks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as mask_utils

from embedmask_mmdet.fileio import write_atomically

MIN_AREA = 16  # pixels


def encode_instance(mask: np.ndarray, annotation_id: int, image_id: int, category_id: int, min_area: int = 0) -> dict:
    """Convert the mask of an instance to a COCO annotation.

    Args:
        mask: ``(h, w)`` bool or uint8, not 0 inside.
        annotation_id: Must be unique in the annotation file.
        image_id: ID of the image.
        category_id: ID of the category.
        min_area: Smaller instances, in pixels, become crowd regions: neither finding nor missing them counts.
    """
    rle = mask_utils.encode(np.asfortranarray(mask, dtype=np.uint8))
    area = int(mask_utils.area(rle))
    return dict(
        id=annotation_id,
        image_id=image_id,
        category_id=category_id,
        segmentation=dict(size=rle['size'], counts=rle['counts'].decode()),
        bbox=mask_utils.toBbox(rle).tolist(),
        area=area,
        iscrowd=int(area < min_area),
    )


def encode_label_image(
    labels: np.ndarray, image_id: int = 1, first_id: int = 1, min_area: int = MIN_AREA
) -> list[dict]:
    """Convert a label image of one class to COCO annotations of category 1.

    Args:
        labels: ``(h, w)`` integers; 0 is background, each other value one instance.
        image_id: ID of the image.
        first_id: ID of the first annotation; the next ones count up.
        min_area: As for :func:`encode_instance`.

    Returns:
        One annotation for each instance, ordered by its value.
    """
    values = np.unique(labels[labels > 0])
    return [
        encode_instance(labels == value, annotation_id, image_id, 1, min_area)
        for annotation_id, value in enumerate(values, start=first_id)
    ]


class CocoWriter:
    """Writes ``images/*`` and ``annotations/SPLIT.json`` of a dataset.

    Args:
        folder: Folder of the dataset.
        split: For example ``train``.
        classes: Names of the categories, whose IDs are 1, 2, ... in this order.

    Attributes:
        annotations: Annotations of the images so far.
    """

    def __init__(self, folder: Path, split: str, classes: Sequence[str]) -> None:
        self.folder = folder
        self.split = split
        self.categories = [dict(id=category_id, name=name) for category_id, name in enumerate(classes, start=1)]
        self.images: list[dict] = []
        self.annotations: list[dict] = []
        for name in ('images', 'annotations'):
            (folder / name).mkdir(parents=True, exist_ok=True)

    def add_image(self, name: str, image: np.ndarray) -> int:
        """Write an image.

        Args:
            name: File name.
            image: ``(h, w)`` or ``(h, w, 3)`` uint8 in BGR.

        Returns:
            Its ID. IDs are 1, 2, ... in the order of calls.
        """
        cv2.imwrite(str(self.folder / 'images' / name), image)
        height, width = image.shape[:2]
        self.images.append(dict(id=len(self.images) + 1, file_name=name, height=height, width=width))
        return len(self.images)

    def add_instance(self, image_id: int, mask: np.ndarray, category_id: int) -> None:
        """Add the annotation of an instance; `mask` is as for :func:`encode_instance`."""
        self.annotations.append(encode_instance(mask, len(self.annotations) + 1, image_id, category_id))

    def save(self) -> None:
        """Write the annotation file."""
        content = dict(images=self.images, annotations=self.annotations, categories=self.categories)
        write_atomically(self.folder / 'annotations' / f'{self.split}.json', json.dumps(content))
