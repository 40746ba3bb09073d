"""The kinds of ONNX files: what each takes and gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from torch import nn

from embedmask_mmdet.deployment.inputs import BatchInput, ImageInput, StaticInput, TensorInput
from embedmask_mmdet.deployment.outputs import GridMasks
from embedmask_mmdet.deployment.raw import RawNetwork
from embedmask_mmdet.deployment.segmentor import ExportableSegmentor
from embedmask_mmdet.errors import InputError
from embedmask_mmdet.models import EmbedMask


class Kind(NamedTuple):
    """The parts of a kind of file.

    Attributes:
        make_input: Makes the part that prepares the input, of a model and the configs of its test pipeline.
        make_network: Makes everything else, of a model and that part.
    """

    make_input: Callable[[EmbedMask, Sequence[dict]], nn.Module]
    make_network: Callable[[EmbedMask, nn.Module], nn.Module]

    def build(self, model: EmbedMask, pipeline: Sequence[dict]) -> nn.Module:
        """Make the module that is exported.

        Raises:
            InputError: If a part of the model or of the pipeline cannot be exported.
        """
        return self.make_network(model, self.make_input(model, pipeline)).eval()


GridSegmentor = partial(ExportableSegmentor, make_masks=GridMasks)
# By what a file takes and gives.
KINDS = {
    ('image', 'image'): Kind(ImageInput, ExportableSegmentor),
    ('image', 'grid'): Kind(ImageInput, GridSegmentor),
    ('image', 'raw'): Kind(ImageInput, RawNetwork),
    ('tensor', 'image'): Kind(TensorInput, ExportableSegmentor),
    ('tensor', 'grid'): Kind(TensorInput, GridSegmentor),
    ('tensor', 'raw'): Kind(BatchInput, RawNetwork),
}
DEFAULT_KIND = KINDS['image', 'image']


def fix_shape(kind: Kind, shape: tuple[int, int, int]) -> Kind:
    """Fix the size of the input.

    Args:
        kind: One that takes tensors.
        shape: ``B, H, W``.

    Raises:
        InputError: If the kind takes no such input.
    """
    if not issubclass(kind.make_input, TensorInput):
        raise InputError('only tensors have a fixed shape, images are resized in the graph. Add `--input tensor`.')
    if shape[0] != 1 and not issubclass(kind.make_input, BatchInput):
        raise InputError(
            f'a file with {shape[0]} images cannot give detections, whose number differs by image. Use a batch size of '
            '1, or `--raw`.'
        )
    return kind._replace(make_input=partial(StaticInput, shape=shape))
