"""Segment image and video files: a picture or video of each, and one COCO result file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import count
from pathlib import Path

import cv2
import numpy as np

from embedmask_mmdet.errors import InputError
from embedmask_mmdet.fileio import write_atomically
from embedmask_mmdet.media import SkippedFiles, is_video, read_image
from embedmask_mmdet.runtime.detections import Detections
from embedmask_mmdet.runtime.drawing import draw_detections
from embedmask_mmdet.runtime.segmenter import Segmenter
from embedmask_mmdet.videos import redraw_video

RESULTS, IMAGES = 'results.json', 'images.json'


class CocoResults:
    """Detections as COCO's result file, and the images that its ids belong to.

    Args:
        class_names: Names of the classes, which get the ids 1, 2, ...

    Attributes:
        results: Entries of the result file.
    """

    def __init__(self, class_names: Sequence[str]) -> None:
        self.results: list[dict] = []
        self._images: list[dict] = []
        self._categories = [dict(id=i, name=name) for i, name in enumerate(class_names, start=1)]

    def add(self, detections: Detections, file: Path, **position: int) -> None:
        """Add the detections in an image; `position` says which frame of a video it is."""
        height, width = detections.image_shape
        image_id = len(self._images) + 1
        self._images.append(dict(id=image_id, file_name=str(file), height=height, width=width, **position))
        self.results += detections.to_coco(image_id)

    def write(self, folder: Path) -> None:
        """Write the result file, and an annotation file with images and categories that pycocotools can load."""
        images = dict(images=self._images, categories=self._categories, annotations=[])
        write_atomically(folder / IMAGES, json.dumps(images))
        write_atomically(folder / RESULTS, json.dumps(self.results))


class FileSegmenter:
    """Segments image and video files and writes pictures of them.

    Args:
        segmenter: Detects.
        score_thr: Lowest score of the detections to keep.
        skipped: Files that fail are added to it.

    Attributes:
        coco: The detections so far.
    """

    def __init__(self, segmenter: Segmenter, score_thr: float, skipped: SkippedFiles) -> None:
        self.segmenter = segmenter
        self.score_thr = score_thr
        self.skipped = skipped
        self.coco = CocoResults(segmenter.class_names)

    def segment(self, sources: Sequence[Path], targets: Sequence[Path]) -> None:
        """Write a picture for each image and a video for each video."""
        for source, target in zip(sources, targets):
            with self.skipped.skip_on_error(source):
                if is_video(source):
                    self.segment_video(source, target)
                else:
                    self.segment_image(source, target)

    def segment_image(self, source: Path, target: Path) -> None:
        """Write the picture of an image.

        Raises:
            OSError: The image is missing, or the picture cannot be written.
            InputError: The file is not an image.
        """
        image = read_image(source)
        detections = self._detect(image)
        target.parent.mkdir(parents=True, exist_ok=True)
        if not cv2.imwrite(str(target), draw_detections(image, detections)):
            raise OSError(f'OpenCV cannot write {target}')
        self.coco.add(detections, source)

    def segment_video(self, source: Path, target: Path) -> None:
        """Write a video with the detections in each frame.

        Raises:
            OSError: The video is missing, or cannot be written.
            InputError: The file is not a video, or is incomplete. Frames up to there have been written.
        """
        frame_ids = count()

        def draw(frames: list[np.ndarray]) -> list[np.ndarray]:
            found = [self._detect(frame) for frame in frames]
            for detections in found:
                self.coco.add(detections, source, frame_id=next(frame_ids))
            return [draw_detections(frame, detections) for frame, detections in zip(frames, found)]

        redraw_video(source, target, draw)

    def _detect(self, image: np.ndarray) -> Detections:
        detections = self.segmenter(image)
        return detections[detections.scores >= self.score_thr]


def make_folder(folder: Path) -> None:
    """Make the folder for results.

    Raises:
        InputError: Results would be written over, or the folder cannot be made.
    """
    for name in (RESULTS, IMAGES):
        if (folder / name).exists():
            raise InputError(f'{folder / name} exists already. Choose another --out, or remove the file.')
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f'the folder {folder} cannot be made: {error.strerror}. Choose another --out.') from error
