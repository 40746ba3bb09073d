"""Where embeddings come from: one convolution, plus the location on its two spatial channels.

Shape legend: ``B`` images, ``C`` feature channels, ``D`` embedding channels, ``h, w`` cells of a feature map.
"""

from __future__ import annotations

import torch
from mmdet.models.task_modules import MlvlPointGenerator
from torch import Tensor, nn

NUM_SPATIAL = 2


class PositionEmbedding(nn.Module):
    """Location ``scale * (x, y) / coord_scale`` that is added to spatial channels (paper, section 3.3).

    Pixels and proposals are compared with each other, so one module, with its one learnable scale, serves both.

    Args:
        coord_scale: Input pixels that make one unit of embedding where the scale is 1.
    """

    def __init__(self, coord_scale: float = 100.0) -> None:
        super().__init__()
        if not coord_scale > 0:
            raise ValueError(f'coord_scale must be above 0, got {coord_scale}')
        self.coord_scale = coord_scale
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, featmap_size: tuple[int, int], stride: int) -> Tensor:
        """Embed the centre of every cell of a feature map.

        Args:
            featmap_size: Height and width of the map in cells.
            stride: Input pixels a cell.

        Returns:
            Float32 tensor ``(2, h, w)``: x, then y.
        """
        points = MlvlPointGenerator([stride], offset=0.5).grid_priors([featmap_size], device=self.scale.device)[0]
        return self.embed(points.t().reshape(NUM_SPATIAL, *featmap_size))

    def embed(self, points: Tensor) -> Tensor:
        """Turn locations or distances in input pixels, of any shape, into units of embedding."""
        return self.scale * points / self.coord_scale


class EmbeddingConv(nn.Conv2d):
    """3x3 convolution whose first two output channels are relative to the location.

    Args:
        in_channels: ``C``.
        embed_dim: ``D``, the two spatial channels included.
        reduce_factor: What the features are divided by first.

    Raises:
        ValueError: If ``embed_dim`` leaves no room for the two spatial channels.
    """

    def __init__(self, in_channels: int, embed_dim: int, reduce_factor: float = 1.0) -> None:
        if embed_dim < NUM_SPATIAL:
            raise ValueError(f'embed_dim must be at least {NUM_SPATIAL}, the spatial channels; got {embed_dim}')
        super().__init__(in_channels, embed_dim, 3, padding=1)
        self.reduce_factor = reduce_factor

    def forward(self, feat: Tensor, position: Tensor) -> Tensor:
        """Embed a feature map.

        Args:
            feat: ``(B, C, h, w)``.
            position: What :class:`PositionEmbedding` gives for this map, ``(2, h, w)``.

        Returns:
            Float32 tensor ``(B, D, h, w)``; distances between embeddings need that precision.
        """
        feat = feat if self.reduce_factor == 1 else feat / self.reduce_factor
        spatial, other = super().forward(feat).float().split([NUM_SPATIAL, self.out_channels - NUM_SPATIAL], dim=1)
        return torch.cat([spatial + position, other], dim=1)
