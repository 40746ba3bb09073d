"""The frame of reference of EmbedMask plus: all that is spatial in a proposal is in units of its predicted box."""

from __future__ import annotations

from mmdet.registry import MODELS
from mmengine.structures import InstanceData
from torch import Tensor

from embedmask_mmdet.models.frames.box_frame import EmbedMaskBoxFrame
from embedmask_mmdet.models.frames.location_frame import NUM_SPATIAL


@MODELS.register_module()
class EmbedMaskScaledBoxFrame(EmbedMaskBoxFrame):
    """As :class:`EmbedMaskBoxFrame`, but offsets that proposals predict grow with their boxes, as margins do.

    The same offset then moves a mask by the same part of its size, as in the box regression of R-CNN. In input pixels,
    offsets that fit small objects are too small for large ones. docs/accuracy.md shows what this gains.
    """

    def shift(self, proposals: InstanceData, units: Tensor) -> Tensor:
        """Compute the way to the box center as :class:`EmbedMaskBoxFrame` does, and what the offset grows by.

        Args:
            proposals: As in :meth:`EmbedMaskBoxFrame.shift`.
            units: As in :meth:`EmbedMaskBoxFrame.shift`.

        Returns:
            ``(N, 2)`` in units of embedding.
        """
        offsets = proposals.proposal_embed[:, :NUM_SPATIAL] - self.embed_points(proposals.points)
        return super().shift(proposals, units) + offsets * (1 / units - 1)

    def trust(self, ious: Tensor) -> Tensor:
        """Return larger weights than :class:`EmbedMaskBoxFrame`, so that offsets learn to correct wrong boxes."""
        return 1 - (1 - ious).square()
