"""Detect with an ONNX file: PyTorch and MMDetection are not needed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from embedmask_mmdet.runtime import Detections, Segmenter


@dataclass(frozen=True, eq=False)
class OnnxResult:
    """What a file found in an image.

    Attributes:
        image: ``(h, w, 3)`` uint8 in BGR.
        detections: Best first, with the masks of the file's threshold.
    """

    image: np.ndarray
    detections: Detections

    def cut_masks_at(self, probability: float | None) -> Detections:
        """Return the detections with another threshold of masks; None for that of the file."""
        return self.detections if probability is None else self.detections.cut_masks_at(probability)


class OnnxModel:
    """A model in an ONNX file.

    Args:
        path: File that ``tools/deployment/export_onnx.py`` wrote.

    Attributes:
        name: What to call it on the page.
        class_names: Names of the classes.
        mask_thr: Probability above which a pixel belongs to a mask; None if the file does not let one choose it.

    Raises:
        InputError: If the file cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self._segmenter = Segmenter(path)
        self.name = path.name
        self.class_names = self._segmenter.class_names
        self.mask_thr = self._segmenter.mask_threshold

    def detect(self, image: np.ndarray) -> OnnxResult:
        """Detect in an image ``(h, w, 3)`` uint8 in BGR.

        Raises:
            InputError: If onnxruntime fails.
        """
        return OnnxResult(image, self._segmenter(image))
