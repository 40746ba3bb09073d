"""Run an ONNX file that ``tools/deployment/export_onnx.py`` wrote."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from embedmask_mmdet.errors import InputError
from embedmask_mmdet.media import read_image
from embedmask_mmdet.runtime.detections import Detections
from embedmask_mmdet.runtime.masks import Bitmaps, GridMasks

if TYPE_CHECKING:
    import onnxruntime

DETECTION_OUTPUTS = ('bboxes', 'scores', 'labels')
MASK_OUTPUTS = {
    'image': (Bitmaps, ('masks',)),
    'grid': (GridMasks, ('crops', 'grid_crops', 'values', 'grid_size', 'resized_size')),
}
DEFAULT_PROVIDERS = ('CPUExecutionProvider',)
CHANNEL_CONVERSIONS = {1: 'cv2.COLOR_GRAY2BGR', 4: 'cv2.COLOR_BGRA2BGR'}
DTYPE_CONVERSIONS = {
    'bool': 'image.astype(np.uint8) * 255',
    'uint16': '(image >> 8).astype(np.uint8)',
    'float32': 'np.clip(image * 255, 0, 255).astype(np.uint8) if its values are 0 to 1',
}


class Segmenter:
    """Detect with an ONNX file.

    ``Segmenter('model.onnx')('image.jpg')`` returns :class:`Detections`; for a list of images, it returns a list.

    Args:
        path: The file, exported with ``--masks grid`` (faster) or ``--masks image``.
        threads: Number of threads; onnxruntime's choice by default.
        providers: What onnxruntime runs the file on, such as ``['CUDAExecutionProvider']``; the CPU by default.

    Attributes:
        class_names: Names of the classes.
        mask_threshold: Probability above which a pixel belongs to a mask; None if the file gives bitmaps.

    Raises:
        InputError: If the file cannot be used, or onnxruntime is missing or has not the providers.
    """

    def __init__(
        self, path: str | Path, threads: int | None = None, providers: Sequence[str] = DEFAULT_PROVIDERS
    ) -> None:
        self.path = Path(path).expanduser()
        self._session = open_session(self.path, threads or 0, providers)
        metadata = self._session.get_modelmeta().custom_metadata_map
        self._make_masks, self._outputs = self._choose_masks(metadata)
        self._threshold = float(metadata.get('threshold', 'nan'))
        self.mask_threshold = find_probability(self._threshold)
        self.class_names = tuple(json.loads(metadata.get('classes', '[]')))

    def __call__(self, images: str | Path | np.ndarray | Sequence) -> Detections | list[Detections]:
        """Detect in an image, or in each image of a list.

        Args:
            images: An array uint8 ``(H, W, 3)`` in BGR as OpenCV reads it, the path of a file, or a list of these.

        Raises:
            InputError: If an array is not such an image, or a file cannot be read as one.
            OSError: If a file is missing.
        """
        if isinstance(images, (list, tuple)):
            return [self._detect(image) for image in images]
        return self._detect(images)

    def _choose_masks(self, metadata: Mapping[str, str]) -> tuple[type[Bitmaps] | type[GridMasks], tuple[str, ...]]:
        inputs = [(entry.name, entry.type) for entry in self._session.get_inputs()]
        outputs = [entry.name for entry in self._session.get_outputs()]
        masks, mask_outputs = MASK_OUTPUTS.get(metadata.get('masks', 'image'), (None, ()))
        expected = (*DETECTION_OUTPUTS, *mask_outputs)
        if masks is None or inputs != [('image', 'tensor(uint8)')] or not set(expected) <= set(outputs):
            raise InputError(
                f'{self.path} is not a file that takes an image and gives masks: it takes '
                f'{", ".join(name for name, _ in inputs)} and gives {", ".join(outputs)}. '
                'Write it with tools/deployment/export_onnx.py and --masks grid.'
            )
        return masks, expected

    def _detect(self, image: str | Path | np.ndarray) -> Detections:
        image = read_image(Path(image).expanduser()) if isinstance(image, (str, Path)) else image
        check_image(image)
        outputs = dict(zip(self._outputs, self._run(np.ascontiguousarray(image))))
        masks = self._make_masks.from_outputs(outputs, image.shape[:2], self._threshold)
        return Detections(
            *(outputs[name] for name in DETECTION_OUTPUTS), self.class_names, tuple(image.shape[:2]), masks
        )

    def _run(self, image: np.ndarray) -> list[np.ndarray]:
        try:
            return self._session.run(self._outputs, {'image': image})
        except Exception as error:  # onnxruntime's errors have no common class
            raise InputError(
                f'{self.path} fails for an image of {image.shape[1]}x{image.shape[0]} pixels '
                f'({first_line(error)}). Try a smaller image, or export the file again.'
            ) from error


def open_session(path: Path, threads: int, providers: Sequence[str]) -> onnxruntime.InferenceSession:
    """Load an ONNX file.

    Args:
        path: The file.
        threads: Number of threads; 0 for onnxruntime's choice.
        providers: Names of onnxruntime's execution providers, in the order of preference.

    Raises:
        InputError: If the file cannot be loaded, or onnxruntime is missing or has not the providers.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError(
            f'onnxruntime cannot be imported ({error}). Install it with `pip install onnxruntime`.'
        ) from error
    if not path.is_file():
        raise InputError(f'the model {path} does not exist. Write it with tools/deployment/export_onnx.py.')
    missing = [name for name in providers if name not in onnxruntime.get_available_providers()]
    if missing:
        raise InputError(
            f'this onnxruntime has no {", ".join(missing)}. It has '
            f'{", ".join(onnxruntime.get_available_providers())}; for a GPU, install onnxruntime-gpu.'
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(str(path), options, list(providers))
    except Exception as error:  # onnxruntime's errors have no common class
        raise InputError(
            f'{path} cannot be loaded: it is incomplete or not an ONNX file ({first_line(error)}). '
            'Copy it again, or write it with tools/deployment/export_onnx.py.'
        ) from error


def find_probability(threshold: float) -> float | None:
    """Return the probability that a threshold of a file means: the logarithm of one if it is negative, None if NaN."""
    if math.isnan(threshold):
        return None
    return math.exp(threshold) if threshold < 0 else threshold


def first_line(error: Exception) -> str:
    """Return the first line of a message."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def check_image(image: np.ndarray) -> None:
    """Check that an array is an image as OpenCV reads it.

    Raises:
        InputError: If not; the message says how to convert it.
    """
    if not isinstance(image, np.ndarray):
        raise InputError(
            f'an image must be an array of numpy or the path of a file, got {type(image).__name__}. '
            'Convert it with np.asarray(image), and RGB to BGR with image[..., ::-1].'
        )
    if image.dtype != np.uint8:
        hint = DTYPE_CONVERSIONS.get(image.dtype.name, 'image.astype(np.uint8) if its values are 0 to 255')
        raise InputError(f'the image is {image.dtype}, it must be uint8. Convert it with {hint}.')
    if image.ndim == 4:
        raise InputError(f'the array of shape {image.shape} is a batch. Pass a list of images: list(images).')
    channels = image.shape[2] if image.ndim == 3 else 1
    if channels != 3 or not image.size:
        code = CHANNEL_CONVERSIONS.get(channels)
        hint = f'Convert it with cv2.cvtColor(image, {code}).' if code else 'Read it with cv2.imread.'
        raise InputError(f'the image has the shape {image.shape}, it must be (height, width, 3) in BGR. {hint}')
