"""Operators of ONNX that PyTorch's exporter does not make by itself, or only in many steps.

Loops of a graph are scripted, and can only call operators that PyTorch knows: ``torch.ops.embedmask_onnx``.
"""

from __future__ import annotations

import mmcv.ops
import torch
from torch import Tensor
from torch.nn import functional
from torch.onnx import register_custom_op_symbolic, symbolic_helper


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


def crop(x: Tensor, begin: Tensor, end: Tensor) -> Tensor:
    """Cut the last two axes from `begin` to `end`, both int64 ``(2,)``."""
    (top, left), (bottom, right) = begin.tolist(), end.tolist()
    return x[..., top:bottom, left:right].clone()


def crop_symbolic(g, x, begin, end):
    """Write :func:`crop` as one operator."""
    return g.op('Slice', x, begin, end, g.op('Constant', value_t=torch.tensor([-2, -1])))


def pad(x: Tensor, sides: Tensor, value: float) -> Tensor:
    """Grow all axes: `sides` is int64 ``(2 * x.ndim,)``, as ONNX has it, first how much is before on each axis."""
    before, after = sides.view(2, x.ndim).flip(1).tolist()
    return functional.pad(x, [side for sides in zip(before, after) for side in sides], value=value)


@symbolic_helper.parse_args('v', 'v', 'f')
def pad_symbolic(g, x, sides, value):
    """Write :func:`pad` as one operator."""
    # Without a value, it pads with 0 or False.
    constants = [g.op('Constant', value_t=torch.tensor(value))] if value else []
    return g.op('Pad', x, sides, *constants)


LIBRARY = torch.library.Library('embedmask_onnx', 'DEF')
LIBRARY.define('crop(Tensor x, Tensor begin, Tensor end) -> Tensor')
LIBRARY.define('pad(Tensor x, Tensor sides, float value) -> Tensor')
for function, symbolic in ((crop, crop_symbolic), (pad, pad_symbolic)):
    LIBRARY.impl(function.__name__, function, 'CompositeExplicitAutograd')
    register_custom_op_symbolic(f'embedmask_onnx::{function.__name__}', symbolic, 16)
