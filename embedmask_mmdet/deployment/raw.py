"""The outputs of the network alone."""

from __future__ import annotations

from torch import Tensor, nn

from embedmask_mmdet.deployment.inputs import Axes
from embedmask_mmdet.errors import InputError
from embedmask_mmdet.models import EmbedMask

# As in ``ProposalMaps``, a map of each level.
MAPS = ('cls_score', 'bbox_pred', 'centerness', 'proposal_embed', 'proposal_margin')


def name_axes(stride: int) -> Axes:
    """Name the axes of a map ``(B, C, h, w)``."""
    return {0: 'batch', 2: f'height_{stride}', 3: f'width_{stride}'}


class RawNetwork(nn.Module):
    """Compute what ``model(inputs, mode='tensor')`` returns, without lists.

    Args:
        model: With trained weights, on the CPU, in evaluation mode.
        preparation: Gives the network its input, see ``inputs.py``.

    Attributes:
        axes: The axes of any size of each output, by its name.
        metadata: What the file says about its outputs.

    Raises:
        InputError: If the model has no embeddings.
    """

    def __init__(self, model: EmbedMask, preparation: nn.Module) -> None:
        super().__init__()
        if not isinstance(model, EmbedMask):
            raise InputError(f'{type(model).__name__} cannot be exported. Use a config whose model is EmbedMask.')
        self.model = model
        self.preparation = preparation
        strides = model.bbox_head.strides
        self.axes = {f'{name}_{stride}': name_axes(stride) for name in MAPS for stride in strides}
        self.axes['pixel_embed'] = name_axes(model.mask_head.stride)
        self.metadata = dict(masks='raw')

    def forward(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Run the network.

        Args:
            inputs: As `preparation` takes it.

        Returns:
            Class logits ``(B, C, h, w)`` of all levels, then distances ``(B, 4, h, w)`` in input pixels, centerness
            logits ``(B, 1, h, w)``, embeddings and margins ``(B, D, h, w)``; last, the embedding of pixels.
        """
        proposals, pixel_embeds = self.model._embed(self.preparation(inputs)[0])
        return (*(level for maps in proposals for level in maps), pixel_embeds)
