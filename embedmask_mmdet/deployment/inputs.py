"""What an ONNX file takes: each kind of input is a part that hands the network its batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.onnx.operators import shape_as_tensor

from embedmask_mmdet.deployment.preprocessing import Preprocessing, Sizes
from embedmask_mmdet.errors import InputError
from embedmask_mmdet.models import EmbedMask

Axes = Mapping[int, str]


class ImageInput(Preprocessing):
    """An image of any size as OpenCV reads it. The graph resizes, normalizes and pads it.

    Args:
        model: The detector.
        pipeline: Configs of the steps of the test pipeline.

    Attributes:
        name: Of the input.
        axes: Its axes of any size, each with a name.
        example: An input.
    """

    name = 'image'
    axes: Axes = {0: 'height', 1: 'width'}

    def __init__(self, model: EmbedMask, pipeline: Sequence[dict]) -> None:
        super().__init__(model.data_preprocessor, pipeline)
        self.example = torch.zeros(97, 131, 3, dtype=torch.uint8)


class TensorInput(nn.Module):
    """One image that is resized, normalized and padded already, float32 ``(1, 3, H, W)``.

    Args:
        model: The detector.
        pipeline: Not used; it is the caller's.

    Attributes:
        name: Of the input.
        axes: Its axes of any size, each with a name.
        example: An input.
    """

    name = 'input'
    axes: Axes = {2: 'height', 3: 'width'}

    def __init__(self, model: EmbedMask, pipeline: Sequence[dict]) -> None:
        super().__init__()
        self.example = torch.zeros(1, 3, 96, 160)

    def forward(self, inputs: Tensor) -> tuple[Tensor, Sizes]:
        """Return the input and its size, which counts as that of the original image."""
        shape = shape_as_tensor(inputs)[2:]
        return inputs, Sizes(shape, shape)


class BatchInput(TensorInput):
    """As :class:`TensorInput`, any number of images of one size."""

    axes: Axes = {0: 'batch', **TensorInput.axes}


class StaticInput(TensorInput):
    """As :class:`TensorInput`, of a size that is written into the graph.

    Args:
        model: The detector.
        pipeline: Not used; it is the caller's.
        shape: ``B, H, W``.

    Raises:
        InputError: If the data preprocessor never gives this size.
    """

    axes: Axes = {}

    def __init__(self, model: EmbedMask, pipeline: Sequence[dict], shape: tuple[int, int, int]) -> None:
        super().__init__(model, pipeline)
        batch_size, height, width = shape
        divisor = model.data_preprocessor.pad_size_divisor
        if min(shape) < 1 or height % divisor or width % divisor:
            raise InputError(
                f'the input cannot be {batch_size} images of {height}x{width}. Heights and widths must be multiples of '
                f'{divisor}, to which the data preprocessor pads.'
            )
        self.example = torch.zeros(batch_size, 3, height, width)
