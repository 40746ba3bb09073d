"""Plain SVG: curves over the score, and histograms."""

from __future__ import annotations

import html
from collections.abc import Sequence

import numpy as np

from embedmask_mmdet.analysis.report.html import Html

WIDTH, HEIGHT = 330, 210
LEFT, RIGHT, TOP, BOTTOM = 38, 16, 26, 34
PLOT_WIDTH, PLOT_HEIGHT = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
MAX_POINTS = 120
HALO = dict(fill='#1d2330', stroke='#fff', stroke_width='3', paint_order='stroke')
PRECISION_COLOR, RECALL_COLOR, BAR_COLOR = '#1a5fb4', '#e8710a', '#5b8fd0'


def text(x: float, y: float, words: str, anchor: str = 'middle', **attributes: str) -> str:
    """Write text; `anchor` is start, middle or end."""
    more = ''.join(f' {key.replace("_", "-")}="{value}"' for key, value in attributes.items())
    fill = '' if 'fill' in attributes else ' fill="#5c6475"'
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{fill}{more}>{html.escape(words)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, color: str, dash: str = '') -> str:
    """Draw a line."""
    dashes = f' stroke-dasharray="{dash}"' if dash else ''
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{color}"{dashes}/>'


def frame(title: str, x_title: str, parts: Sequence[str]) -> Html:
    """Put parts below a title and above the name of the horizontal axis."""
    words = [
        text(LEFT, 15, title, 'start', fill='#1d2330', font_weight='600'),
        text(LEFT + PLOT_WIDTH / 2, HEIGHT - 3, x_title),
    ]
    label = html.escape(title)
    content = ''.join([*words, *parts])
    return Html(f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{content}</svg>')


def place(x: float, y: float) -> tuple[float, float]:
    """Convert values from 0 to 1 to coordinates of the picture."""
    return LEFT + x * PLOT_WIDTH, TOP + (1 - y) * PLOT_HEIGHT


def draw_unit_axes() -> list[str]:
    """Draw axes from 0 to 1 with a grid."""
    parts = []
    for tick in (0, 0.25, 0.5, 0.75, 1):
        x, y = place(tick, tick)
        parts += [line(LEFT, y, LEFT + PLOT_WIDTH, y, '#e6e9ef'), text(LEFT - 5, y + 4, f'{tick:g}', 'end')]
        parts.append(text(x, TOP + PLOT_HEIGHT + 15, f'{tick:g}'))
    return parts


def polyline(x: np.ndarray, y: np.ndarray, color: str) -> str:
    """Draw a curve of values from 0 to 1, with a limited number of points."""
    keep = np.unique(np.linspace(0, len(x) - 1, min(len(x), MAX_POINTS)).round().astype(int))
    points = ' '.join('{:.1f},{:.1f}'.format(*place(x[i], y[i])) for i in keep)
    return f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="2"/>'


def draw_score_curves(
    title: str, scores: np.ndarray, correct: np.ndarray, num_instances: int, threshold: float | None
) -> Html:
    """Draw precision and recall of the detections whose score is at least that of the horizontal axis.

    Args:
        title: Title of the diagram.
        scores: Scores of the detections, ``(D,)``.
        correct: Whether they are matched, bool ``(D,)``.
        num_instances: Number of instances.
        threshold: A score that is marked, if any.
    """
    parts = draw_unit_axes()
    if len(scores):
        order = np.argsort(-scores, kind='stable')
        found = np.cumsum(correct[order])
        x = np.clip(scores[order], 0, 1)
        parts.append(polyline(x, found / np.arange(1, len(order) + 1), PRECISION_COLOR))
        parts.append(polyline(x, found / max(num_instances, 1), RECALL_COLOR))
    else:
        parts.append(text(*place(0.5, 0.5), 'no detections'))
    if threshold is not None:
        x = place(min(threshold, 1), 0)[0]
        parts += [
            line(x, TOP, x, TOP + PLOT_HEIGHT, '#1d2330', '4 3'),
            text(x + 3, TOP + PLOT_HEIGHT - 5, f'{threshold:.2f}', 'start', **HALO),
        ]
    return frame(title, 'lowest score that is kept', parts)


def choose_edges(values: np.ndarray, num_bins: int = 16) -> np.ndarray:
    """Choose round edges of bins that hold all values."""
    low, high = float(values.min()), float(values.max())
    raw = max((high - low) / num_bins, 1e-9)
    magnitude = 10.0 ** np.floor(np.log10(raw))
    step = next(factor * magnitude for factor in (1, 2, 5, 10) if factor * magnitude >= raw * (1 - 1e-9))
    step = max(step, 1.0)
    first = np.floor(low / step) * step
    return np.arange(first, high + 1.001 * step, step)


def draw_histogram(title: str, x_title: str, values: Sequence[float]) -> Html:
    """Draw how often values of about 1 and more occur."""
    values = np.asarray(values, float)
    if not len(values):
        return frame(title, x_title, [text(*place(0.5, 0.5), 'nothing to count')])
    edges = choose_edges(values)
    counts, _ = np.histogram(values, edges)
    span, parts = edges[-1] - edges[0], []
    for tick in (0, counts.max()):
        y = place(0, tick / counts.max())[1]
        parts += [line(LEFT, y, LEFT + PLOT_WIDTH, y, '#e6e9ef'), text(LEFT - 5, y + 4, str(tick), 'end')]
    for count, low, high in zip(counts, edges, edges[1:]):
        (x, y), (right, base) = place((low - edges[0]) / span, count / counts.max()), place((high - edges[0]) / span, 0)
        label = f'{low:g} to {high:g}: {count}'
        shape = f'x="{x + 0.5:.1f}" y="{y:.1f}" width="{right - x - 1:.1f}" height="{base - y:.1f}"'
        parts.append(f'<rect {shape} fill="{BAR_COLOR}"><title>{label}</title></rect>')
    step = max(1, int(np.ceil(len(edges) / 6)))
    for edge in edges[::step]:
        parts.append(text(place((edge - edges[0]) / span, 0)[0], TOP + PLOT_HEIGHT + 15, f'{edge:g}'))
    return frame(title, x_title, parts)
