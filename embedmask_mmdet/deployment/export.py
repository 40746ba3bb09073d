"""Write a detector to one ONNX file."""

from __future__ import annotations

import inspect
import io
import json
import warnings
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from mmdet.utils import get_test_pipeline_cfg
from mmengine.config import Config

from embedmask_mmdet.deployment.packages import import_optional
from embedmask_mmdet.deployment.segmentor import ExportableSegmentor
from embedmask_mmdet.errors import InputError
from embedmask_mmdet.fileio import write_atomically
from embedmask_mmdet.models import EmbedMask

if TYPE_CHECKING:
    import onnx

OPSET = 17  # the newest that PyTorch's exporter of traced models writes from version 2.1 on
TRACED_SIZE = (97, 131)
DYNAMIC_AXES = {
    'image': {0: 'height', 1: 'width'},
    'bboxes': {0: 'detections'},
    'scores': {0: 'detections'},
    'labels': {0: 'detections'},
}
PACKAGES = ('embedmask_mmdet', 'mmdet', 'mmcv', 'torch')


def trace(segmentor: ExportableSegmentor) -> onnx.ModelProto:
    """Turn a detector into an ONNX graph."""
    onnx = import_optional('onnx')
    image = torch.zeros(*TRACED_SIZE, 3, dtype=torch.uint8)
    # The dynamo exporter, the default from version 2.9 on, cannot count what nonzero finds.
    options = {'dynamo': False} if 'dynamo' in inspect.signature(torch.onnx.export).parameters else {}
    axes = {**DYNAMIC_AXES, **segmentor.masks.axes}
    buffer = io.BytesIO()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter('ignore')  # about sizes of the traced image, none of which the graph keeps
        torch.onnx.export(
            segmentor,
            (image,),
            buffer,
            opset_version=OPSET,
            input_names=['image'],
            output_names=list(axes)[1:],
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
    """Return the metadata of the file: classes, thresholds and versions as JSON, and the text of the config."""
    test_cfg = model.bbox_head.test_cfg
    thresholds = dict(score_thr=test_cfg.get('score_thr', 0), mask_thr=model.mask_head.mask_thr)
    return dict(
        classes=json.dumps(list(classes)),
        thresholds=json.dumps(thresholds),
        versions=json.dumps({package: find_version(package) for package in PACKAGES}),
        config=cfg.pretty_text,
    )


def make_graph(
    model: EmbedMask, pipeline: Sequence[dict], metadata: Mapping[str, str], masks: str = 'image'
) -> onnx.ModelProto:
    """Make the complete ONNX model.

    Args:
        model: With trained weights, on the CPU, in evaluation mode.
        pipeline: Configs of the steps of the test pipeline.
        metadata: What the file says about itself.
        masks: What to give for masks, a name of ``MASK_OUTPUTS``.

    Raises:
        InputError: If a part cannot be exported, or a package is missing.
    """
    onnx = import_optional('onnx')
    segmentor = ExportableSegmentor(model, pipeline, masks).eval()
    graph = trace(segmentor)
    correct_resizing(graph)
    onnx.helper.set_model_props(graph, {**metadata, **segmentor.masks.metadata})
    foreign = {node.op_type for node in graph.graph.node if node.domain}
    if foreign:
        raise InputError(
            f'the model needs {", ".join(sorted(foreign))}, which ONNX does not have. Use a config without it.'
        )
    onnx.checker.check_model(graph)
    return graph


def export_onnx(cfg: Config, model: EmbedMask, classes: Sequence[str], out: str | Path, masks: str = 'image') -> None:
    """Write a detector, its test pipeline and its metadata to an ONNX file.

    Args:
        cfg: Config of the model.
        model: With trained weights, on the CPU, in evaluation mode.
        classes: Names of the classes.
        out: File to write; it appears complete or not at all.
        masks: What to give for masks, a name of ``MASK_OUTPUTS``.

    Raises:
        InputError: If a part cannot be exported, or a package is missing.
        OSError: If the file cannot be written.
    """
    graph = make_graph(model, get_test_pipeline_cfg(cfg), describe(cfg, model, classes), masks)
    write_atomically(out, graph.SerializeToString())
