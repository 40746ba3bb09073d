"""Float16 in a part of a graph.

onnxruntime's own converter rounds the results of all nodes to float16, also of those that it is told to leave alone;
coordinates above 512 pixels would be whole numbers then.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from embedmask_mmdet.deployment.packages import import_optional
from embedmask_mmdet.deployment.reducible import find_reducible

if TYPE_CHECKING:
    import onnx

STARTERS = ('Conv', 'MatMul', 'Gemm')
FOLLOWERS = ('Relu', 'MaxPool', 'Add')  # float16 if all that they take is


def halve_weights(graph: onnx.GraphProto, names: set[str]) -> None:
    """Round the weights with these names to float16."""
    numpy_helper = import_optional('onnx').numpy_helper
    limit = np.finfo(np.float16).max
    for weight in graph.initializer:
        if weight.name in names:
            values = numpy_helper.to_array(weight).clip(-limit, limit).astype(np.float16)
            weight.CopyFrom(numpy_helper.from_array(values, weight.name))


class HalfNodes:
    """Rewrite nodes to compute with float16, with casts where others begin.

    Args:
        graph: With unique names.
    """

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.onnx = import_optional('onnx')
        self.graph = graph
        self.weights = {weight.name for weight in graph.initializer}
        self.halves: set[str] = set()  # what exists as float16, too

    def rewrite(self, names: set[str]) -> list[onnx.NodeProto]:
        """Return all nodes of the graph, those with these names rewritten."""
        weights = set()
        nodes = []
        for node in self.graph.node:
            inputs = [name for name in node.input if name not in self.weights]
            if node.name not in names or (node.op_type in FOLLOWERS and not self.halves.issuperset(inputs)):
                nodes.append(node)
                continue
            weights.update(self.weights.intersection(node.input))
            nodes += [self._cast(name, f'{name}_half', 'FLOAT16') for name in inputs if name not in self.halves]
            self.halves.update(inputs, node.output)
            nodes += self._halve(node)
        halve_weights(self.graph, weights)
        return nodes

    def _halve(self, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        (output,) = node.output
        half = self.onnx.NodeProto()
        half.CopyFrom(node)
        half.input[:] = [name if name in self.weights else f'{name}_half' for name in node.input]
        half.output[:] = [f'{output}_half']
        yield half
        # Runtimes remove it if nothing needs float32.
        yield self._cast(f'{output}_half', output, 'FLOAT')

    def _cast(self, source: str, target: str, type_name: str) -> onnx.NodeProto:
        return self.onnx.helper.make_node(
            'Cast', [source], [target], name=f'{target}_cast', to=getattr(self.onnx.TensorProto, type_name)
        )


def convert_to_float16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Make weights and results of backbone, neck and towers float16; inputs, outputs and all else stay float32."""
    nodes = HalfNodes(model.graph).rewrite(set(find_reducible(model, STARTERS + FOLLOWERS)))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model
