"""The paper's frame of reference: spatial embeddings are relative to locations in the image."""

from __future__ import annotations

import math

import torch
from mmdet.models.task_modules import MlvlPointGenerator
from mmdet.registry import MODELS
from mmengine.structures import InstanceData
from torch import Tensor, nn

NUM_SPATIAL = 2


@MODELS.register_module()
class EmbedMaskLocationFrame(nn.Module):
    """Coordinates of spatial embeddings as in the paper, section 3.3: ``scale * (x, y) / coord_scale``.

    Pixels and proposals are compared with each other, so one frame with one learnable ``scale`` serves both.

    Args:
        coord_scale: Input pixels per unit of spatial embedding while ``scale`` is 1, its initial value.
        prior_margin: Distance between embeddings at which the initial margin gives probability 0.5.

    Raises:
        ValueError: If ``coord_scale`` or ``prior_margin`` is not above 0.
    """

    def __init__(self, coord_scale: float = 100.0, prior_margin: float = 2.0) -> None:
        super().__init__()
        for name, value in dict(coord_scale=coord_scale, prior_margin=prior_margin).items():
            if not value > 0:
                raise ValueError(f'{name} must be above 0, got {value}')
        self.coord_scale = coord_scale
        self.prior_margin = prior_margin
        self.scale = nn.Parameter(torch.ones(1))

    @property
    def initial_margin(self) -> float:
        """Margin with probability 0.5 at the distance ``prior_margin``."""
        return -math.log(0.5) / self.prior_margin**2

    def embed_points(self, points: Tensor) -> Tensor:
        """Convert locations or distances, in input pixels and of any shape, to units of embedding."""
        return self.scale * points / self.coord_scale

    def locate_points(self, spatial_embed: Tensor) -> Tensor:
        """Convert units of embedding to input pixels: the inverse of :meth:`embed_points`."""
        return spatial_embed * self.coord_scale / self.scale

    def embed_cells(self, featmap_size: tuple[int, int], stride: int) -> Tensor:
        """Embed the center of every cell of a feature map.

        Args:
            featmap_size: ``(h, w)`` of the map in cells.
            stride: Input pixels per cell.

        Returns:
            Float32 tensor ``(2, h, w)``: x, then y.
        """
        points = MlvlPointGenerator([stride], offset=0.5).grid_priors([featmap_size], device=self.scale.device)[0]
        return self.embed_points(points.t().reshape(NUM_SPATIAL, *featmap_size))

    def place(self, proposals: InstanceData, min_side: float) -> InstanceData:
        """Express proposals in this frame. Here they already are: the box head predicts them at their locations.

        Args:
            proposals: ``points`` ``(N, 2)`` and ``bboxes`` ``(N, 4)`` in input pixels; ``proposal_embed`` and
                ``proposal_margin`` ``(N, D)`` at these points.
            min_side: Input pixels; smaller boxes count as this large.

        Returns:
            The proposals with ``proposal_embed`` and ``proposal_margin`` as pixels are compared with.
        """
        return proposals

    def place_positives(self, positives: InstanceData, min_side: float) -> InstanceData:
        """Express proposals in this frame during training, when predicted boxes cannot be trusted yet.

        Args:
            positives: As in :meth:`place`, with ``gt_bboxes`` ``(N, 4)`` and ``ious`` ``(N,)`` of both boxes.
            min_side: As in :meth:`place`.

        Returns:
            As :meth:`place`.
        """
        return self.place(positives, min_side)
