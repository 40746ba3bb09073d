"""Detections that all methods turn into masks."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from embedmask_mmdet.analysis.random_boxes import draw_bboxes
from embedmask_mmdet.ops import DEFAULT_MASK_THR

STRIDE, UPSCALE, CHANNELS = 8, 2, 16
# Sizes of the network's input for sizes of the original image.
IMG_SHAPES = {(480, 640): (800, 1067), (1080, 1920): (750, 1333), (3000, 4000): (800, 1067)}
# Number of detections and size of the original image.
CASES = [
    (100, (480, 640)),
    (10, (480, 640)),
    (300, (480, 640)),
    (1000, (480, 640)),
    (100, (1080, 1920)),
    (100, (3000, 4000)),
]


def draw_pixel_embed(grid: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Draw a pixel embedding ``(D, h, w)``: positions in units of 100 pixels, and smooth noise."""
    h, w = grid
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing='ij')
    position = (torch.stack([x, y]) + 0.5) * STRIDE / 100
    noise = torch.randn(1, CHANNELS - 2, h // 4, w // 4, generator=generator)
    return torch.cat([position, F.interpolate(noise, grid, mode='bicubic')[0]])


def fit_proposals(pixel_embed: Tensor, bboxes: Tensor) -> tuple[Tensor, Tensor]:
    """Make proposal embeddings and margins ``(N, D)`` whose masks are wavy ellipses that fill half of their boxes."""
    h, w = pixel_embed.shape[1:]
    centers, sides = (bboxes[:, :2] + bboxes[:, 2:]) / 2, (bboxes[:, 2:] - bboxes[:, :2]).clamp(min=8) / 100
    x, y = ((centers[:, i] / STRIDE).long().clamp(max=size - 1) for i, size in ((0, w), (1, h)))
    embed = torch.cat([centers / 100, pixel_embed[2:, y, x].T], 1)
    spatial_margin = -math.log(DEFAULT_MASK_THR) / (0.45 * sides) ** 2
    margin = torch.cat([spatial_margin, torch.full((len(bboxes), CHANNELS - 2), 0.01)], 1)
    return embed, margin


def draw_arguments(num_detections: int, ori_shape: tuple[int, int], device: str) -> dict:
    """Draw the arguments of ``ops.instance_masks``, the same for each call with the same case.

    Args:
        num_detections: Detections in the image.
        ori_shape: Size of the original image, a key of :data:`IMG_SHAPES`.
        device: Device of the tensors.
    """
    img_shape = IMG_SHAPES[ori_shape]
    bboxes = draw_bboxes(num_detections, img_shape, torch.Generator().manual_seed(0))
    h, w = (math.ceil(size / 32) * 32 // STRIDE for size in img_shape)
    pixel_embed = draw_pixel_embed((h, w), torch.Generator().manual_seed(1))
    proposal_embed, proposal_margin = fit_proposals(pixel_embed, bboxes)
    return dict(
        pixel_embed=pixel_embed.to(device),
        proposal_embed=proposal_embed.to(device),
        proposal_margin=proposal_margin.to(device),
        bboxes=bboxes.to(device),
        stride=STRIDE,
        img_shape=img_shape,
        ori_shape=ori_shape,
        upscale=UPSCALE,
    )
