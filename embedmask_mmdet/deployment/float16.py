"""Float16 in a part of a graph.

onnxruntime's own converter rounds the results of all nodes to float16, also of those that it is told to leave alone;
coordinates above 512 pixels would be whole numbers then.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from embedmask_mmdet.deployment.packages import import_optional
from embedmask_mmdet.deployment.reducible import find_inputs, find_reducible

if TYPE_CHECKING:
    import onnx

STARTERS = ('Conv', 'MatMul', 'Gemm')
FOLLOWERS = ('Relu', 'MaxPool', 'Add')  # float16 if all that they take is


def halve_weights(graph: onnx.GraphProto, names: set[str]) -> list[onnx.TensorProto]:
    """Return copies of the weights with these names, rounded to float16, under the names ``*_half``."""
    numpy_helper = import_optional('onnx').numpy_helper
    limit = np.finfo(np.float16).max
    weights = [weight for weight in graph.initializer if weight.name in names]
    return [
        numpy_helper.from_array(
            numpy_helper.to_array(weight).clip(-limit, limit).astype(np.float16), f'{weight.name}_half'
        )
        for weight in weights
    ]


def remove_unread_weights(graph: onnx.GraphProto) -> None:
    """Remove weights that no node reads."""
    read = {name for node in graph.node for name in find_inputs(node)}
    weights = [weight for weight in graph.initializer if weight.name in read]
    del graph.initializer[:]
    graph.initializer.extend(weights)


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

    def rewrite(self, names: set[str]) -> None:
        """Rewrite the nodes with these names."""
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
        del self.graph.node[:]
        self.graph.node.extend(nodes)
        self.graph.initializer.extend(halve_weights(self.graph, weights))
        remove_unread_weights(self.graph)

    def _halve(self, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        (output,) = node.output
        half = self.onnx.NodeProto()
        half.CopyFrom(node)
        half.input[:] = [f'{name}_half' for name in node.input]
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
    HalfNodes(model.graph).rewrite(set(find_reducible(model, STARTERS + FOLLOWERS)))
    return model
