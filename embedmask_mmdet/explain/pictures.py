"""Arrange diagrams to pictures: one of the image, and one of each detection."""

from __future__ import annotations

import colorsys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from embedmask_mmdet.explain import panels
from embedmask_mmdet.explain.panels import Window
from embedmask_mmdet.explain.values import DetectionValues, ImageValues

DPI = 100
WIDTH = 12.0  # inches of all pictures
TITLE_HEIGHT = 0.65  # of a panel
HEAD_HEIGHT = 0.5
MARGIN = 0.2
WHEEL_SIDE = 0.42
WHEEL_LEFT = 2.6
MAX_IMAGE_HEIGHT = 6.5
MAX_ASPECT = 2.0  # of panels side by side; wider images are stacked
FONT = {'font.size': 10, 'font.family': 'DejaVu Sans', 'text.parse_math': True}
EQUATION = (
    r'A pixel belongs to a detection with probability  $\exp\left(-\sum_c m_c (p_c - q_c)^2\right)$.   '
    r'$p$: embedding of the pixel, $q$: of the detection, $m$: margin'
)
GOLDEN_RATIO = 0.618034  # hues that follow each other at this distance are easy to tell apart


def choose_color(number: int) -> tuple[float, float, float]:
    """Return a bright color in RGB from 0 to 1, another one for each number."""
    return colorsys.hsv_to_rgb(number * GOLDEN_RATIO % 1, 0.6, 1)


@contextmanager
def make_figure(height: float) -> Iterator[Figure]:
    """Make a figure of some inches without matplotlib's global state, which would not be safe in threads."""
    with rc_context(FONT):
        figure = Figure(figsize=(WIDTH, height), dpi=DPI, facecolor='white')
        FigureCanvasAgg(figure)
        yield figure


def escape(text: str) -> str:
    """Escape what matplotlib would take for mathematics."""
    return text.replace('$', r'\$')


def render(figure: Figure) -> np.ndarray:
    """Return the pixels of a figure, ``(h, w, 3)`` uint8 in RGB."""
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()


def place(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Add axes at a place that is given in inches from the top left corner."""
    total_width, total_height = figure.get_size_inches()
    return figure.add_axes(
        (left / total_width, 1 - (top + height) / total_height, width / total_width, height / total_height), anchor='NW'
    )


def write_head(figure: Figure, text: str, **box: Any) -> None:
    """Write a line of text at the top of a figure, in a box of a color if there is one."""
    axes = place(figure, MARGIN, 0, WIDTH - 2 * MARGIN, HEAD_HEIGHT)
    axes.set_axis_off()
    box = dict(lw=0, pad=4, **box) if box else None
    axes.text(0.005, 0.45, text, va='center', fontsize=FONT['font.size'] + 2, transform=axes.transAxes, bbox=box)


# The image ------------------------------------------------------------------------------------------------------------


def draw_detected(axes: Axes, values: ImageValues) -> None:
    """Draw the image, the outlines of all masks, and the explained detections with their numbers."""
    panels.show(axes, values.image[..., ::-1], values.size, Window(0, 0, *values.size))
    axes.add_collection(PolyCollection(values.outlines, facecolors='none', edgecolors='#e8eaed', linewidths=0.8))
    for number, detection in enumerate(values.detections, start=1):
        color = choose_color(number)
        panels.draw_box(axes, detection.bbox, edgecolor=color, linewidth=1.8)
        axes.text(*detection.bbox[:2], str(number), fontweight='bold', bbox=dict(facecolor=color, lw=0, pad=1))


def draw_colors(axes: Axes, values: ImageValues) -> None:
    """Draw the channels that are not spatial as colors."""
    window = Window(0, 0, *values.size)
    panels.show(axes, values.pixels.colors, values.pixels.size, window, interpolation='nearest')


def draw_offsets(axes: Axes, values: ImageValues) -> None:
    """Draw where pixels point, as colors and arrows."""
    offsets = values.pixels.offsets
    colors = panels.color_offsets(offsets, panels.find_longest(offsets))
    panels.show(axes, colors, values.pixels.size, Window(0, 0, *values.size), interpolation='nearest')
    panels.draw_arrows(axes, values.pixels)


IMAGE_PANELS = (
    ('Image', '{num_detections} detections, {num_explained} of them explained below', draw_detected),
    (
        'Pixel embedding',
        'The channels that say what a pixel looks like. Equal\ncolors: equal embeddings (principal components).',
        draw_colors,
    ),
    (
        'Where pixels point',
        'An arrow leads from a pixel to\nwhere it says that its object is.',
        draw_offsets,
    ),
)


def draw_image(values: ImageValues) -> np.ndarray:
    """Draw the image and its pixel embedding.

    Args:
        values: What to draw.

    Returns:
        ``(h, w, 3)`` uint8 in RGB.
    """
    aspect = values.size[0] / values.size[1]
    columns = 1 if aspect > MAX_ASPECT else len(IMAGE_PANELS)
    width = (WIDTH - MARGIN) / columns - MARGIN
    height = min(width / aspect, MAX_IMAGE_HEIGHT)
    rows = len(IMAGE_PANELS) // columns
    numbers = dict(num_detections=values.num_detections, num_explained=len(values.detections))
    with make_figure(HEAD_HEIGHT + rows * (height + TITLE_HEIGHT) + MARGIN) as figure:
        write_head(figure, EQUATION)
        for i, (title, about, draw) in enumerate(IMAGE_PANELS):
            row, column = divmod(i, columns)
            left = MARGIN + column * (width + MARGIN)
            top = HEAD_HEIGHT + row * (height + TITLE_HEIGHT) + TITLE_HEIGHT
            axes = place(figure, left, top, width, height)
            draw(axes, values)
            panels.draw_title(axes, title, about.format(**numbers))
        wheel = place(figure, left + WHEEL_LEFT, top - WHEEL_SIDE - 0.06, WHEEL_SIDE, WHEEL_SIDE)
        panels.draw_wheel(wheel, panels.find_longest(values.pixels.offsets))
        return render(figure)


# A detection ----------------------------------------------------------------------------------------------------------


def draw_prediction(axes: Axes, values: ImageValues, detection: DetectionValues) -> None:
    """Draw location, box and ellipse."""
    panels.show(axes, values.image[..., ::-1], values.size, panels.find_window(detection))
    panels.draw_box(axes, detection.crop_bbox, edgecolor=panels.BOX_COLOR, linewidth=2)
    panels.draw_ellipse(axes, detection)
    panels.draw_point(axes, detection)


def draw_targets(axes: Axes, values: ImageValues, detection: DetectionValues) -> None:
    """Draw where the pixels around point."""
    window = panels.find_window(detection)
    panels.show(axes, values.image[..., ::-1], values.size, window, alpha=0.2)
    panels.draw_targets(axes, detection, values.pixels, window)
    panels.draw_ellipse(axes, detection)


def draw_spatial(axes: Axes, values: ImageValues, detection: DetectionValues) -> None:
    """Draw the probability from the spatial channels."""
    panels.draw_probability(axes, detection.spatial_prob, detection.grid_size, panels.find_window(detection))


def draw_other(axes: Axes, values: ImageValues, detection: DetectionValues) -> None:
    """Draw the probability from the other channels."""
    panels.draw_probability(axes, detection.other_prob, detection.grid_size, panels.find_window(detection))


def draw_product(axes: Axes, values: ImageValues, detection: DetectionValues) -> None:
    """Draw the probability from all channels."""
    panels.draw_probability(axes, detection.prob, detection.grid_size, panels.find_window(detection))


def draw_everywhere(axes: Axes, values: ImageValues, detection: DetectionValues) -> None:
    """Draw the probability in the complete image, and the window of the other panels."""
    panels.draw_probability(axes, detection.prob, detection.grid_size, Window(0, 0, *values.size))
    panels.draw_box(axes, np.array(panels.find_window(detection)), edgecolor='white', linewidth=1)


def draw_thresholds(axes: Axes, values: ImageValues, detection: DetectionValues) -> None:
    """Draw the mask at several thresholds."""
    window = panels.find_window(detection)
    panels.show(axes, values.image[..., ::-1], values.size, window)
    panels.draw_contours(axes, detection.image_prob, values.size, window)
    lines = [Line2D([], [], color=color, label=f'{level:g}') for level, color in panels.LEVELS.items()]
    axes.legend(handles=lines, loc='lower right', fontsize='small', framealpha=0.8, handlelength=1)


def draw_mask(axes: Axes, values: ImageValues, detection: DetectionValues) -> None:
    """Draw the final mask."""
    window = panels.find_window(detection)
    panels.show(axes, values.image[..., ::-1], values.size, window)
    panels.draw_mask(axes, detection.mask, values.size, window)


NUM_COLUMNS = 4
DETECTION_PANELS = (
    (
        '1  One location (dot) predicts',
        'a box, an embedding (its spatial part: x)\nand margins (their spatial part: ellipse).',
        draw_prediction,
    ),
    (
        '2  Each pixel points somewhere',
        'Green: into the ellipse. These pixels\nhave a probability above {mask_thr:g} in 3.',
        draw_targets,
    ),
    (
        '3  Does it point here?',
        'Probability from where pixels point.\nBlack is 0, the brightest color is 1.',
        draw_spatial,
    ),
    (
        '4  Does it look like it?',
        'Probability from the other channels,\nwhich say what a pixel looks like.',
        draw_other,
    ),
    ('5  Probability', 'The product of 3 and 4.', draw_product),
    ('6  The same in the image', 'Frame: the part that the others show.', draw_everywhere),
    ('7  Cut at a threshold', 'Where the probability is above it,\ninside the box, grown by 2 cells.', draw_thresholds),
    ('8  The mask', 'Probability above {mask_thr:g},\ninside the box, grown by 2 cells.', draw_mask),
)


def draw_detection(values: ImageValues, number: int) -> np.ndarray:
    """Draw how the mask of a detection comes about.

    Args:
        values: What to draw.
        number: Which of the explained detections, from 1 on.

    Returns:
        ``(h, w, 3)`` uint8 in RGB.
    """
    detection = values.detections[number - 1]
    width = (WIDTH - MARGIN) / NUM_COLUMNS - MARGIN
    rows = len(DETECTION_PANELS) // NUM_COLUMNS
    with make_figure(HEAD_HEIGHT + rows * (width + TITLE_HEIGHT) + MARGIN) as figure:
        head = f'{number}   {escape(detection.class_name)}, score {detection.score:.2f}'
        write_head(figure, head, facecolor=choose_color(number))
        for i, (title, about, draw) in enumerate(DETECTION_PANELS):
            row, column = divmod(i, NUM_COLUMNS)
            top = HEAD_HEIGHT + row * (width + TITLE_HEIGHT) + TITLE_HEIGHT
            axes = place(figure, MARGIN + column * (width + MARGIN), top, width, width)
            draw(axes, values, detection)
            panels.draw_title(axes, title, about.format(mask_thr=values.mask_thr))
        return render(figure)
