"""Reading and changing the constants, nodes and names of a graph."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto


def weights(model: ModelProto) -> dict[str, np.ndarray]:
    """Every constant of a graph by name: initialisers and the outputs of Constant nodes."""
    from onnx import numpy_helper

    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        for each in node.attribute:
            if node.op_type == "Constant" and each.name == "value":
                tensors[node.output[0]] = each.t
    return {name: numpy_helper.to_array(tensor) for name, tensor in tensors.items()}


def store(model: ModelProto, values: Mapping[str, np.ndarray]) -> None:
    """Set initialisers by name; those that the graph does not have yet are added."""
    from onnx import numpy_helper

    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for name, value in values.items():
        tensor = tensors[name] if name in tensors else model.graph.initializer.add()
        tensor.CopyFrom(numpy_helper.from_array(np.asarray(value, order="C"), name))


def rename(nodes: Iterable[NodeProto], names: Mapping[str, str]) -> None:
    """Rename tensors wherever these nodes read or write them; `names` maps old to new names."""
    for node in nodes:
        for tensors in (node.input, node.output):
            tensors[:] = [names.get(name, name) for name in tensors]


def namer(model: ModelProto) -> Callable[[str], str]:
    """Return a function that names a new tensor: as proposed, or with underscores behind where the graph has that."""
    taken = {name for node in model.graph.node for name in (*node.input, *node.output)}

    def new(name: str) -> str:
        return name if name not in taken else new(f"{name}_")

    return new


def replace_nodes(model: ModelProto, nodes: Iterable[NodeProto]) -> None:
    """Make these the graph's nodes; initialisers that no node uses any more go."""
    kept = list(nodes)
    used = {name for node in kept for name in node.input} | {value.name for value in model.graph.output}
    tensors = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.node[:], model.graph.initializer[:], model.graph.value_info[:]
    model.graph.node.extend(kept)
    model.graph.initializer.extend(tensors)
