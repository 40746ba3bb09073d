"""From an image to the network's input, as the test pipeline and the data preprocessor do it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from mmdet.models import DetDataPreprocessor
from torch import Tensor, nn
from torch.nn import functional
from torch.onnx.operators import shape_as_tensor

from embedmask_mmdet.deployment.resizing import resize
from embedmask_mmdet.errors import InputError

# Steps that do not change an image that is in memory already.
NEUTRAL_STEPS = ('LoadImageFromFile', 'LoadAnnotations', 'EmbedMaskLoadAnnotations', 'PackDetInputs')


class Sizes(NamedTuple):
    """The sizes of an image, int64 tensors ``(2,)``: height and width.

    Attributes:
        ori_shape: Of the original image.
        img_shape: Of the network's input before its padding.
    """

    ori_shape: Tensor
    img_shape: Tensor


def find_resize(pipeline: Sequence[dict]) -> dict | None:
    """Find the step of a test pipeline that resizes.

    Args:
        pipeline: Configs of the steps.

    Returns:
        The config of the step; None if images keep their size.

    Raises:
        InputError: If a step cannot be exported.
    """
    steps = [step for step in pipeline if step['type'] not in NEUTRAL_STEPS]
    wrong = [step for step in steps if step['type'] != 'Resize' or 'scale' not in step]
    wrong += steps[1:]
    if wrong or any(step.get('interpolation', 'bilinear') != 'bilinear' for step in steps):
        raise InputError(
            f'the test pipeline has {(wrong or steps)[0]}, which cannot be exported. Use one bilinear Resize with a '
            'scale, or none.'
        )
    return steps[0] if steps else None


def fit_size(ori_shape: Tensor, resize_cfg: dict | None) -> Tensor:
    """Compute the size that a Resize of the pipeline gives an image.

    Args:
        ori_shape: int64 ``(2,)``, height and width.
        resize_cfg: Config of the step, or None.

    Returns:
        int64 ``(2,)``.
    """
    if resize_cfg is None:
        return ori_shape
    width, height = resize_cfg['scale']
    if not resize_cfg.get('keep_ratio', False):
        return torch.tensor([height, width])
    # mmcv's imrescale computes with Python's floats, too.
    shape = ori_shape.double()
    # As vectors, because the exporter computes in single precision with single numbers.
    longest, shortest = shape.amax(0, keepdim=True), shape.amin(0, keepdim=True)
    factor = torch.minimum(max(width, height) / longest, min(width, height) / shortest)
    return (shape * factor + 0.5).floor().long()


class Preprocessing(nn.Module):
    """Resize, normalize and pad an image.

    Args:
        preprocessor: Of the detector.
        pipeline: Configs of the steps of the test pipeline.

    Raises:
        InputError: If a step of the pipeline or the preprocessor cannot be exported.
    """

    def __init__(self, preprocessor: nn.Module, pipeline: Sequence[dict]) -> None:
        super().__init__()
        if type(preprocessor) is not DetDataPreprocessor:
            raise InputError(
                f'the data preprocessor {type(preprocessor).__name__} cannot be exported. Use DetDataPreprocessor.'
            )
        self.resize_cfg = find_resize(pipeline)
        self.preprocessor = preprocessor

    def forward(self, image: Tensor) -> tuple[Tensor, Sizes]:
        """Prepare an image.

        Args:
            image: uint8 ``(H, W, 3)``, BGR.

        Returns:
            The input ``(1, 3, h, w)`` and the sizes of the image.
        """
        ori_shape = shape_as_tensor(image)[:2]
        img_shape = fit_size(ori_shape, self.resize_cfg)
        if self.resize_cfg is not None:
            image = resize(image, ori_shape, img_shape)
        inputs = image.permute(2, 0, 1)[None].float()
        return self._pad(self._normalize(inputs), img_shape), Sizes(ori_shape, img_shape)

    def _normalize(self, inputs: Tensor) -> Tensor:
        if self.preprocessor._channel_conversion:
            inputs = inputs.flip(1)
        if self.preprocessor._enable_normalize:
            inputs = (inputs - self.preprocessor.mean) / self.preprocessor.std
        return inputs

    def _pad(self, inputs: Tensor, img_shape: Tensor) -> Tensor:
        divisor = self.preprocessor.pad_size_divisor
        bottom, right = ((divisor - img_shape % divisor) % divisor).unbind()
        return functional.pad(inputs, (0, right, 0, bottom), value=self.preprocessor.pad_value)
