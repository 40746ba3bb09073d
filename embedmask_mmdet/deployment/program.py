"""Programs of ``torch.export``: everything but the selection of candidates and their suppression.

Candidates are as many as there are high scores, and mmcv's suppression is no operator of PyTorch, so neither can be in
a program. :class:`ProposalNetwork` computes what comes before, :class:`ProposalMasks` what comes after.
"""

from __future__ import annotations

import math
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn import functional

from embedmask_mmdet.models import EmbedMask
from embedmask_mmdet.models.proposals import flatten_levels
from embedmask_mmdet.ops.mask_stage import BOX_PADDING, find_outside_value

MAX_SIDE = 8192  # pixels


class ProposalNetwork(nn.Module):
    """Run the network and express what it predicts at all ``P`` locations as scores, boxes and embeddings.

    Args:
        model: In evaluation mode.
    """

    def __init__(self, model: EmbedMask) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Predict for images of one size.

        Args:
            inputs: ``(B, 3, H, W)``, normalized, padded to multiples of 32.

        Returns:
            Scores ``(B, P, C)``; boxes ``(B, P, 4)`` in input pixels; embeddings and margins ``(B, P, D)``, placed in
            the frame; embeddings of pixels ``(B, D, h, w)``.
        """
        bbox_head = self.model.bbox_head
        proposals, pixel_embeds = self.model._embed(inputs)
        cls_scores, bbox_preds, centernesses, embeds, margins = map(flatten_levels, proposals)
        points = torch.cat(bbox_head._mlvl_points(proposals.cls_scores)).repeat(inputs.shape[0], 1)
        bboxes = bbox_head.bbox_coder.decode(points, bbox_preds.flatten(0, 1), max_shape=inputs.shape[-2:])
        # InstanceData would compare lengths, which a program cannot know.
        flat = SimpleNamespace(
            bboxes=bboxes, points=points, proposal_embed=embeds.flatten(0, 1), proposal_margin=margins.flatten(0, 1)
        )
        flat = self.model.frame.place(flat, bbox_head.strides[0])
        scores = cls_scores.sigmoid() * centernesses.sigmoid()
        embeds, margins = (values.view_as(embeds) for values in (flat.proposal_embed, flat.proposal_margin))
        return scores, bboxes.view_as(bbox_preds), embeds, margins, pixel_embeds


class ProposalMasks(nn.Module):
    """Make the masks of proposals in input pixels.

    Args:
        model: In evaluation mode.
    """

    def __init__(self, model: EmbedMask) -> None:
        super().__init__()
        mask_head = model.mask_head
        self.stride = mask_head.stride
        self.upscale = mask_head.mask_scale
        self.resize_prob = mask_head.resize_prob
        self.threshold = mask_head.mask_thr if self.resize_prob else math.log(mask_head.mask_thr)
        self.outside_value = find_outside_value(mask_head.mask_thr, self.resize_prob)

    def forward(self, pixel_embed: Tensor, proposal_embed: Tensor, proposal_margin: Tensor, bboxes: Tensor) -> Tensor:
        """Make masks.

        Args:
            pixel_embed: Of one image, ``(D, h, w)``.
            proposal_embed: Of the selected proposals, ``(N, D)``.
            proposal_margin: The same.
            bboxes: ``(N, 4)``.

        Returns:
            bool ``(N, H, W)``.
        """
        grid = functional.interpolate(pixel_embed[None], scale_factor=self.upscale, mode='bilinear')[0]
        channels = zip(grid.unbind(), proposal_embed.t()[..., None, None], proposal_margin.t()[..., None, None])
        distance = sum(margin * (pixel - proposal).square() for pixel, proposal, margin in channels)
        values = (-distance).exp() if self.resize_prob else -distance
        values = values.masked_fill(~self._inside(bboxes, grid), self.outside_value)
        resized = functional.interpolate(values[:, None], scale_factor=self.stride // self.upscale, mode='bilinear')
        return resized[:, 0] > self.threshold

    def _inside(self, bboxes: Tensor, grid: Tensor) -> Tensor:
        """Mark the cells that ``ops.inside_boxes`` marks. That makes a tensor of the grid's size, a constant here."""
        cells = (bboxes.double() / (self.stride / self.upscale)).trunc() + BOX_PADDING * torch.tensor([-1, -1, 1, 1])
        x1, y1, x2, y2 = cells[..., None].unbind(1)
        y, x = (torch.arange(size) for size in grid.shape[1:])
        return ((y1 <= y) & (y < y2))[:, :, None] & ((x1 <= x) & (x < x2))[:, None, :]


def export_network(model: EmbedMask) -> ExportedProgram:
    """Export :class:`ProposalNetwork` for any number of images.

    Their sides must be multiples of 32 pixels, larger than the largest stride, as PyTorch treats levels of one cell in
    another way, and at most ``MAX_SIDE``.

    Args:
        model: In evaluation mode.
    """
    divisor = model.data_preprocessor.pad_size_divisor
    least = max(model.bbox_head.strides) // divisor + 1
    sides = {
        axis: divisor * Dim(name, min=least, max=MAX_SIDE // divisor) for axis, name in ((2, 'rows'), (3, 'columns'))
    }
    example = torch.zeros(2, 3, (least + 2) * divisor, (least + 4) * divisor)
    with torch.no_grad():
        return torch.export.export(
            ProposalNetwork(model), (example,), dynamic_shapes=({0: Dim('batch', min=1), **sides},)
        )


def export_masks(model: EmbedMask) -> ExportedProgram:
    """Export :class:`ProposalMasks` for any number of proposals in an image of any size.

    Args:
        model: In evaluation mode.
    """
    count = Dim('count')
    embed_dim = model.bbox_head.embed_dim
    example = (
        torch.zeros(embed_dim, 20, 30),
        torch.zeros(3, embed_dim),
        torch.ones(3, embed_dim),
        torch.tensor([[0.0, 0.0, 40.0, 40.0]] * 3),
    )
    axes = ({1: Dim('rows'), 2: Dim('columns')}, {0: count}, {0: count}, {0: count})
    with torch.no_grad():
        return torch.export.export(ProposalMasks(model), example, dynamic_shapes=axes)
