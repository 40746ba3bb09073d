"""Draw detections with OpenCV."""

from __future__ import annotations

import colorsys

import cv2
import numpy as np

from embedmask_mmdet.runtime.detections import Detections
from embedmask_mmdet.runtime.masks import Crop

OPACITY = 0.5
GOLDEN_RATIO = 0.618034  # hues that follow each other at this distance are easy to tell apart
TEXT_IMAGE_SIZE = 640  # square root of the area, in pixels, for which lines are one pixel wide
FONT = cv2.FONT_HERSHEY_SIMPLEX


def choose_color(index: int) -> tuple[int, int, int]:
    """Return a bright color in BGR, another one for each index."""
    return tuple(round(255 * part) for part in colorsys.hsv_to_rgb(index * GOLDEN_RATIO % 1, 0.9, 1))


def draw_mask(picture: np.ndarray, crop: Crop, color: tuple[int, int, int], line_width: int) -> None:
    """Tint the pixels of a mask and draw its outline."""
    x, y = crop.corner
    region = picture[y : y + crop.bitmap.shape[0], x : x + crop.bitmap.shape[1]]
    region[crop.bitmap] = (1 - OPACITY) * region[crop.bitmap] + OPACITY * np.array(color)
    outlines = cv2.findContours(crop.bitmap.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0]
    cv2.drawContours(picture, outlines, -1, color, line_width, offset=crop.corner)


def draw_text(picture: np.ndarray, text: str, corner: tuple[int, int], scale: float) -> None:
    """Write white text on black above a corner, inside the picture."""
    thickness = max(1, round(scale))
    (width, height), baseline = cv2.getTextSize(text, FONT, 0.4 * scale, thickness)
    x = max(0, min(corner[0], picture.shape[1] - width))
    y = max(height + baseline, corner[1])
    cv2.rectangle(picture, (x, y - height - baseline), (x + width, y), (0, 0, 0), -1)
    cv2.putText(picture, text, (x, y - baseline), FONT, 0.4 * scale, (255, 255, 255), thickness, cv2.LINE_AA)


def draw_detections(image: np.ndarray, detections: Detections) -> np.ndarray:
    """Draw masks, boxes, class names and scores.

    Args:
        image: ``(H, W, 3)`` uint8 in BGR.
        detections: Of this image.

    Returns:
        The picture, of the same type.
    """
    picture = image.copy()
    scale = max(1.0, float(np.prod(image.shape[:2])) ** 0.5 / TEXT_IMAGE_SIZE)
    line_width = max(1, round(scale))
    boxes = detections.bboxes.round().astype(int).tolist()
    for i, (crop, (x1, y1, x2, y2)) in enumerate(zip(detections.crops(), boxes)):
        draw_mask(picture, crop, choose_color(i), line_width)
        cv2.rectangle(picture, (x1, y1), (x2, y2), choose_color(i), line_width)
    for (x1, y1, *_), label, score in zip(boxes, detections.labels.tolist(), detections.scores.tolist()):
        draw_text(picture, f'{detections.name_class(label)} {score:.2f}', (x1, y1), scale)
    return picture
