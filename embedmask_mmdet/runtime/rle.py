"""COCO's run lengths of a mask that is given inside its box: pixels outside are not looked at."""

from __future__ import annotations

import numpy as np

BITS = 5  # of a number in a character
FIRST_CHARACTER = 48


def count_runs(bitmap: np.ndarray, corner: tuple[int, int], shape: tuple[int, int]) -> np.ndarray:
    """Count the pixels that are off, on, off, ... in the columns of an image, one column after the other.

    Args:
        bitmap: bool ``(h, w)``, the mask inside its box.
        corner: ``(x, y)`` of the box in the image.
        shape: ``(H, W)`` of the image.

    Returns:
        int64, from the first run of pixels that are off, which may be 0, to the last run, which may not.
    """
    height, width = shape
    columns = np.zeros((bitmap.shape[1], bitmap.shape[0] + 2), bool)
    columns[:, 1:-1] = bitmap.T
    column, row = np.divmod(np.flatnonzero(columns[:, 1:] != columns[:, :-1]), bitmap.shape[0] + 1)
    edges = (corner[0] + column) * height + corner[1] + row
    # A run that ends at the lower edge of the image may go on in the next column.
    goes_on = np.flatnonzero(edges[1:] == edges[:-1])
    edges = np.delete(edges, [goes_on, goes_on + 1])
    counts = np.diff(edges, prepend=0, append=height * width)
    return counts if counts[-1] else counts[:-1]


def compress(counts: np.ndarray) -> bytes:
    """Write run lengths as pycocotools does: differences from the run before the last, five bits a character."""
    rest = counts.astype(np.int64)
    rest[3:] -= counts[1:-2]
    characters, written = [], []
    unfinished = np.ones(len(rest), bool)
    while unfinished.any():
        bits = rest & (2**BITS - 1)
        rest >>= BITS
        is_negative = bits >= 2 ** (BITS - 1)
        has_more = rest != -is_negative.astype(np.int64)
        characters.append(FIRST_CHARACTER + bits + has_more * 2**BITS)
        written.append(unfinished)
        unfinished = unfinished & has_more
    return np.stack(characters, axis=1)[np.stack(written, axis=1)].astype(np.uint8).tobytes()


def encode(bitmap: np.ndarray, corner: tuple[int, int], shape: tuple[int, int]) -> dict:
    """Encode a mask.

    Args:
        bitmap: bool ``(h, w)``, the mask inside its box.
        corner: ``(x, y)`` of the box in the image.
        shape: ``(H, W)`` of the image.

    Returns:
        A dict ``size`` (``[H, W]``) and ``counts`` (bytes), equal to ``pycocotools.mask.encode`` of the mask.
    """
    return dict(size=list(shape), counts=compress(count_runs(bitmap, corner, shape)))
