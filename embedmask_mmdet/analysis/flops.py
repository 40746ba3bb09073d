"""Count weights and multiply-adds of detectors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from functools import lru_cache, partial

import torch
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmengine.analysis import FlopAnalyzer, parameter_count
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import nn

PYTHON_OP = 'prim::PythonOp.'
DEFORM_CONVS = ('DeformConv2dFunction', 'ModulatedDeformConv2dFunction')


def count_deform_conv(inputs: list, outputs: list) -> Counter:
    """Count a deformable convolution like an ordinary one.

    Args:
        inputs: Values of the traced graph, as MMEngine passes them.
        outputs: The same for the results.
    """
    # The weight comes after image, offsets and, in the modulated convolution, mask; each has four dimensions.
    shapes = [torch.Size(value.type().sizes()) for value in inputs if value.isCompleteTensor()]
    weight = [shape for shape in shapes if len(shape) == 4][-1]
    output = torch.Size(outputs[0].type().sizes())
    return Counter(deform_conv=output.numel() * weight[1:].numel())


def count_flops(model: nn.Module, shape: tuple[int, int]) -> tuple[int, Counter, set[str]]:
    """Count what the network computes for one image, without post-processing.

    Args:
        model: Any detector of MMDetection. Two-stage detectors get 1000 proposals, the first 100 of them with masks.
        shape: Height and width of the image in pixels, before the padding of the model's config.

    Returns:
        The number of weights; multiply-adds by kind of operation; names of Python operators that are not counted.
    """
    init_default_scope('mmdet')
    packed = demo_mm_inputs(1, [(3, *shape)], num_items=[10], num_classes=2, with_mask=True)
    data = model.eval().data_preprocessor(packed)
    model.forward = partial(model.forward, data_samples=data['data_samples'])
    if getattr(model, 'bbox_head', None) is not None:
        # In this mode CondInst runs its box head a second time, for a loss.
        model.bbox_head.forward = lru_cache(maxsize=1)(model.bbox_head.forward)
    analyzer = FlopAnalyzer(model, (data['inputs'],))
    analyzer.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings('none')
    for name in DEFORM_CONVS:
        analyzer.set_op_handle(PYTHON_OP + name, count_deform_conv)
    with torch.no_grad():
        operations = analyzer.by_operator()
    skipped = {name.removeprefix(PYTHON_OP) for name in analyzer.unsupported_ops() if name.startswith(PYTHON_OP)}
    return parameter_count(model)[''], operations, skipped


def format_flops(configs: Mapping[str, Config], shape: tuple[int, int]) -> Iterator[str]:
    """Yield the lines of a Markdown table with a row for each config, and a last line that names what is not counted.

    Args:
        configs: Configs by the names that the table gives them.
        shape: Height and width of the image in pixels.
    """
    height, width = shape
    yield f'| config | parameters (M) | GFLOPs at {height} x {width} |'
    yield '| --- | --- | --- |'
    skipped_ops: set[str] = set()
    for name, cfg in configs.items():
        parameters, operations, skipped = count_flops(MODELS.build(cfg.model), shape)
        yield f'| {name} | {parameters / 1e6:.1f} | {sum(operations.values()) / 1e9:.1f} |'
        skipped_ops |= skipped
    uncounted = ', '.join(['post-processing', 'elementwise operations', *sorted(skipped_ops)])
    yield f'One multiply-add counts once. Not counted: {uncounted}.'
