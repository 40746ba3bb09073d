"""Int8 in a part of a graph, by onnxruntime's static quantization."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from graphlib import TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from embedmask_mmdet.deployment.packages import import_optional
from embedmask_mmdet.deployment.reducible import find_inputs, find_reducible

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


def sort_nodes(graph: onnx.GraphProto) -> None:
    """Bring nodes into an order in which each follows those that it reads: onnxruntime forgets the bodies of loops."""
    nodes = list(graph.node)
    producers = {name: index for index, node in enumerate(nodes) for name in node.output}
    sources = {
        index: {producers[name] for name in find_inputs(node) if name in producers} for index, node in enumerate(nodes)
    }
    ordered = [nodes[index] for index in TopologicalSorter(sources).static_order()]
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
