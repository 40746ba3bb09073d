"""Deformable convolutions: mmcv's as the operator of ONNX."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from mmcv.ops.modulated_deform_conv import ModulatedDeformConv2d, ModulatedDeformConv2dFunction
from torch import nn

from embedmask_mmdet.errors import InputError

FIRST_OPSET = 19


def deform_conv_symbolic(g, x, offset, mask, weight, bias, stride, padding, dilation, groups, deform_groups):
    """Write a modulated deformable convolution as one operator. Both order offsets alike."""
    if bias is None:
        bias = g.op('Constant', value_t=torch.zeros(weight.type().sizes()[0]))
    return g.op(
        'DeformConv',
        x,
        weight,
        offset,
        bias,
        mask,
        strides_i=stride,
        pads_i=[*padding, *padding],
        dilations_i=dilation,
        group_i=groups,
        offset_group_i=deform_groups,
    )


@contextlib.contextmanager
def standardize_deformable(network: nn.Module, opset: int) -> Iterator[None]:
    """Let PyTorch's exporter write the operator of ONNX in the place of mmcv's own.

    Args:
        network: To export.
        opset: Version of ONNX's operators.

    Raises:
        InputError: If the network has deformable convolutions, and ONNX has none in this version.
    """
    if opset < FIRST_OPSET and any(isinstance(module, ModulatedDeformConv2d) for module in network.modules()):
        raise InputError(
            f'the model has deformable convolutions, which ONNX has from opset {FIRST_OPSET} on, and this is opset '
            f'{opset}. Export with --opset {FIRST_OPSET}, or use a config without them.'
        )
    own = ModulatedDeformConv2dFunction.symbolic
    ModulatedDeformConv2dFunction.symbolic = staticmethod(deform_conv_symbolic)
    try:
        yield
    finally:
        ModulatedDeformConv2dFunction.symbolic = staticmethod(own)
