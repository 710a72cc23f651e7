"""Float16 graphs: the conversion, and float32 graphs that reproduce a float16 one's roundings."""

from __future__ import annotations

import copy
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING

import numpy as np

from pipeline.errors import CheckFailed
from pipeline.graph import edit, load, metadata, run
from pipeline.graph.load import attribute

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

# Operators whose result is one of their inputs or an exact function of them: nothing to round.
EXACT = {"Relu", "MaxPool", "GlobalMaxPool", "Reshape", "Transpose", "Concat", "Flatten", "Identity", "Constant",
         "Clip", "Slice", "Split", "Gather", "Squeeze", "Unsqueeze", "Max", "Min", "Pad", "Neg", "Abs", "Expand",
         "Tile", "DepthToSpace", "SpaceToDepth"}  # fmt: skip
BLOCK = 64  # products that are summed before a sum is rounded, in `rounded_sums`

LARGEST, SMALLEST_NORMAL = 65504.0, 2.0**-14  # float16's; IEEE 754 binary16


def half(model: ModelProto) -> ModelProto:
    """Convert a float32 graph to float16: weights, arithmetic, and every cast to float32.

    By ONNX's own schemas: inputs that an operator takes in float32 only, such as Resize's scales, stay. One cast back
    to float32 comes before the output. Requires weights that fit; the stage checks them. Returns a new model.
    """
    import onnx
    from onnx import TensorProto, helper

    model = copy.deepcopy(model)
    version = metadata.opset(model)
    wide: set[str] = set()
    for node in model.graph.node:
        formal = onnx.defs.get_schema(node.op_type, version).inputs
        for index, name in enumerate(node.input):
            if "tensor(float16)" not in formal[min(index, len(formal) - 1)].types:
                wide.add(name)
    _convert(model, TensorProto.FLOAT, TensorProto.FLOAT16, wide)
    logits = model.graph.output[0].name
    narrow = edit.namer(model)(f"{logits}_float16")
    edit.rename(model.graph.node, {logits: narrow})
    model.graph.node.append(helper.make_node("Cast", [narrow], [logits], "cast_out", to=TensorProto.FLOAT))
    return model


def rounded_twin(model: ModelProto) -> ModelProto:
    """Return a graph of float32 operators that computes a float16 graph with one rounding to float16 an operator.

    Each operator's result is cast to float16 and back. Sums within an operator are float32's, as in tensor cores. ONNX
    Runtime computes a float16 graph on x86-64 in float32 between casts; this one has every rounding, and overflows
    where float16 does.
    """
    from onnx import TensorProto, helper

    halves = load.of_type(model, TensorProto.FLOAT16)
    twin, nodes = copy.deepcopy(model), []
    _convert(twin, TensorProto.FLOAT16, TensorProto.FLOAT)
    for node in twin.graph.node:
        nodes.append(node)
        if node.op_type in EXACT:
            continue
        for index, name in enumerate(node.output):
            if name in halves:
                node.output[index] = f"{name}_wide"
                nodes.append(helper.make_node("Cast", [f"{name}_wide"], [f"{name}_half"], to=TensorProto.FLOAT16))
                nodes.append(helper.make_node("Cast", [f"{name}_half"], [name], to=TensorProto.FLOAT))
    edit.replace_nodes(twin, nodes)
    return twin


def rounded_sums(model: ModelProto) -> ModelProto:
    """Return the float16 graph with the sums of its convolutions and Gemms split into blocks of BLOCK products.

    The twin of the result rounds after every block. It is a sample of what hardware with float16 accumulators gives,
    not a bound on it: another kernel sums in another order. Grouped convolutions stay whole.
    """
    from onnx import helper

    split, values = copy.deepcopy(model), edit.weights(model)
    nodes: list[NodeProto] = []
    for node in split.graph.node:
        weight = values.get(node.input[1]) if node.op_type in ("Conv", "Gemm") else None
        axis = 1 if node.op_type == "Conv" or attribute(node, "transB", 0) else 0  # of the weight's input channels
        starts = [] if weight is None else list(range(0, weight.shape[axis], _block(node, weight)))
        if weight is None or len(starts) < 2:
            nodes.append(node)
            continue
        stem, blocks = node.output[0], np.split(weight, starts[1:], axis)
        sizes = np.array([block.shape[axis] for block in blocks])
        edit.store(split, {f"{stem}_sizes": sizes} | {f"{stem}_weight_{i}": each for i, each in enumerate(blocks)})
        channels = [f"{stem}_channels_{index}" for index in range(len(blocks))]
        nodes.append(helper.make_node("Split", [node.input[0], f"{stem}_sizes"], channels, axis=1))
        for index in range(len(blocks)):
            part, last = copy.deepcopy(node), index + 1 == len(blocks)
            bias = list(node.input[2:]) if last else []  # the bias is added to the whole sum's last block
            part.input[:] = [channels[index], f"{stem}_weight_{index}", *bias]
            part.name, part.output[0] = f"{node.name}_{index}", f"{stem}_part_{index}"
            nodes.append(part)
            if index:
                before = f"{stem}_sum_{index - 1}" if index > 1 else f"{stem}_part_0"
                result = stem if last else f"{stem}_sum_{index}"
                nodes.append(helper.make_node("Add", [before, part.output[0]], [result]))
    edit.replace_nodes(split, nodes)
    return split


def _block(node: NodeProto, weight: np.ndarray) -> int:
    """How many input channels of a convolution or a Gemm make a block; all of them if its sum is not split."""
    plain = {"group": 1, "transA": 0, "alpha": 1.0, "beta": 1.0}
    if any(attribute(node, name, value) != value for name, value in plain.items()):
        return max(weight.shape)
    return max(1, BLOCK // int(np.prod(weight.shape[2:])))


def difference(model: ModelProto, narrow: ModelProto, images: np.ndarray, name: str) -> float:
    """The `run.difference` of a float16 graph's logits, every operator's result rounded, to those of a float32 one.

    CheckFailed, beginning with `name`, if one is not a finite number.
    """
    before, after = (run.outputs(each, images, name) for each in (model, rounded_twin(narrow)))
    if not np.isfinite(largest := run.difference(before, after)):
        raise CheckFailed(f"{name}: a logit of the test set is not a finite number: it overflows")
    return largest


def float32_nodes(model: ModelProto) -> list[str]:
    """Names of the nodes, casts aside, that have a float32 or float64 result, by ONNX's strict type inference."""
    from onnx import TensorProto

    floats = load.of_type(model, TensorProto.FLOAT) | load.of_type(model, TensorProto.DOUBLE)
    nodes = [node for node in model.graph.node if node.op_type not in ("Cast", "Constant")]
    return [node.name for node in nodes if floats & set(node.output)]


def _convert(model: ModelProto, before: int, after: int, wide: AbstractSet[str] = frozenset()) -> None:
    """Replace an element type in weights, constants and casts; the weights and constants in `wide` keep theirs."""
    from onnx import helper, numpy_helper

    dtype = helper.tensor_dtype_to_np_dtype(after)
    tensors = [tensor for tensor in model.graph.initializer if tensor.name not in wide]
    for node in model.graph.node:
        for each in node.attribute:
            if node.op_type == "Cast" and each.name == "to" and each.i == before:
                each.i = after
            elif each.HasField("t") and not wide & set(node.output):
                tensors.append(each.t)
    for tensor in tensors:
        if tensor.data_type == before:
            with np.errstate(over="ignore"):
                tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(dtype), tensor.name))
