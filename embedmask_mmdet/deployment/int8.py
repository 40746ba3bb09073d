"""Int8 in a part of a graph, by onnxruntime's static quantization."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from embedmask_mmdet.deployment.packages import import_optional
from embedmask_mmdet.deployment.reducible import find_reducible

if TYPE_CHECKING:
    import onnx

OPERATORS = ('Conv', 'Relu', 'MaxPool')


@contextlib.contextmanager
def mute_warnings() -> Iterator[None]:
    """Mute the advice to simplify the graph beforehand, which the exporter has done."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def find_inputs(node: onnx.NodeProto) -> set[str]:
    """Return the names that a node reads, also within the bodies of loops."""
    bodies = [attribute.g for attribute in node.attribute if attribute.HasField('g')]
    return {*node.input, *(name for body in bodies for inner in body.node for name in find_inputs(inner))}


def sort_nodes(graph: onnx.GraphProto) -> None:
    """Put each node after those whose results it reads. onnxruntime forgets what the bodies of loops read."""
    unwritten = {name for node in graph.node for name in node.output}
    waiting, ordered = list(graph.node), []
    while waiting:
        blocked = []
        for node in waiting:
            if unwritten.isdisjoint(find_inputs(node)):
                ordered.append(node)
                unwritten.difference_update(node.output)
            else:
                blocked.append(node)
        waiting = blocked
    del graph.node[:]
    graph.node.extend(ordered)


class CalibrationInputs:
    """What onnxruntime takes the calibration images from.

    Args:
        inputs: The inputs by name, of each image.
    """

    def __init__(self, inputs: Iterable[Mapping[str, np.ndarray]]) -> None:
        self.inputs = iter(inputs)

    def get_next(self) -> Mapping[str, np.ndarray] | None:
        """Return the next inputs, None at the end."""
        return next(self.inputs, None)


class Int8:
    """Quantize the convolutions of backbone, neck and towers; inputs, outputs and all else stay float32.

    Args:
        inputs: Arrays as the model takes them. What the model computes of them decides about the scales.
    """

    def __init__(self, inputs: Iterable[np.ndarray]) -> None:
        self.inputs = inputs

    def __call__(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """Quantize a model: its weights become int8 and its results uint8, between QuantizeLinear nodes.

        Raises:
            InputError: If onnxruntime is missing.
        """
        onnx, quantization = import_optional('onnx'), import_optional('onnxruntime.quantization')
        name = model.graph.input[0].name
        with mute_warnings(), tempfile.TemporaryDirectory() as folder:
            out = Path(folder, 'model.onnx')
            quantization.quantize_static(
                model,
                out,
                CalibrationInputs({name: array} for array in self.inputs),
                quant_format=quantization.QuantFormat.QDQ,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                per_channel=True,
                # Products of full weights overflow on CPUs without VNNI.
                reduce_range=True,
                op_types_to_quantize=list(OPERATORS),
                nodes_to_quantize=find_reducible(model, OPERATORS),
            )
            quantized = onnx.load(out)
        sort_nodes(quantized.graph)
        return quantized
