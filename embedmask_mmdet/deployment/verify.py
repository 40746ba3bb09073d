"""Compare an ONNX file with the detector that it comes from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from mmengine.structures import InstanceData
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from embedmask_mmdet.inference.inferencer import EmbedMaskInferencer
from embedmask_mmdet.runtime import Segmenter

COMPARED = ('bboxes', 'scores', 'labels', 'masks')
MAX_BOX = 0.05  # pixels
MAX_SCORE = 1e-3
MAX_PIXELS = 1e-3  # of the pixels of all masks


@dataclass(frozen=True)
class Deviation:
    """How far the detections of an ONNX file are from those of PyTorch in one image.

    Attributes:
        num_expected: Detections of PyTorch.
        num_detections: Detections of the file.
        bboxes: Largest deviation of a side of a box in pixels.
        scores: Largest deviation of a score.
        labels: Number of labels that differ.
        pixels: Number of mask pixels that differ.
        num_pixels: Number of mask pixels of PyTorch.

    Deviations are those of the detections that both have.
    """

    num_expected: int
    num_detections: int
    bboxes: float
    scores: float
    labels: int
    pixels: int
    num_pixels: int

    @property
    def is_small(self) -> bool:
        """Whether counts and labels are the same, and the rest is within the bounds of this module."""
        return (
            self.num_expected == self.num_detections
            and not self.labels
            and self.bboxes <= MAX_BOX
            and self.scores <= MAX_SCORE
            and self.pixels <= MAX_PIXELS * self.num_pixels
        )

    def __str__(self) -> str:
        return (
            f'{self.num_detections} detections, {self.num_expected} with PyTorch; boxes differ by up to '
            f'{self.bboxes:.1e} pixels, scores by {self.scores:.1e}; {self.labels} labels and {self.pixels} of '
            f'{self.num_pixels} mask pixels differ'
        )


def pair_detections(detections: InstanceData, expected: InstanceData) -> tuple[np.ndarray, np.ndarray]:
    """Pair each detection with the expected one that is most like it: equal scores may be in another order.

    Returns:
        Indices of both, as many as there are pairs.
    """
    bboxes = torch.cdist(detections.bboxes, expected.bboxes, p=torch.inf)
    scores = (detections.scores[:, None] - expected.scores).abs()
    labels = detections.labels[:, None] != expected.labels
    return linear_sum_assignment(bboxes / MAX_BOX + scores / MAX_SCORE + 2 * labels)


def largest(values: Tensor) -> float:
    """Return the largest absolute value, 0 if there is none."""
    return float(values.abs().max()) if values.numel() else 0.0


def compare(outputs: Sequence[np.ndarray], expected: InstanceData) -> Deviation:
    """Compare the outputs of an ONNX file with PyTorch's detections in the same image.

    Args:
        outputs: Those of ``COMPARED``.
        expected: The same of PyTorch; masks as bitmaps.
    """
    detections = InstanceData(**dict(zip(COMPARED, map(torch.from_numpy, outputs))))
    rows, columns = pair_detections(detections, expected)
    found, wanted = detections[rows], expected[columns]
    return Deviation(
        num_expected=len(expected),
        num_detections=len(detections),
        bboxes=largest(found.bboxes - wanted.bboxes),
        scores=largest(found.scores - wanted.scores),
        labels=int((found.labels != wanted.labels).sum()),
        pixels=int((found.masks != wanted.masks).sum()),
        num_pixels=int(wanted.masks.sum()),
    )


class Verifier:
    """Run an ONNX file and the detector that it comes from.

    Args:
        path: The ONNX file.
        inferencer: With the detector. All its detections count from now on, and masks become bitmaps.

    Raises:
        InputError: If the file cannot be used, or onnxruntime is missing.
    """

    def __init__(self, path: str | Path, inferencer: EmbedMaskInferencer) -> None:
        self.segmenter = Segmenter(path)
        self.inferencer = inferencer
        inferencer.thresholds = [0.0] * len(inferencer.classes)
        inferencer.model.mask_head.mask_format = 'bitmap'

    def __call__(self, image: np.ndarray) -> Deviation:
        """Compare the detections in an image ``(H, W, 3)``, uint8 BGR."""
        (sample,) = self.inferencer(image, return_datasamples=True)['predictions']
        detections = self.segmenter(image)
        return compare([getattr(detections, name) for name in COMPARED], sample.pred_instances)
