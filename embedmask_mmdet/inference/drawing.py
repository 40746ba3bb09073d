"""Draw detections on image and video files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import cv2
import mmcv
import numpy as np
from mmdet.structures import DetDataSample
from rich.console import Console
from rich.progress import track

from embedmask_mmdet.errors import InputError
from embedmask_mmdet.inference.files import SkippedFiles, is_video, read_image
from embedmask_mmdet.inference.inferencer import EmbedMaskInferencer

DEFAULT_FRAME_RATE = 25
# The number of frames in a video's header is an estimate.
MIN_FRAMES_READ = 0.9


class FileDrawer:
    """Writes pictures of image and video files with their detections.

    Args:
        inferencer: Detects and draws.
        batch_size: Number of images or frames to detect in at once.
        skipped: Files that fail are added to it.

    Attributes:
        num_instances: Number of instances drawn so far.
    """

    def __init__(self, inferencer: EmbedMaskInferencer, batch_size: int, skipped: SkippedFiles) -> None:
        self.inferencer = inferencer
        self.batch_size = batch_size
        self.skipped = skipped
        self.num_instances = 0

    def draw(self, sources: Sequence[Path], targets: Sequence[Path]) -> None:
        """Write a picture for each image and a video for each video."""
        pairs = list(zip(sources, targets))
        self.draw_images([pair for pair in pairs if not is_video(pair[0])])
        for source, target in pairs:
            if is_video(source):
                with self.skipped.skip_on_error(source):
                    self.draw_video(source, target)

    def draw_images(self, pairs: Sequence[tuple[Path, Path]]) -> None:
        """Write the picture of each image; `pairs` are files of images and of their pictures."""
        batches = list(split_batches(pairs, self.batch_size))
        for batch in show_progress(batches, 'Images') if batches else ():
            loaded = []
            for source, target in batch:
                with self.skipped.skip_on_error(source):
                    image = read_image(source)
                    loaded.append((source, target, image, self.inferencer.pipeline(image)))
            samples = self.detect([data for *_, data in loaded])
            for (source, target, image, _), sample in zip(loaded, samples):
                with self.skipped.skip_on_error(source):
                    mmcv.imwrite(self.make_picture(image, sample), str(target))

    def draw_video(self, source: Path, target: Path) -> None:
        """Write a video with the detections in each frame.

        Raises:
            OSError: The file is missing, or the video cannot be written.
            InputError: The file is not a video, or is incomplete. Frames up to there have been written.
        """
        source.stat()  # OpenCV does not say that a file is missing
        video = cv2.VideoCapture(str(source))
        expected = int(video.get(cv2.CAP_PROP_FRAME_COUNT))
        num_batches = -(-expected // self.batch_size) if expected > 0 else None
        writer = cv2.VideoWriter()
        num_written = 0
        for frames in show_progress(split_batches(read_frames(video), self.batch_size), source.name, num_batches):
            if num_written == 0:
                open_writer(writer, target, video.get(cv2.CAP_PROP_FPS), frames[0].shape[:2])
            samples = self.detect([self.inferencer.pipeline(frame) for frame in frames])
            for frame, sample in zip(frames, samples):
                writer.write(self.make_picture(frame, sample))
            num_written += len(frames)
        writer.release()
        if num_written == 0:
            raise InputError('this is not a video that OpenCV reads')
        if num_written < MIN_FRAMES_READ * expected:
            raise InputError(f'only {num_written} of {expected} frames can be read')

    def detect(self, inputs: Sequence[dict]) -> list[DetDataSample]:
        """Detect in a batch of what the inferencer's pipeline returned; the batch may be empty."""
        return self.inferencer.forward(self.inferencer.collate_fn(inputs)) if inputs else []

    def make_picture(self, image: np.ndarray, sample: DetDataSample) -> np.ndarray:
        """Draw detections on an image, ``(h, w, 3)`` uint8 in BGR, and count them."""
        (picture,) = self.inferencer.visualize([image], [sample], return_vis=True)
        self.num_instances += len(sample.pred_instances)
        return picture[..., ::-1]


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


def show_progress(batches: Iterable[list], name: str, total: float | None = None) -> Iterable[list]:
    """Show a progress bar on stderr."""
    return track(batches, name, total, console=Console(stderr=True))
