"""Files with the detections of an image: COCO's JSON, and PNG masks in a zip file."""

from __future__ import annotations

import io
import json
import re
import zipfile

import cv2
import numpy as np

from embedmask_mmdet.runtime import Detections

LABEL_IMAGE = 'labels.png'
README = """labels.png: 16 bits, one number for each instance, 0 for the background. Where masks overlap, it has the one
with the best score. Viewers show it almost black.
masks/: one PNG for each instance, 255 inside; its name has the number, the class and the score.
"""


def make_coco(detections: Detections, file_name: str) -> str:
    """Make a COCO annotation file with scores; pycocotools loads it, and its ``annotations`` as results too.

    Args:
        detections: Of the image.
        file_name: Of the image.
    """
    height, width = detections.image_shape
    categories = detections.class_names or range(1, int(detections.labels.max(initial=0)) + 2)
    areas = [int(np.count_nonzero(bitmap)) for _, bitmap in detections.crops()]
    annotations = [
        dict(id=i, iscrowd=0, area=area, **entry)
        for i, (entry, area) in enumerate(zip(detections.to_coco(1), areas), start=1)
    ]
    content = dict(
        images=[dict(id=1, file_name=file_name, height=height, width=width)],
        categories=[dict(id=i, name=str(name)) for i, name in enumerate(categories, start=1)],
        annotations=annotations,
    )
    return json.dumps(content)


def make_label_image(detections: Detections) -> np.ndarray:
    """Return uint16 ``(h, w)``: the number of the best detection at each pixel, from 1 on, or 0."""
    labels = np.zeros(detections.image_shape, np.uint16)
    for number, ((x, y), bitmap) in reversed(list(enumerate(detections.crops(), start=1))):
        labels[y : y + bitmap.shape[0], x : x + bitmap.shape[1]][bitmap] = number
    return labels


def encode_png(image: np.ndarray) -> bytes:
    """Return a gray image as a PNG file."""
    return cv2.imencode('.png', image)[1].tobytes()


def make_masks(detections: Detections) -> bytes:
    """Make a zip file with a label image and the mask of each detection as PNG."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, 'w') as archive:  # PNG is compressed already
        archive.writestr('README.txt', README)
        archive.writestr(LABEL_IMAGE, encode_png(make_label_image(detections)))
        rows = zip(detections.crops(), detections.labels.tolist(), detections.scores.tolist())
        for number, (((x, y), bitmap), label, score) in enumerate(rows, start=1):
            mask = np.zeros(detections.image_shape, np.uint8)
            mask[y : y + bitmap.shape[0], x : x + bitmap.shape[1]] = 255 * bitmap.astype(np.uint8)
            name = f'{number:03}_{clean_name(detections.name_class(label))}_{score:.2f}.png'
            archive.writestr(f'masks/{name}', encode_png(mask))
    return content.getvalue()


def clean_name(name: str) -> str:
    """Keep of a name what every file system takes."""
    return re.sub(r'[^\w.-]+', '_', name).strip('._')[:80] or 'image'
