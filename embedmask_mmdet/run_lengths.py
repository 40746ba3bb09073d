"""Decode COCO's run lengths inside the boxes around masks, without bitmaps of the complete image.

All masks of an image are decoded in few calls of numpy, which would take most of the time for small masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from embedmask_mmdet.runtime.masks import Crop
from embedmask_mmdet.runtime.rle import BITS, FIRST_CHARACTER

HAS_MORE, IS_NEGATIVE = 2**BITS, 2 ** (BITS - 1)


class Runs(NamedTuple):
    """Runs of pixels that are on, ``R`` of ``N`` masks; no run is empty.

    Attributes:
        owners: ``(R,)``, ascending index of the mask.
        columns: ``(R, 2)`` of the first and the last pixel.
        rows: ``(R, 2)`` of the first and the last pixel.
        lengths: ``(R,)`` in pixels.
    """

    owners: np.ndarray
    columns: np.ndarray
    rows: np.ndarray
    lengths: np.ndarray


def sum_parts(values: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Compute the cumulative sums of parts that follow each other, each of its own length."""
    totals = np.append(0, values.cumsum())
    return totals[1:] - np.repeat(totals[lengths.cumsum() - lengths], lengths)


def rank_parts(lengths: np.ndarray) -> np.ndarray:
    """Number the entries of parts that follow each other, each from 0 on."""
    return sum_parts(np.ones(lengths.sum(), np.int64), lengths) - 1


def read_numbers(texts: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Read the numbers in compressed run lengths: five bits a character, the lowest first.

    Args:
        texts: None of them empty.

    Returns:
        The numbers of all texts, and how many there are in each text, int64.

    Raises:
        ValueError: If a text ends inside a number.
    """
    characters = np.frombuffer(b''.join(texts), np.uint8).astype(np.int64) - FIRST_CHARACTER
    text_ends = np.cumsum([len(text) for text in texts])
    ends = np.flatnonzero((characters & HAS_MORE) == 0) + 1
    if not np.isin(text_ends, ends).all():
        raise ValueError('a run length ends inside a number')
    lengths = np.diff(ends, prepend=0)
    numbers = np.add.reduceat((characters & (HAS_MORE - 1)) << (BITS * rank_parts(lengths)), ends - lengths)
    is_negative = (characters[ends - 1] & IS_NEGATIVE) != 0
    numbers -= is_negative.astype(np.int64) << (BITS * lengths)
    return numbers, np.diff(np.searchsorted(ends, text_ends) + 1, prepend=0)


def sum_differences(numbers: np.ndarray, nums_runs: np.ndarray) -> np.ndarray:
    """Change differences from the run before the last to run lengths, as pycocotools does from the fourth run on.

    Args:
        numbers: Of all masks.
        nums_runs: How many of them each mask has.
    """
    counts, ranks = numbers.copy(), rank_parts(nums_runs)
    for first in (1, 2):
        chosen = (ranks >= first) & (ranks % 2 == first % 2)
        counts[chosen] = sum_parts(numbers[chosen], (nums_runs + 1 - first) // 2)
    return counts


def find_runs(counts: np.ndarray, nums_runs: np.ndarray, height: int, width: int) -> Runs:
    """Find the pixels of runs.

    Args:
        counts: Run lengths of all masks.
        nums_runs: How many of them each mask has.
        height: Of the image.
        width: Of the image.

    Raises:
        ValueError: If run lengths are not those of an image of this size.
    """
    edges = sum_parts(counts, nums_runs)
    if counts.min() < 0 or (edges[nums_runs.cumsum() - 1] != height * width).any():
        raise ValueError(f'run lengths are not those of {height} x {width} pixels')
    is_on = (rank_parts(nums_runs) % 2 == 1) & (counts > 0)
    starts, lengths = (edges - counts)[is_on], counts[is_on]
    columns, rows = np.divmod(np.stack([starts, starts + lengths - 1], axis=1), height)
    return Runs(np.repeat(np.arange(len(nums_runs)), nums_runs)[is_on], columns, rows, lengths)


def bound_runs(runs: Runs, num_masks: int, height: int) -> np.ndarray:
    """Find the boxes around masks.

    Args:
        runs: Of the masks.
        num_masks: ``N``.
        height: Of the image.

    Returns:
        int64 ``(N, 4)``, ``(x1, y1, x2, y2)``, right and bottom edge exclusive; 0 for an empty mask.
    """
    counts = np.bincount(runs.owners, minlength=num_masks)
    firsts = (counts.cumsum() - counts)[counts > 0]
    # A run that continues in the next column reaches the lower and the upper edge.
    is_split = runs.columns[:, 0] != runs.columns[:, 1]
    tops, bottoms = np.where(is_split, 0, runs.rows[:, 0]), np.where(is_split, height - 1, runs.rows[:, 1])
    boxes = np.zeros((num_masks, 4), np.int64)
    if len(firsts):
        low = (np.minimum.reduceat(values, firsts) for values in (runs.columns[:, 0], tops))
        high = (np.maximum.reduceat(values, firsts) + 1 for values in (runs.columns[:, 1], bottoms))
        boxes[counts > 0] = np.stack([*low, *high], axis=1)
    return boxes


def paint_runs(runs: Runs, boxes: np.ndarray) -> list[Crop]:
    """Make the bitmaps inside boxes.

    Args:
        runs: Of the masks.
        boxes: Of :func:`bound_runs`.
    """
    lefts, tops = boxes[:, 0], boxes[:, 1]
    widths, heights = boxes[:, 2] - lefts, boxes[:, 3] - tops
    ends = (widths * heights).cumsum()
    # Bitmaps follow each other column by column. No run leaves its box.
    corners = (ends - (widths + lefts) * heights - tops)[runs.owners]
    starts = corners + runs.columns[:, 0] * heights[runs.owners] + runs.rows[:, 0]
    changes = np.stack([starts, starts + runs.lengths], axis=1).ravel()
    lengths = np.diff(changes, prepend=0, append=ends[-1])
    pixels = np.repeat((np.arange(len(lengths)) % 2).astype(np.uint8), lengths)
    return [
        Crop((x1, y1), columns.reshape(x2 - x1, y2 - y1).T)
        for (x1, y1, x2, y2), columns in zip(boxes.tolist(), np.split(pixels, ends[:-1]))
    ]


def decode_crops(rles: Sequence[dict], height: int, width: int) -> list[Crop]:
    """Decode masks inside the boxes around them.

    Args:
        rles: Dicts ``size`` and ``counts``, compressed, bytes or str.
        height: Of the image.
        width: Of the image.

    Returns:
        The masks, uint8, as ``pycocotools.mask.decode`` returns them.

    Raises:
        ValueError: If a run length is not that of an image of this size.
    """
    if not rles:
        return []
    texts = [rle['counts'].encode() if isinstance(rle['counts'], str) else rle['counts'] for rle in rles]
    if not all(texts) or any(list(rle['size']) != [height, width] for rle in rles):
        raise ValueError(f'run lengths are not those of {height} x {width} pixels')
    numbers, nums_runs = read_numbers(texts)
    runs = find_runs(sum_differences(numbers, nums_runs), nums_runs, height, width)
    return paint_runs(runs, bound_runs(runs, len(rles), height))
