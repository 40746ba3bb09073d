"""Operators of ONNX that PyTorch's exporter does not make by itself. In PyTorch, mmcv computes them."""

from __future__ import annotations

import mmcv.ops
import torch
from torch import Tensor


class NonMaxSuppression(torch.autograd.Function):
    """Select boxes, best first: ``(bboxes (N, 4), scores (N,), iou_threshold, max_num) -> int64 (K,)``."""

    @staticmethod
    def forward(ctx, bboxes: Tensor, scores: Tensor, iou_threshold: float, max_num: int) -> Tensor:  # noqa: D102
        # mmcv's operator fails without boxes.
        if not len(bboxes):
            return torch.zeros(0, dtype=torch.int64)
        return mmcv.ops.nms(bboxes, scores, iou_threshold, max_num=max_num)[1]

    @staticmethod
    def symbolic(g, bboxes, scores, iou_threshold: float, max_num: int):  # noqa: D102
        constants = (torch.tensor([max_num]), torch.tensor([iou_threshold], dtype=torch.float32))
        bboxes = g.op('Unsqueeze', bboxes, g.op('Constant', value_t=torch.tensor([0])))
        scores = g.op('Unsqueeze', scores, g.op('Constant', value_t=torch.tensor([0, 1])))
        selected = g.op('NonMaxSuppression', bboxes, scores, *(g.op('Constant', value_t=t) for t in constants))
        # Each row is an image, a class and a box.
        indices = g.op('Gather', selected, g.op('Constant', value_t=torch.tensor(2)), axis_i=1)
        return indices


class RoiAlign(torch.autograd.Function):
    """Sample one point per cell of each box: ``(feat (1, D, h, w), bboxes (N, 4), size, scale) -> (N, D, *size)``."""

    @staticmethod
    def forward(ctx, feat: Tensor, bboxes: Tensor, size: tuple[int, int], scale: float) -> Tensor:  # noqa: D102
        if not len(bboxes):
            return feat.new_zeros(0, feat.shape[1], *size)
        return mmcv.ops.roi_align(feat.contiguous(), torch.nn.functional.pad(bboxes, (1, 0)), size, scale, 1)

    @staticmethod
    def symbolic(g, feat, bboxes, size: tuple[int, int], scale: float):  # noqa: D102
        shape = g.op('Shape', bboxes)
        count = g.op('Gather', shape, g.op('Constant', value_t=torch.tensor([0])), axis_i=0)
        images = g.op('ConstantOfShape', count, value_t=torch.tensor([0]))
        return g.op(
            'RoiAlign',
            feat,
            bboxes,
            images,
            coordinate_transformation_mode_s='half_pixel',
            mode_s='avg',
            output_height_i=size[0],
            output_width_i=size[1],
            sampling_ratio_i=1,
            spatial_scale_f=scale,
        )
