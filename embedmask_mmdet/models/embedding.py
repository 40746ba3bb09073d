"""The convolution that predicts embeddings, of proposals and of pixels alike."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from embedmask_mmdet.models.frames.location_frame import NUM_SPATIAL


class EmbeddingConv(nn.Conv2d):
    """3x3 convolution whose first two output channels, the spatial ones, are relative to the location.

    Args:
        in_channels: ``C``.
        embed_dim: ``D``, including the two spatial channels.

    Raises:
        ValueError: If ``embed_dim`` is below 2.
    """

    def __init__(self, in_channels: int, embed_dim: int) -> None:
        if embed_dim < NUM_SPATIAL:
            raise ValueError(f'embed_dim must be at least {NUM_SPATIAL}, the spatial channels; got {embed_dim}')
        super().__init__(in_channels, embed_dim, 3, padding=1)

    def forward(self, feat: Tensor, position: Tensor) -> Tensor:
        """Embed a feature map.

        Args:
            feat: ``(B, C, h, w)``.
            position: ``(2, h, w)`` from ``frame.embed_cells``.

        Returns:
            Float32 tensor ``(B, D, h, w)``; distances between embeddings need that precision.
        """
        spatial, other = super().forward(feat).float().split([NUM_SPATIAL, self.out_channels - NUM_SPATIAL], dim=1)
        return torch.cat([spatial + position, other], dim=1)
