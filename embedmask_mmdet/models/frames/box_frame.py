"""A frame of reference in which spatial embeddings and margins are relative to predicted boxes."""

from __future__ import annotations

import torch
from mmdet.registry import MODELS
from mmengine.structures import InstanceData
from torch import Tensor
from torch.nn import functional

from embedmask_mmdet.models.frames.location_frame import NUM_SPATIAL, EmbedMaskLocationFrame


@MODELS.register_module()
class EmbedMaskBoxFrame(EmbedMaskLocationFrame):
    """Spatial embeddings relative to the center of the predicted box, and spatial margins relative to its size.

    The initial margin then gives probability 0.5 on the sides of the box, whatever its size: a mask starts as the
    ellipse in its box. docs/accuracy.md shows what this gains over the paper's frame.
    """

    def place(self, proposals: InstanceData, min_side: float) -> InstanceData:
        """Move embeddings from locations to box centers, and scale margins with box sides.

        Args:
            proposals: See :meth:`EmbedMaskLocationFrame.place`.
            min_side: Input pixels; smaller boxes count as this large. Boxes have no size at first.

        Returns:
            The same proposals with new ``proposal_embed`` and ``proposal_margin``.
        """
        padding = (0, proposals.proposal_embed.shape[1] - NUM_SPATIAL)
        sides = (proposals.bboxes[:, 2:] - proposals.bboxes[:, :2]).clamp(min=min_side)
        units = 2 * self.prior_margin * self.coord_scale / sides
        proposals.proposal_embed = proposals.proposal_embed + functional.pad(self.shift(proposals, units), padding)
        proposals.proposal_margin = proposals.proposal_margin * functional.pad(units.square(), padding, value=1)
        return proposals

    def shift(self, proposals: InstanceData, units: Tensor) -> Tensor:
        """Compute how far embeddings move: from their location to the center of their box.

        Args:
            proposals: ``points`` ``(N, 2)`` and ``bboxes`` ``(N, 4)`` in input pixels; ``proposal_embed`` ``(N, D)``.
            units: ``(N, 2)``, sides of the box that the initial margin fits, divided by the sides of each box.

        Returns:
            ``(N, 2)`` in units of embedding.
        """
        bboxes = proposals.bboxes
        return self.embed_points((bboxes[:, :2] + bboxes[:, 2:]) / 2 - proposals.points)

    def trust(self, ious: Tensor) -> Tensor:
        """Return the weights ``(N,)`` of predicted boxes in the blend with the truth, from their IoUs ``(N,)``."""
        return ious

    def place_positives(self, positives: InstanceData, min_side: float) -> InstanceData:
        """Blend each predicted box with its ground truth, weighted by IoU, and place embeddings relative to that.

        Masks can then learn before boxes are good.

        Args:
            positives: See :meth:`EmbedMaskLocationFrame.place_positives`.
            min_side: As in :meth:`place`.

        Returns:
            The same positives, ``bboxes`` blended.
        """
        positives.bboxes = torch.lerp(positives.gt_bboxes, positives.bboxes, self.trust(positives.ious)[:, None])
        return self.place(positives, min_side)
