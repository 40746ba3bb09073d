"""Draw detections at the size of a screen, and find the one that somebody clicks on."""

from __future__ import annotations

from collections.abc import Collection

import cv2
import numpy as np

from embedmask_mmdet.runtime import Detections
from embedmask_mmdet.runtime.drawing import choose_color, draw_text
from embedmask_mmdet.runtime.masks import Crop

SIDE = 1280  # pixels of the longer side of a picture
MAX_ZOOM = 8
OPACITY = 0.4
SELECTED_COLOR = (255, 255, 255)
TEXT_SCALE = 1.25
PARTS = MASKS, BOXES, SCORES = ('masks', 'boxes', 'scores')


def find_zoom(shape: tuple[int, int]) -> float:
    """Return the factor by which an image ``(h, w)`` is enlarged or shrunk for its picture."""
    return min(SIDE / max(shape), MAX_ZOOM)


def resize(image: np.ndarray, zoom: float) -> np.ndarray:
    """Enlarge or shrink an image."""
    size = [max(1, round(zoom * side)) for side in image.shape[1::-1]]
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if zoom < 1 else cv2.INTER_CUBIC)


def trace(crop: Crop, zoom: float) -> list[np.ndarray]:
    """Trace the outlines of a mask, holes too, in pixels of the picture."""
    outlines, _ = cv2.findContours(crop.bitmap.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    return [((outline + np.array(crop.corner) + 0.5) * zoom).round().astype(np.int32) for outline in outlines]


def draw_detections(
    image: np.ndarray, detections: Detections, parts: Collection[str] = PARTS, selected: int | None = None
) -> np.ndarray:
    """Draw detections.

    Args:
        image: ``(h, w, 3)`` uint8 in BGR.
        detections: Of this image.
        parts: What to draw of them: those of ``PARTS``.
        selected: Index of a detection to draw with a white outline.

    Returns:
        The picture in RGB, with a longer side of ``SIDE`` pixels if that is not too large an enlargement.
    """
    zoom = find_zoom(detections.image_shape)
    picture = resize(image, zoom)
    outlines = [trace(crop, zoom) for crop in detections.crops()]
    if MASKS in parts:
        tinted = picture.copy()
        for i in reversed(range(len(outlines))):  # the best one on top
            cv2.fillPoly(tinted, outlines[i], choose_color(i))
        picture = cv2.addWeighted(tinted, OPACITY, picture, 1 - OPACITY, 0)
        for i, polygons in enumerate(outlines):
            cv2.polylines(picture, polygons, True, choose_color(i), 2, cv2.LINE_AA)
    boxes = (detections.bboxes * zoom).round().astype(int).tolist()
    if BOXES in parts:
        for i, (x1, y1, x2, y2) in enumerate(boxes):
            cv2.rectangle(picture, (x1, y1), (x2, y2), choose_color(i), 2)
    if selected is not None:
        cv2.polylines(picture, outlines[selected], True, SELECTED_COLOR, 5, cv2.LINE_AA)
        cv2.polylines(picture, outlines[selected], True, choose_color(selected), 2, cv2.LINE_AA)
    if SCORES in parts:
        for (x1, y1, *_), label, score in zip(boxes, detections.labels.tolist(), detections.scores.tolist()):
            draw_text(picture, f'{detections.name_class(label)} {score:.2f}', (x1, y1), TEXT_SCALE)
    return picture[..., ::-1]


def make_thumbnail(image: np.ndarray, side: int = 200) -> np.ndarray:
    """Shrink an image ``(h, w, 3)`` in BGR to a picture in RGB for a list of images."""
    return resize(image, min(1, side / max(image.shape[:2])))[..., ::-1]


def find_instance(detections: Detections, x: float, y: float) -> int | None:
    """Find the detection at a place of the picture.

    Args:
        detections: That the picture shows.
        x: In pixels of the picture.
        y: Likewise.

    Returns:
        The index of the smallest mask there, otherwise of the smallest box; None if there is neither.
    """
    zoom = find_zoom(detections.image_shape)
    column, row = int(x / zoom), int(y / zoom)
    masks = {}
    for i, ((left, top), bitmap) in enumerate(detections.crops()):
        height, width = bitmap.shape
        if left <= column < left + width and top <= row < top + height and bitmap[row - top, column - left]:
            masks[i] = np.count_nonzero(bitmap)
    x1, y1, x2, y2 = detections.bboxes.T
    inside = np.flatnonzero((x1 <= x / zoom) & (x / zoom <= x2) & (y1 <= y / zoom) & (y / zoom <= y2))
    areas = (x2 - x1) * (y2 - y1)
    found = masks or {int(i): areas[i] for i in inside}
    return min(found, key=found.get) if found else None
