"""Compare an ONNX file with the detector that it comes from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from mmengine.structures import InstanceData
from torch import Tensor

from embedmask_mmdet.deployment.packages import import_optional
from embedmask_mmdet.inference.inferencer import EmbedMaskInferencer

MAX_BOX = 1.0  # pixels
MAX_SCORE = 0.01
MAX_PIXELS = 0.005  # of the pixels of all masks


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


def pair_detections(bboxes: Tensor, labels: Tensor, expected: InstanceData) -> Tensor:
    """Find for each expected detection the one with the nearest box, of the same class if there is one.

    Equal scores may be in another order.
    """
    distances = torch.cdist(expected.bboxes, bboxes, p=torch.inf)
    return (distances + MAX_BOX * (expected.labels[:, None] != labels)).argmin(1)


def compare(outputs: list[np.ndarray], expected: InstanceData) -> Deviation:
    """Compare the outputs of an ONNX file with PyTorch's detections in the same image.

    Args:
        outputs: ``bboxes``, ``scores``, ``labels`` and ``masks``.
        expected: The same of PyTorch; masks as bitmaps.
    """
    bboxes, scores, labels, masks = map(torch.from_numpy, outputs)
    num_pixels = int(expected.masks.sum())
    if not len(bboxes) or not len(expected):
        return Deviation(len(expected), len(bboxes), 0.0, 0.0, 0, int(masks.sum()) + num_pixels, num_pixels)
    pairs = pair_detections(bboxes, labels, expected)
    return Deviation(
        len(expected),
        len(bboxes),
        float((bboxes[pairs] - expected.bboxes).abs().max()),
        float((scores[pairs] - expected.scores).abs().max()),
        int((labels[pairs] != expected.labels).sum()),
        int((masks[pairs] != expected.masks).sum()),
        num_pixels,
    )


class Verifier:
    """Run an ONNX file and the detector that it comes from.

    Args:
        path: The ONNX file.
        inferencer: With the detector. All its detections count from now on, and masks become bitmaps.

    Raises:
        InputError: If onnxruntime is missing.
    """

    def __init__(self, path: str | Path, inferencer: EmbedMaskInferencer) -> None:
        self.session = import_optional('onnxruntime').InferenceSession(str(path), providers=['CPUExecutionProvider'])
        self.inferencer = inferencer
        inferencer.thresholds = [0.0] * len(inferencer.classes)
        inferencer.model.mask_head.mask_format = 'bitmap'

    def __call__(self, image: np.ndarray) -> Deviation:
        """Compare the detections in an image ``(H, W, 3)``, uint8 BGR."""
        (sample,) = self.inferencer(image, return_datasamples=True)['predictions']
        return compare(self.session.run(None, {'image': image}), sample.pred_instances)
