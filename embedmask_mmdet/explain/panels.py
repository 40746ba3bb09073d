"""Single diagrams of an explanation, each drawn on matplotlib's axes. Coordinates are input pixels."""

from __future__ import annotations

from typing import Any, NamedTuple

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import hsv_to_rgb
from matplotlib.patches import Circle, Rectangle
from matplotlib.patches import Ellipse as EllipsePatch

from embedmask_mmdet.explain.values import DetectionValues, PixelValues

MAX_SIDE = 1600  # pixels of an array that are drawn; more would not be seen
LEVELS = {0.3: '#ffd43b', 0.5: '#ff922b', 0.7: '#ff3b3b'}  # thresholds and the colors of their outlines
POINT_COLOR, BOX_COLOR, ELLIPSE_COLOR = '#ff4fd8', '#ffd43b', '#3bc9ff'
INSIDE_COLOR, OUTSIDE_COLOR = '#2b8a3e', '#868e96'
PROBABILITY_COLORS = 'magma'
EXPLANATION_SIZE = 8.5  # points
ARROWS_ACROSS = 24  # at most, in a window
ARROWS_IN_IMAGE = 64  # along its longer side
MASK_COLOR = (60, 230, 120, 140)  # RGBA
WINDOW_MARGIN = 0.6  # of the longer side of what is shown, on each side


class Window(NamedTuple):
    """A part of the image."""

    left: float
    top: float
    right: float
    bottom: float


def find_window(detection: DetectionValues) -> Window:
    """Find a square with a detection's boxes, its location and, if it is not much larger, its ellipse."""
    boxes = [detection.bbox, detection.crop_bbox, np.tile(detection.point, 2)]
    side = max(max(box[2] - box[0], box[3] - box[1]) for box in boxes)
    center, radii = np.array(detection.ellipse.center), np.minimum(detection.ellipse.radii, side)
    if np.isfinite([center, radii]).all():
        boxes.append(np.concatenate([center - radii, center + radii]))
    boxes = np.array(boxes)
    low, high = boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)
    half = max((high - low).max() * (0.5 + WINDOW_MARGIN), 4)
    middle = (low + high) / 2
    return Window(*(middle - half), *(middle + half))


def cut(array: np.ndarray, covered: tuple[float, float], window: Window) -> tuple[np.ndarray, Window]:
    """Cut the part of an array that is in a window.

    Args:
        array: ``(h, w)`` or ``(h, w, 3)``.
        covered: ``(width, height)`` that the complete array covers.
        window: The window.

    Returns:
        The part, complete cells, and what it covers.
    """
    size = np.array(array.shape[1::-1])
    cell = np.array(covered) / size
    low = np.clip(np.floor(np.array(window[:2]) / cell), 0, size).astype(int)
    high = np.clip(np.ceil(np.array(window[2:]) / cell), 0, size).astype(int)
    return array[low[1] : high[1], low[0] : high[0]], Window(*(low * cell), *(high * cell))


def show(axes: Axes, array: np.ndarray, covered: tuple[float, float], window: Window, **options: Any) -> None:
    """Draw the part of an array that is in a window.

    Args:
        axes: To draw on.
        array: As in :func:`cut`.
        covered: Likewise.
        window: What the axes show.
        options: Of ``Axes.imshow``.
    """
    part, place = cut(array, covered, window)
    if part.size:
        shrink = MAX_SIDE / max(part.shape[:2])
        if shrink < 1:
            part = cv2.resize(part, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)
        axes.imshow(part, extent=(place.left, place.right, place.bottom, place.top), **options)
    axes.set(xlim=(window.left, window.right), ylim=(window.bottom, window.top), xticks=[], yticks=[], aspect='equal')


def draw_title(axes: Axes, title: str, explanation: str) -> None:
    """Write a bold title, and below it an explanation of one or two lines, above a panel."""
    at = dict(xy=(0, 1), xycoords='axes fraction', textcoords='offset points', va='bottom')
    axes.annotate(explanation, xytext=(0, 4), fontsize=EXPLANATION_SIZE, color='#444', linespacing=1.15, **at)
    num_lines = explanation.count('\n') + 1
    axes.annotate(title, xytext=(0, 6 + 1.25 * EXPLANATION_SIZE * num_lines), fontweight='bold', **at)


def draw_probability(axes: Axes, prob: np.ndarray, covered: tuple[float, float], window: Window) -> None:
    """Draw a probability map from dark (0) to bright (1)."""
    show(axes, prob, covered, window, cmap=PROBABILITY_COLORS, vmin=0, vmax=1, interpolation='nearest')


def draw_point(axes: Axes, detection: DetectionValues) -> None:
    """Draw the location of a detection."""
    axes.plot(*detection.point, marker='o', markersize=7, color=POINT_COLOR, markeredgecolor='black')


def draw_box(axes: Axes, box: np.ndarray, **options: Any) -> None:
    """Draw a box."""
    axes.add_patch(Rectangle(box[:2], *(box[2:] - box[:2]), fill=False, **options))


def draw_ellipse(axes: Axes, detection: DetectionValues) -> None:
    """Draw what the margin of a detection means, and the center of it."""
    center, radii = np.array(detection.ellipse.center), np.array(detection.ellipse.radii)
    if not np.isfinite([center, radii]).all():
        return
    axes.add_patch(EllipsePatch(center, *(2 * radii), fill=False, edgecolor=ELLIPSE_COLOR, linewidth=2))
    axes.plot(*center, marker='x', markersize=7, markeredgewidth=2, color=ELLIPSE_COLOR)


def draw_targets(axes: Axes, detection: DetectionValues, pixels: PixelValues, window: Window) -> None:
    """Draw a line from some cells in a window to the places that they mean."""
    stride, (height, width) = pixels.stride, pixels.offsets.shape[:2]
    step = max(1, round((window.right - window.left) / stride / ARROWS_ACROSS))
    y, x = np.mgrid[0:height:step, 0:width:step].reshape(2, -1)
    starts = (np.stack([x, y], axis=1) + 0.5) * stride
    ends = starts + np.nan_to_num(pixels.offsets[y, x])
    shown = ((starts > window[:2]) & (starts < window[2:])).all(axis=1)
    distance = (((ends - detection.ellipse.center) / np.array(detection.ellipse.radii)) ** 2).sum(axis=1)
    for inside, color in ((False, OUTSIDE_COLOR), (True, INSIDE_COLOR)):
        kept = shown & ((distance <= 1) == inside)
        axes.add_collection(LineCollection(np.stack([starts, ends], axis=1)[kept], colors=color, linewidths=1))
        axes.plot(*starts[kept].T, '.', markersize=3, color=color)


def draw_contours(axes: Axes, prob: np.ndarray, covered: tuple[float, float], window: Window) -> None:
    """Draw where a map of probabilities has some values."""
    part, place = cut(np.nan_to_num(prob), covered, window)
    if min(part.shape) < 2:  # matplotlib needs that many
        return
    y, x = ((np.arange(size) + 0.5) / size for size in part.shape)
    x, y = place.left + x * (place.right - place.left), place.top + y * (place.bottom - place.top)
    for level, color in LEVELS.items():
        if part.min() < level < part.max():
            axes.contour(x, y, part, levels=[level], colors=[color], linewidths=1.8)


def color_offsets(offsets: np.ndarray, longest: float) -> np.ndarray:
    """Show directions as hues and lengths as saturation.

    Args:
        offsets: ``(..., 2)``, x and y.
        longest: Length with the full saturation.

    Returns:
        ``(..., 3)`` from 0 to 1, RGB.
    """
    x, y = np.moveaxis(np.nan_to_num(offsets), -1, 0)
    hue = np.arctan2(y, x) / (2 * np.pi) % 1
    length = np.clip(np.hypot(x, y) / max(longest, 1e-6), 0, 1)
    return hsv_to_rgb(np.stack([hue, length, np.ones_like(hue)], axis=-1))


def find_longest(offsets: np.ndarray) -> float:
    """Find a length that nearly all offsets ``(h, w, 2)`` have at most."""
    return max(1.0, float(np.percentile(np.hypot(*np.moveaxis(np.nan_to_num(offsets), -1, 0)), 99)))


def draw_arrows(axes: Axes, pixels: PixelValues) -> None:
    """Draw an arrow from the centers of some cells to the places that they mean."""
    height, width = pixels.offsets.shape[:2]
    step = max(1, round(max(height, width) / ARROWS_IN_IMAGE))
    y, x = np.mgrid[step // 2 : height : step, step // 2 : width : step].reshape(2, -1)
    arrows = np.nan_to_num(pixels.offsets[y, x]).T
    place = (x + 0.5) * pixels.stride, (y + 0.5) * pixels.stride
    axes.quiver(*place, *arrows, angles='xy', scale_units='xy', scale=1, units='dots', width=1.2, headwidth=4)


def draw_mask(axes: Axes, mask: np.ndarray, covered: tuple[float, float], window: Window) -> None:
    """Tint the pixels of a mask."""
    tint = np.zeros((*mask.shape, 4), np.uint8)
    tint[mask] = MASK_COLOR
    show(axes, tint, covered, window, interpolation='nearest')


def draw_wheel(axes: Axes, longest: float) -> None:
    """Draw the legend of :func:`color_offsets`."""
    wheel = np.moveaxis(np.mgrid[-1:1:121j, -1:1:121j], 0, -1)[..., ::-1]
    image = axes.imshow(color_offsets(wheel, 1.0), extent=(-1, 1, 1, -1))
    circle = Circle((0, 0), 1, transform=axes.transData, fill=False, edgecolor='black', linewidth=0.8)
    axes.add_patch(circle)
    image.set_clip_path(circle)
    axes.set_axis_off()
    axes.text(1.3, 0, f'{longest:.0f} px', va='center', fontsize=EXPLANATION_SIZE)
