"""The nodes of a graph that may compute with smaller numbers; coordinates and all that follows stay float32."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

Reduction = Callable[['onnx.ModelProto'], 'onnx.ModelProto']

# Names of nodes begin with those of the modules that they come from. The last convolutions of the heads, which predict
# logits, distances and embeddings, are not among them.
REDUCIBLE = re.compile(r'/(model/)?((backbone|neck)/|bbox_head/.*(cls|reg)_convs|mask_head/mask_convs|pixel_branch/)')


def keep_float32(model: onnx.ModelProto) -> onnx.ModelProto:
    """Leave a model as it is."""
    return model


def find_reducible(model: onnx.ModelProto, operators: Collection[str]) -> list[str]:
    """Return the names of the nodes in backbone, neck and towers that are one of some operators."""
    return [node.name for node in model.graph.node if node.op_type in operators and REDUCIBLE.match(node.name)]


def find_inputs(node: onnx.NodeProto) -> Iterator[str]:
    """Yield the names of what a node reads, also in the body of a loop."""
    yield from node.input
    for attribute in node.attribute:
        for inner in attribute.g.node:
            yield from find_inputs(inner)
