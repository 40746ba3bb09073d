"""Draw detections on image and video files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import mmcv
import numpy as np
from mmdet.structures import DetDataSample
from rich.console import Console
from rich.progress import track

from embedmask_mmdet.inference.inferencer import EmbedMaskInferencer
from embedmask_mmdet.media import SkippedFiles, is_video, read_image
from embedmask_mmdet.videos import redraw_video, split_batches


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
        redraw_video(source, target, self.draw_frames, self.batch_size, show_progress)

    def draw_frames(self, frames: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Draw the detections in each frame."""
        samples = self.detect([self.inferencer.pipeline(frame) for frame in frames])
        return [self.make_picture(frame, sample) for frame, sample in zip(frames, samples)]

    def detect(self, inputs: Sequence[dict]) -> list[DetDataSample]:
        """Detect in a batch of what the inferencer's pipeline returned; the batch may be empty."""
        return self.inferencer.forward(self.inferencer.collate_fn(inputs)) if inputs else []

    def make_picture(self, image: np.ndarray, sample: DetDataSample) -> np.ndarray:
        """Draw detections on an image, ``(h, w, 3)`` uint8 in BGR, and count them."""
        (picture,) = self.inferencer.visualize([image], [sample], return_vis=True)
        self.num_instances += len(sample.pred_instances)
        return picture[..., ::-1]


def show_progress(batches: Iterable[list], name: str, total: float | None = None) -> Iterable[list]:
    """Show a progress bar on stderr."""
    return track(batches, name, total, console=Console(stderr=True))
