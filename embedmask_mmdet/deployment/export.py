"""Write a detector to one ONNX file."""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from mmdet.utils import get_test_pipeline_cfg
from mmengine.config import Config
from torch import nn

from embedmask_mmdet.deployment.deformable import standardize_deformable
from embedmask_mmdet.deployment.inputs import Axes
from embedmask_mmdet.deployment.kinds import DEFAULT_KIND, Kind
from embedmask_mmdet.deployment.packages import import_optional
from embedmask_mmdet.deployment.reducible import Reduction, keep_float32
from embedmask_mmdet.errors import InputError
from embedmask_mmdet.fileio import write_atomically
from embedmask_mmdet.models import EmbedMask

if TYPE_CHECKING:
    import onnx

OPSET = 17  # the newest that PyTorch's exporter of traced models writes from version 2.1 on
OPSETS = range(16, 21)  # RoiAlign is in the image's pixels from 16 on; PyTorch's exporter knows 20 and no more
PACKAGES = ('embedmask_mmdet', 'mmdet', 'mmcv', 'torch')


def find_dynamic_axes(network: nn.Module) -> dict[str, Axes]:
    """Return the axes of any size of the input and of each output, by its name."""
    preparation = network.preparation
    free = {'detections', 'cells', *preparation.axes.values()}
    # Maps of the network are named `height_8`, for example.
    outputs = {
        name: {axis: label for axis, label in axes.items() if label.split('_')[0] in free}
        for name, axes in network.axes.items()
    }
    return {preparation.name: preparation.axes, **outputs}


@contextlib.contextmanager
def explain_opset(opset: int) -> Iterator[None]:
    """Turn the exporter's error about an unknown opset into one that says what to do.

    Raises:
        InputError: If PyTorch does not write this version.
    """
    if opset not in OPSETS:
        raise InputError(f'opset {opset} cannot be written. Use one from {OPSETS[0]} to {OPSETS[-1]}.')
    try:
        # The exporter prints the complete graph before it raises an error.
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    except (ValueError, RuntimeError) as error:
        if 'opset_version' not in str(error):
            raise
        raise InputError(f'PyTorch {torch.__version__} cannot write opset {opset}. Use {OPSET}.') from error


def trace(network: nn.Module, opset: int = OPSET) -> onnx.ModelProto:
    """Turn a detector into an ONNX graph.

    Args:
        network: From ``Kind.build``.
        opset: Version of ONNX's operators.

    Raises:
        InputError: If PyTorch does not write this version, or the detector needs a later one.
    """
    onnx = import_optional('onnx')
    # The dynamo exporter, the default from version 2.9 on, cannot count what nonzero finds.
    options = {'dynamo': False} if 'dynamo' in inspect.signature(torch.onnx.export).parameters else {}
    buffer = io.BytesIO()
    axes = find_dynamic_axes(network)
    input_name, *output_names = axes
    with (
        torch.no_grad(),
        explain_opset(opset),
        standardize_deformable(network, opset),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter('ignore')  # about sizes of the traced image, none of which the graph keeps
        torch.onnx.export(
            network,
            (network.preparation.example,),
            buffer,
            opset_version=opset,
            input_names=[input_name],
            output_names=output_names,
            dynamic_axes=axes,
            **options,
        )
    return onnx.load_from_string(buffer.getvalue())


def correct_resizing(graph: onnx.ModelProto) -> None:
    """Make the graph resize to one pixel as PyTorch does: the exporter writes a mode that differs there."""
    for node in graph.graph.node:
        for attribute in node.attribute:
            if attribute.s == b'pytorch_half_pixel':
                attribute.s = b'half_pixel'


def find_version(package: str) -> str:
    """Return the version of an installed package, also of a fork that has another name."""
    module = import_optional(package)
    return getattr(module, '__version__', None) or version(package)


def describe(cfg: Config, model: EmbedMask, classes: Sequence[str]) -> dict[str, str]:
    """Return the metadata of the file: the text of the config; the rest is JSON."""
    test_cfg = model.bbox_head.test_cfg
    thresholds = dict(score_thr=test_cfg.get('score_thr', 0), mask_thr=model.mask_head.mask_thr)
    names = ('mean', 'std', 'bgr_to_rgb', 'pad_size_divisor')
    preprocessing = {name: cfg.model.data_preprocessor.get(name) for name in names}
    return dict(
        classes=json.dumps(list(classes)),
        thresholds=json.dumps(thresholds),
        preprocessing=json.dumps(preprocessing),
        versions=json.dumps({package: find_version(package) for package in PACKAGES}),
        config=cfg.pretty_text,
    )


def make_graph(
    model: EmbedMask,
    pipeline: Sequence[dict],
    metadata: Mapping[str, str],
    kind: Kind = DEFAULT_KIND,
    opset: int = OPSET,
    reduce: Reduction = keep_float32,
) -> onnx.ModelProto:
    """Make the complete ONNX model.

    Args:
        model: With trained weights, on the CPU, in evaluation mode.
        pipeline: Configs of the steps of the test pipeline.
        metadata: What the file says about itself.
        kind: What it takes and gives.
        opset: Version of ONNX's operators.
        reduce: Makes the numbers of some of its nodes smaller.

    Raises:
        InputError: If a part cannot be exported, or a package is missing.
    """
    onnx = import_optional('onnx')
    network = kind.build(model, pipeline)
    graph = trace(network, opset)
    correct_resizing(graph)
    foreign = {node.op_type for node in graph.graph.node if node.domain}
    if foreign:
        raise InputError(
            f'the model needs {", ".join(sorted(foreign))}, which ONNX does not have. Use a config without it.'
        )
    graph = reduce(graph)
    onnx.helper.set_model_props(graph, {**metadata, **network.metadata})
    onnx.checker.check_model(graph)
    return graph


def export_onnx(cfg: Config, model: EmbedMask, classes: Sequence[str], out: str | Path, **options) -> None:
    """Write a detector, its test pipeline and its metadata to an ONNX file.

    Args:
        cfg: Config of the model.
        model: With trained weights, on the CPU, in evaluation mode.
        classes: Names of the classes.
        out: File to write; it appears complete or not at all.
        **options: ``kind``, ``opset`` and ``reduce``, see :func:`make_graph`.

    Raises:
        InputError: If a part cannot be exported, or a package is missing.
        OSError: If the file cannot be written.
    """
    graph = make_graph(model, get_test_pipeline_cfg(cfg), describe(cfg, model, classes), **options)
    write_atomically(out, graph.SerializeToString())
