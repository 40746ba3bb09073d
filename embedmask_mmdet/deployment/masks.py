"""The masks of detections: the mask stage of ``embedmask_mmdet.ops`` for a graph."""

from __future__ import annotations

import math

import torch
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torch.nn import functional
from torch.onnx.operators import shape_as_tensor

from embedmask_mmdet.deployment.preprocessing import Sizes
from embedmask_mmdet.models import EmbedMaskMaskHead
from embedmask_mmdet.models.frames.location_frame import NUM_SPATIAL
from embedmask_mmdet.ops.mask_stage import BOX_PADDING, OUTSIDE


def spatial_distances(pixel_embed: Tensor, proposal_embed: Tensor, proposal_margin: Tensor) -> Tensor:
    """Sum ``margin * (pixel - proposal) ** 2`` channel by channel, so that memory does not grow with their number."""
    channels = zip(pixel_embed.unbind(0), proposal_embed.unbind(1), proposal_margin.unbind(1))
    return sum(
        margin[:, None, None] * (pixel - proposal[:, None, None]).square() for pixel, proposal, margin in channels
    )


def other_distances(pixel_embed: Tensor, proposal_embed: Tensor, proposal_margin: Tensor) -> Tensor:
    """Compute the same sum as a matrix product, which is faster, but rounds worse where embeddings are large."""
    pixels = pixel_embed.flatten(1)
    weighted = proposal_margin * proposal_embed
    constants = (weighted * proposal_embed).sum(1, keepdim=True)
    products = torch.cat([proposal_margin, -2 * weighted], dim=1) @ torch.cat([pixels.square(), pixels])
    return (products + constants).unflatten(1, pixel_embed.shape[1:])


def log_probs(pixel_embed: Tensor, proposal_embed: Tensor, proposal_margin: Tensor) -> Tensor:
    """Compute what :func:`embedmask_mmdet.ops.embedding_log_prob` describes."""
    # Only coordinates are large.
    spatial = spatial_distances(
        pixel_embed[:NUM_SPATIAL], proposal_embed[:, :NUM_SPATIAL], proposal_margin[:, :NUM_SPATIAL]
    )
    other = other_distances(
        pixel_embed[NUM_SPATIAL:], proposal_embed[:, NUM_SPATIAL:], proposal_margin[:, NUM_SPATIAL:]
    )
    return -(spatial + other)


def inside_boxes(bboxes: Tensor, grid_shape: Tensor, cell: float) -> Tensor:
    """Mark the cells that :func:`embedmask_mmdet.ops.inside_boxes` marks, for boxes clipped to the image.

    Args:
        bboxes: ``(N, 4)`` in input pixels, at least 0.
        grid_shape: int64 ``(2,)``, height and width of the grid in cells.
        cell: Side of a cell in input pixels.

    Returns:
        bool ``(N, h, w)``.
    """
    cells = (bboxes.double() / cell).floor().long() + torch.tensor([-1, -1, 1, 1]) * BOX_PADDING
    x1, y1, x2, y2 = cells[..., None].unbind(1)
    y, x = (torch.arange(size) for size in grid_shape.unbind())
    return ((y1 <= y) & (y < y2))[:, :, None] & ((x1 <= x) & (x < x2))[:, None, :]


class Masks(nn.Module):
    """Make the masks of detections in original pixels.

    Args:
        mask_head: Of the detector.
    """

    def __init__(self, mask_head: EmbedMaskMaskHead) -> None:
        super().__init__()
        self.stride = mask_head.stride
        self.upscale = mask_head.mask_scale
        self.resize_prob = mask_head.resize_prob
        log_thr = math.log(mask_head.mask_thr)
        self.threshold = mask_head.mask_thr if self.resize_prob else log_thr
        self.outside_value = 0.0 if self.resize_prob else min(OUTSIDE, 2 * log_thr)

    def forward(self, pixel_embed: Tensor, results: InstanceData, sizes: Sizes) -> Tensor:
        """Make masks.

        Args:
            pixel_embed: ``(D, h, w)``.
            results: ``proposal_embed`` and ``proposal_margin`` ``(N, D)``, ``crop_bboxes`` ``(N, 4)`` in input pixels.
            sizes: Of the image.

        Returns:
            bool ``(N, H, W)``.
        """
        grid_shape = shape_as_tensor(pixel_embed)[1:]
        resized_embed = functional.interpolate(pixel_embed[None], scale_factor=self.upscale, mode='bilinear')[0]
        values = log_probs(resized_embed, results.proposal_embed, results.proposal_margin)
        if self.resize_prob:
            values = values.exp()
        inside = inside_boxes(results.crop_bboxes, grid_shape * self.upscale, self.stride / self.upscale)
        values = values.masked_fill(~inside, self.outside_value)
        # The complete grid in original pixels, rounded up. Masks are its top left corner.
        covered = grid_shape * self.stride * sizes.ori_shape
        resized_shape = (covered + sizes.img_shape - 1).div(sizes.img_shape, rounding_mode='floor')
        values = functional.interpolate(values[:, None], tuple(resized_shape.unbind()), mode='bilinear')[:, 0]
        height, width = sizes.ori_shape.unbind()
        return values[:, :height, :width] > self.threshold
