"""Read videos, and write them again with something drawn on their frames."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

import cv2
import numpy as np

from embedmask_mmdet.errors import InputError

DEFAULT_FRAME_RATE = 25
# The number of frames in a video's header is an estimate.
MIN_FRAMES_READ = 0.9


def show_nothing(batches: Iterable[list], name: str, total: float | None) -> Iterable[list]:
    """Show no progress."""
    return batches


def redraw_video(
    source: Path,
    target: Path,
    draw: Callable[[list[np.ndarray]], Iterable[np.ndarray]],
    batch_size: int = 1,
    show_progress: Callable[[Iterable[list], str, float | None], Iterable[list]] = show_nothing,
) -> None:
    """Write a video again with something drawn on its frames.

    Args:
        source: File of the video.
        target: File to write; its folder is made.
        draw: Makes pictures of frames; all are ``(h, w, 3)`` uint8 in BGR.
        batch_size: Number of frames that it gets at once.
        show_progress: Iterates over batches, given the name of the video and the number of batches, if that is known.

    Raises:
        OSError: The file is missing, or the video cannot be written.
        InputError: The file is not a video, or is incomplete. Frames up to there have been written.
    """
    source.stat()  # OpenCV does not say that a file is missing
    video = cv2.VideoCapture(str(source))
    expected = int(video.get(cv2.CAP_PROP_FRAME_COUNT))
    num_batches = -(-expected // batch_size) if expected > 0 else None
    writer = cv2.VideoWriter()
    num_written = 0
    for frames in show_progress(split_batches(read_frames(video), batch_size), source.name, num_batches):
        if num_written == 0:
            open_writer(writer, target, video.get(cv2.CAP_PROP_FPS), frames[0].shape[:2])
        for picture in draw(frames):
            writer.write(picture)
        num_written += len(frames)
    writer.release()
    if num_written == 0:
        raise InputError('this is not a video that OpenCV reads')
    if num_written < MIN_FRAMES_READ * expected:
        raise InputError(f'only {num_written} of {expected} frames can be read')


def open_writer(writer: cv2.VideoWriter, target: Path, frame_rate: float, size: tuple[int, int]) -> None:
    """Open a video file for writing.

    Args:
        writer: Is opened.
        target: File of the video; its folder is made.
        frame_rate: Frames per second; 0 if unknown.
        size: ``(height, width)`` of the frames.

    Raises:
        OSError: The video cannot be written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    frame_rate = frame_rate if frame_rate > 0 else DEFAULT_FRAME_RATE
    if not writer.open(str(target), cv2.VideoWriter.fourcc(*'mp4v'), frame_rate, size[::-1]):
        raise OSError(f'OpenCV cannot write {target}')


def read_frames(video: cv2.VideoCapture) -> Iterator[np.ndarray]:
    """Read the frames of a video, ``(h, w, 3)`` uint8 in BGR, up to the first that cannot be read."""
    while (frame := video.read()[1]) is not None:
        yield frame


def split_batches(items: Iterable, size: int) -> Iterator[list]:
    """Split items into lists of length `size`; the last may be shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
