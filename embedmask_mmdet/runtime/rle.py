"""COCO's run lengths of masks that are given inside boxes: pixels outside are not looked at.

All masks of an image are encoded in few calls of numpy, which would take most of the time for small masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from embedmask_mmdet.runtime.masks import Crop

BITS = 5  # of a number in a character
FIRST_CHARACTER = 48


def find_edges(crops: Sequence[Crop], height: int) -> list[np.ndarray]:
    """Find where masks begin and end in an image, one column after the other.

    Args:
        crops: The masks.
        height: Of the image.

    Returns:
        For each mask, an even number of ascending positions, int64: its first pixel, the first pixel after it, ...
    """
    shapes = [(crop.bitmap.shape[1], crop.bitmap.shape[0] + 2) for crop in crops]
    offsets = np.cumsum([0, *(columns * rows for columns, rows in shapes)])
    pixels = np.zeros(offsets[-1], bool)
    for crop, shape, (start, end) in zip(crops, shapes, pairwise(offsets)):
        # Each column stands between two pixels that are off.
        pixels[start:end].reshape(shape)[:, 1:-1] = crop.bitmap.T
    changes = np.flatnonzero(pixels[1:] != pixels[:-1])
    splits = np.searchsorted(changes, offsets)
    places = [(*crop.corner, shape[1]) for crop, shape in zip(crops, shapes)]
    x, y, padded = np.repeat(places, np.diff(splits), axis=0).T
    column, row = np.divmod(changes - np.repeat(offsets[:-1], np.diff(splits)), padded)
    edges = (x + column) * height + y + row
    return [join_runs(edges[start:end]) for start, end in pairwise(splits)]


def join_runs(edges: np.ndarray) -> np.ndarray:
    """Join runs of pixels where one ends at the lower edge of the image and the next column begins with another."""
    differs = edges[1:] != edges[:-1]
    return edges if differs.all() else edges[np.append(differs, True) & np.insert(differs, 0, True)]


def count_runs(edges: np.ndarray, num_pixels: int) -> np.ndarray:
    """Count the pixels of each run: off, on, off, ... The first may be 0, the last may not.

    Args:
        edges: Of a mask, as :func:`find_edges` returns them.
        num_pixels: Of the image.
    """
    counts = np.empty(len(edges) + 1, np.int64)
    counts[:-1], counts[-1] = edges, num_pixels
    counts[1:] -= edges
    return counts if counts[-1] else counts[:-1]


def compress(counts: Sequence[np.ndarray]) -> list[bytes]:
    """Write run lengths as pycocotools does: differences from the run before the last, five bits a character.

    Args:
        counts: Run lengths of each mask.
    """
    differences = [part.copy() for part in counts]
    for difference, part in zip(differences, counts):
        difference[3:] -= part[1:-2]
    rest = np.concatenate(differences)
    characters, written = [], []
    unfinished = np.ones(len(rest), bool)
    while unfinished.any():
        bits = rest & (2**BITS - 1)
        rest >>= BITS
        has_more = rest != np.where(bits >= 2 ** (BITS - 1), -1, 0)
        characters.append(FIRST_CHARACTER + bits + has_more * 2**BITS)
        written.append(unfinished)
        unfinished = unfinished & has_more
    is_written = np.stack(written, axis=1)
    text = np.stack(characters, axis=1)[is_written].astype(np.uint8).tobytes()
    ends = np.cumsum(is_written.sum(1))[np.cumsum([len(part) for part in counts]) - 1].tolist()
    return [text[start:end] for start, end in zip([0, *ends], ends)]


def encode(crops: Sequence[Crop], shape: tuple[int, int]) -> list[dict]:
    """Encode masks.

    Args:
        crops: The masks.
        shape: ``(H, W)`` of the image.

    Returns:
        Dicts ``size`` (``[H, W]``) and ``counts`` (bytes), equal to ``pycocotools.mask.encode`` of the masks.
    """
    if not crops:
        return []
    counts = [count_runs(edges, shape[0] * shape[1]) for edges in find_edges(crops, shape[0])]
    return [dict(size=list(shape), counts=text) for text in compress(counts)]
