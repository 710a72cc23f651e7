"""What an exporter writes in a roundabout way, in plain operators: every runtime on a device has those.

Every pass takes a model and returns the model it was given, changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from pipeline.graph import load, run
from pipeline.graph.edit import namer, replace_nodes, store, weights
from pipeline.graph.load import attribute

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, ValueInfoProto


def fix_shapes(model: ModelProto) -> ModelProto:
    """Replace a Reshape's computed shape by a constant, where only the batch in it is free.

    PyTorch exports `flatten` behind a global average so, and `view(len(x), -1)`. What the shapes are is seen from two
    batches: ONNX's inference doesn't follow all that may compute them.
    """
    import onnxscript.optimizer

    constants, new = weights(model), namer(model)
    computed = [each for each in model.graph.node if each.op_type == "Reshape" and each.input[1] not in constants]
    if not computed:
        return model
    session = run.watching(model, [node.output[0] for node in computed], model.graph.name)
    image, sizes = session.get_inputs()[0].name, load.shape(model.graph.input[0])[1:]
    with run.running(model.graph.name):
        two, three = (session.run(None, {image: np.zeros([n, *sizes], np.uint8)}) for n in (2, 3))
    fixed: dict[str, np.ndarray] = {}
    for node, some, more in zip(computed, two, three, strict=True):
        shape = [edge if edge == other else -1 for edge, other in zip(some.shape, more.shape, strict=False)]
        if shape.count(-1) < 2 and some.ndim == more.ndim:
            node.input[1] = new(f"{node.output[0]}_shape")
            fixed[node.input[1]] = np.array(shape)
    store(model, fixed)
    onnxscript.optimizer.remove_unused_nodes(model)  # what computed the shapes
    return model


def pool_globally(model: ModelProto) -> ModelProto:
    """Replace ReduceMean over an image's height and width, as PyTorch's exporter writes it, by GlobalAveragePool."""
    from onnx import TensorProto, helper

    images = {
        name
        for name, value in load.values(model).items()
        if value.type.tensor_type.elem_type == TensorProto.FLOAT and len(load.shape(value)) == 4
    }
    constants, new = weights(model), namer(model)
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        axes = constants.get(node.input[1]) if node.op_type == "ReduceMean" and node.input[1:] else None
        if axes is None or node.input[0] not in images or sorted(axes % 4) != [2, 3]:
            nodes.append(node)
            continue
        taken, name, keeps = node.input[0], node.output[0], attribute(node, "keepdims", 1)
        pooled = name if keeps else new(f"{name}_pooled")
        nodes.append(helper.make_node("GlobalAveragePool", [taken], [pooled]))
        if not keeps:
            nodes.append(helper.make_node("Flatten", [pooled], [name]))
    replace_nodes(model, nodes)
    return model


def split(model: ModelProto) -> ModelProto:
    """Replace SplitToSequence, whose parts SequenceAt picks, by Split: runtimes on devices have no sequences.

    PyTorch exports `chunk` so. A split whose sizes or picks are not constant is left.
    """
    from onnx import helper

    tensors, constants, new = load.values(model), weights(model), namer(model)
    nodes: list[NodeProto] = []
    sizes: dict[str, np.ndarray] = {}
    parts: dict[str, str] = {}  # by the result of the SequenceAt that picks it
    for node in model.graph.node:
        name, kept = node.output[0], node
        if node.op_type == "SplitToSequence":
            edges = _sizes(node, tensors, constants)
            picks = [each for each in model.graph.node if name in each.input]
            if edges and all(each.op_type == "SequenceAt" and each.input[1] in constants for each in picks):
                sizes[new(f"{name}_sizes")] = np.array(edges)
                outputs = [new(f"{name}_{index}") for index in range(len(edges))]
                axis = attribute(node, "axis", 0)
                kept = helper.make_node("Split", [node.input[0], new(f"{name}_sizes")], outputs, axis=axis)
                parts |= {each.output[0]: outputs[int(constants[each.input[1]])] for each in picks}
        elif name in parts:
            kept = helper.make_node("Identity", [parts[name]], [name])
        nodes.append(kept)
    store(model, sizes)
    replace_nodes(model, nodes)
    return model


def _sizes(node: NodeProto, tensors: Mapping[str, ValueInfoProto], constants: Mapping[str, np.ndarray]) -> list[int]:
    """The sizes that a SplitToSequence splits into; empty if they are not known or it drops the axis."""
    dims = load.shape(tensors[node.input[0]]) if node.input[0] in tensors else []
    whole = dims[attribute(node, "axis", 0)] if dims else 0
    if len(node.input) < 2 or node.input[1] not in constants or not whole:
        return []
    split = constants[node.input[1]]
    if split.ndim:
        return split.tolist()
    return [min(int(split), whole - start) for start in range(0, whole, int(split))]
