"""The pixel branch: features of few channels for pixels, from the backbone's finest stage and several levels."""

from __future__ import annotations

from collections.abc import Sequence

from mmcv.cnn import ConvModule
from mmdet.registry import MODELS
from mmdet.utils import OptConfigType, OptMultiConfig
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn import functional


def resize_to(feat: Tensor, other: Tensor) -> Tensor:
    """Resize a feature map ``(B, C, h, w)`` to the height and width of another one."""
    return functional.interpolate(feat, other.shape[-2:], mode='bilinear', align_corners=False)


@MODELS.register_module()
class EmbedMaskPixelBranch(BaseModule):
    """Adds the neck's finest levels to the backbone's finest stage, which shows outlines that they have lost.

    A level of the neck at this resolution would take a convolution of all its channels. Here all have few.

    Args:
        in_channels: Channels of the backbone's finest stage.
        level_channels: Channels of the neck's levels.
        channels: ``C``, channels of the result.
        num_levels: Levels of the neck that are added, the finest first.
        norm_cfg: Config of the normalization.
        init_cfg: Initialization.
    """

    def __init__(
        self,
        in_channels: int,
        level_channels: int = 256,
        channels: int = 36,
        num_levels: int = 3,
        norm_cfg: OptConfigType = dict(type='GN', num_groups=12, requires_grad=True),  # noqa: B006
        init_cfg: OptMultiConfig = dict(type='Xavier', layer='Conv2d', distribution='uniform'),  # noqa: B006
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        self.channels = channels
        self.stage_conv = ConvModule(in_channels, channels, 1, norm_cfg=norm_cfg, act_cfg=None)
        self.level_convs = nn.ModuleList(
            ConvModule(level_channels, channels, 1, norm_cfg=norm_cfg, act_cfg=None) for _ in range(num_levels)
        )
        self.sum_conv = ConvModule(channels, channels, 3, padding=1, norm_cfg=norm_cfg)

    def forward(self, stage: Tensor, levels: Sequence[Tensor]) -> Tensor:
        """Compute the features of pixels.

        Args:
            stage: The backbone's finest stage ``(B, in_channels, h, w)``.
            levels: Levels of the neck, the finest first, each ``(B, level_channels, h', w')``.

        Returns:
            ``(B, C, h, w)``.
        """
        reduced = [conv(level) for conv, level in zip(self.level_convs, levels)]
        total = self.sum_conv(sum(resize_to(level, reduced[0]) for level in reduced).relu())
        return (self.stage_conv(stage) + resize_to(total, stage)).relu()
