"""Small pictures of instances: cut out of their image, with outlines, as JPEG in a data URI."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as mask_utils

SIDE = 176  # pixels of a picture's longer side
MIN_CROP = 40  # pixels of the image
MARGIN = 0.35  # of the longer side of what is shown, on each side
MAX_ZOOM = 6
JPEG_QUALITY = 78
GAP = 4  # pixels between two panels
GRAY = 128
# BGR
TRUTH_COLOR = (90, 210, 40)
PREDICTION_COLOR = (30, 130, 255)
OTHER_COLOR = (235, 235, 235)
BOX_COLOR = (40, 220, 250)


@lru_cache(maxsize=8)
def read_image(path: str) -> np.ndarray | None:
    """Read an image as MMDetection does: BGR, turned as its EXIF data say. None if it cannot be read."""
    return cv2.imread(path, cv2.IMREAD_COLOR) if Path(path).is_file() else None


def find_window(rles: Sequence[dict]) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom of a square around masks, inside their image if it is large enough."""
    boxes = mask_utils.toBbox(list(rles))
    low, high = boxes[:, :2].min(0), (boxes[:, :2] + boxes[:, 2:]).max(0)
    side = max((high - low).max() * (1 + 2 * MARGIN), MIN_CROP)
    height, width = rles[0]['size']
    side = round(min(side, max(height, width)))
    left, top = np.clip((low + high - side) / 2, 0, [max(width - side, 0), max(height - side, 0)]).astype(int).tolist()
    return left, top, left + side, top + side


def cut(array: np.ndarray, window: tuple[int, int, int, int], fill: int) -> np.ndarray:
    """Cut a window out of an array ``(h, w, ...)``; what is outside gets a constant value."""
    left, top, right, bottom = window
    out = np.full((bottom - top, right - left, *array.shape[2:]), fill, array.dtype)
    x, y = max(left, 0), max(top, 0)
    inside = array[y : max(bottom, 0), x : max(right, 0)]
    out[y - top : y - top + inside.shape[0], x - left : x - left + inside.shape[1]] = inside
    return out


def decode(rle: dict) -> np.ndarray:
    """Decode a mask, ``(h, w)`` uint8; one whose run lengths are broken is empty."""
    try:
        return mask_utils.decode(rle)
    except ValueError:
        return np.zeros(rle['size'], np.uint8)


def draw_outlines(
    picture: np.ndarray,
    rles: Sequence[dict],
    window: tuple[int, int, int, int],
    color: tuple[int, int, int],
    width: int,
) -> None:
    """Draw the outlines of masks on an enlarged window of their image.

    Args:
        picture: The window, ``(h, w, 3)`` uint8; it is changed.
        rles: Masks of the complete image.
        window: Left, top, right and bottom in the image.
        color: BGR.
        width: Width of the lines in pixels.
    """
    for rle in rles:
        mask = cut(decode(rle), window, 0)
        # Outlines of the enlarged mask, so that they do not have the steps of its pixels.
        mask = cv2.resize(mask * 255, picture.shape[1::-1], interpolation=cv2.INTER_LINEAR) > 127
        contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, contours, -1, color, width, cv2.LINE_AA)


def is_near(bbox: Sequence[float], window: tuple[int, int, int, int]) -> bool:
    """Return whether a box ``(left, top, width, height)`` overlaps a window."""
    left, top, right, bottom = window
    return bbox[0] < right and bbox[0] + bbox[2] > left and bbox[1] < bottom and bbox[1] + bbox[3] > top


def draw_panel(image: np.ndarray | None, window: tuple, shown: Sequence, others: Sequence, color: tuple) -> np.ndarray:
    """Draw one panel.

    Args:
        image: The complete image; None for a gray picture.
        window: Left, top, right and bottom in the image.
        shown: Instances or detections with a thick outline.
        others: Those around them, with a thin outline.
        color: BGR of the thick outlines.
    """
    side = window[2] - window[0]
    size = min(SIDE, side * MAX_ZOOM)
    image = np.full((1, 1, 3), GRAY, np.uint8) if image is None else image
    method = cv2.INTER_CUBIC if size > side else cv2.INTER_AREA
    picture = cv2.resize(cut(image, window, GRAY), (size, size), interpolation=method)
    near = [item.rle for item in others if item not in shown and is_near(item.bbox, window)]
    draw_outlines(picture, near, window, OTHER_COLOR, 1)
    draw_outlines(picture, [item.rle for item in shown], window, color, 2)
    return picture


def encode(picture: np.ndarray) -> str:
    """Return a picture ``(h, w, 3)`` in BGR as the data URI of a JPEG."""
    _, data = cv2.imencode('.jpg', picture, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    return 'data:image/jpeg;base64,' + base64.b64encode(data.tobytes()).decode()


def join(*panels: np.ndarray) -> np.ndarray:
    """Put panels of one height side by side."""
    gap = np.full((panels[0].shape[0], GAP, 3), 255, np.uint8)
    parts = [part for panel in panels for part in (gap, panel)]
    return np.hstack(parts[1:])


def draw_thumbnail(path: str) -> str:
    """Draw a complete image."""
    image = read_image(path)
    if image is None:
        image = np.full((SIDE, SIDE, 3), GRAY, np.uint8)
    scale = min(2 * SIDE / max(image.shape[:2]), MAX_ZOOM)
    return encode(cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA))


def draw_comparison(
    path: str, truth: Sequence, prediction: Sequence, near_truth: Sequence, near_found: Sequence
) -> str:
    """Draw ground truth on the left and predictions on the right.

    Args:
        path: The image. If it cannot be read, the outlines are drawn on gray.
        truth: Instances that matter.
        prediction: Detections that matter.
        near_truth: All instances of the image.
        near_found: All shown detections of the image.

    Returns:
        A data URI.
    """
    image = read_image(path)
    window = find_window([item.rle for item in (*truth, *prediction)])
    left = draw_panel(image, window, truth, near_truth, TRUTH_COLOR)
    return encode(join(left, draw_panel(image, window, prediction, near_found, PREDICTION_COLOR)))


def draw_boxes(picture: np.ndarray, bboxes: Sequence[Sequence[float]], window: tuple[int, int, int, int]) -> None:
    """Draw boxes ``(left, top, width, height)`` on an enlarged window of their image, which is changed."""
    scale = picture.shape[0] / (window[2] - window[0])
    for left, top, width, height in bboxes:
        corners = np.array([[left, top], [left + width, top + height]]) - window[:2]
        first, second = np.clip(corners * scale, -1e4, 1e4).astype(int).tolist()
        cv2.rectangle(picture, first, second, BOX_COLOR, 1, cv2.LINE_AA)


def draw_labels(path: str, truth: Sequence, near_truth: Sequence, bboxes: Sequence[Sequence[float]] = ()) -> str:
    """Draw the bare image on the left and labels on the right.

    Args:
        path: As in :func:`draw_comparison`.
        truth: Likewise.
        near_truth: Likewise.
        bboxes: Boxes ``(left, top, width, height)`` that are drawn too.
    """
    image = read_image(path)
    window = find_window([item.rle for item in truth])
    plain = draw_panel(image, window, (), (), TRUTH_COLOR)
    marked = draw_panel(image, window, truth, near_truth, TRUTH_COLOR)
    draw_boxes(marked, bboxes, window)
    return encode(join(plain, marked))
