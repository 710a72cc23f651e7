"""Float16 graphs: the conversion, and float32 graphs that reproduce a float16 one's roundings."""

from __future__ import annotations

import copy
import itertools
from typing import TYPE_CHECKING

import numpy as np

from pipeline.graph import metadata, passes
from pipeline.graph.load import attribute

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

# Operators whose result is one of their inputs or an exact function of them: nothing to round.
EXACT = {"Relu", "MaxPool", "GlobalMaxPool", "Reshape", "Transpose", "Concat", "Flatten", "Identity", "Constant",
         "Clip", "Slice", "Split", "Gather", "Squeeze", "Unsqueeze", "Max", "Min", "Pad", "Neg", "Abs", "Expand",
         "Tile", "DepthToSpace", "SpaceToDepth"}  # fmt: skip
BLOCK = 64  # products that are summed before a sum is rounded, in `rounded_sums`


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
    for tensor in model.graph.initializer:
        if tensor.name not in wide:
            _converted(tensor, TensorProto.FLOAT, np.float16)
    for node in model.graph.node:
        for each in node.attribute:
            if node.op_type == "Cast" and each.name == "to" and each.i == TensorProto.FLOAT:
                each.i = TensorProto.FLOAT16
            elif each.HasField("t") and not wide & set(node.output):
                _converted(each.t, TensorProto.FLOAT, np.float16)
    logits = model.graph.output[0].name
    _rename(model, logits, f"{logits}_float16")
    model.graph.node.append(helper.make_node("Cast", [f"{logits}_float16"], [logits], "cast_out", to=TensorProto.FLOAT))
    return model


def rounded_twin(model: ModelProto) -> ModelProto:
    """Return a graph of float32 operators that computes a float16 graph with one rounding to float16 an operator.

    Each operator's result is cast to float16 and back. Sums within an operator are float32's, as in tensor cores. ONNX
    Runtime computes a float16 graph on x86-64 in float32 between casts; this one has every rounding, and overflows
    where float16 does.
    """
    from onnx import TensorProto, helper, shape_inference

    typed = shape_inference.infer_shapes(model, strict_mode=True).graph
    is_half = {value.name for value in typed.value_info if value.type.tensor_type.elem_type == TensorProto.FLOAT16}
    twin, nodes = copy.deepcopy(model), []
    for tensor in twin.graph.initializer:
        _converted(tensor, TensorProto.FLOAT16, np.float32)
    for node in twin.graph.node:
        for each in node.attribute:
            if node.op_type == "Cast" and each.name == "to" and each.i == TensorProto.FLOAT16:
                each.i = TensorProto.FLOAT
            elif each.HasField("t"):
                _converted(each.t, TensorProto.FLOAT16, np.float32)
        nodes.append(node)
        if node.op_type in EXACT:
            continue
        for index, name in enumerate(node.output):
            if name in is_half:
                node.output[index] = f"{name}_wide"
                nodes.append(helper.make_node("Cast", [f"{name}_wide"], [f"{name}_half"], to=TensorProto.FLOAT16))
                nodes.append(helper.make_node("Cast", [f"{name}_half"], [name], to=TensorProto.FLOAT))
    passes.replace_nodes(twin, nodes)
    return twin


def rounded_sums(model: ModelProto) -> ModelProto:
    """Return the float16 graph with the sums of its convolutions and Gemms split into blocks of BLOCK products.

    The twin of the result rounds after every block. It is a sample of what hardware with float16 accumulators gives,
    not a bound on it: another kernel sums in another order. Grouped convolutions stay whole.
    """
    from onnx import helper

    split, values, nodes, parts = copy.deepcopy(model), passes.weights(model), [], {}
    for node in split.graph.node:
        weight = values.get(node.input[1]) if node.op_type in ("Conv", "Gemm") else None
        sizes = None if weight is None else _blocks(node, weight)
        if not sizes:
            nodes.append(node)
            continue
        stem, axis = node.output[0], 1 if node.op_type == "Conv" or attribute(node, "transB", 0) else 0
        starts = np.cumsum([0, *sizes])
        parts[f"{stem}_sizes"] = np.asarray(sizes, np.int64)
        slices = [f"{stem}_channels_{index}" for index in range(len(sizes))]
        nodes.append(helper.make_node("Split", [node.input[0], f"{stem}_sizes"], slices, axis=1))
        total = ""
        for index, (start, stop) in enumerate(itertools.pairwise(starts)):
            part, last = copy.deepcopy(node), index + 1 == len(sizes)
            parts[f"{stem}_weight_{index}"] = np.take(weight, range(start, stop), axis)
            bias = list(node.input[2:]) if last else []  # the bias is added to the whole sum's last block
            part.input[:] = [slices[index], f"{stem}_weight_{index}", *bias]
            part.name, part.output[0] = f"{node.name}_{index}", f"{stem}_part_{index}"
            nodes.append(part)
            if total:
                result = stem if last else f"{stem}_sum_{index}"
                nodes.append(helper.make_node("Add", [total, part.output[0]], [result]))
                total = result
            else:
                total = part.output[0]
    passes.store(split, parts)
    passes.replace_nodes(split, nodes)
    return split


def _blocks(node: NodeProto, weight: np.ndarray) -> list[int]:
    """Sizes of the blocks of input channels that a sum is split into; empty if it is not split."""
    if node.op_type == "Gemm":
        if attribute(node, "transA", 0) or attribute(node, "alpha", 1.0) != 1 or attribute(node, "beta", 1.0) != 1:
            return []
        inputs, each = weight.shape[1 if attribute(node, "transB", 0) else 0], BLOCK
    else:
        if attribute(node, "group", 1) != 1:
            return []
        inputs, each = weight.shape[1], max(1, BLOCK // int(np.prod(weight.shape[2:])))
    if inputs <= each:
        return []
    return [min(each, inputs - start) for start in range(0, inputs, each)]


def float32_nodes(model: ModelProto) -> list[str]:
    """Names of the nodes, casts aside, that have a float32 result, by ONNX's strict type inference."""
    from onnx import TensorProto, shape_inference

    inferred = shape_inference.infer_shapes(model, strict_mode=True).graph
    types = {value.name: value.type.tensor_type.elem_type for value in [*inferred.value_info, *inferred.output]}
    return [
        node.name
        for node in inferred.node
        if node.op_type not in ("Cast", "Constant") and TensorProto.FLOAT in (types.get(name) for name in node.output)
    ]


def _converted(tensor: TensorProto, kind: int, dtype: type) -> None:
    from onnx import numpy_helper

    if tensor.data_type == kind:
        with np.errstate(over="ignore"):
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(dtype), tensor.name))


def _rename(model: ModelProto, old: str, new: str) -> None:
    for node in model.graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name == old:
                    names[index] = new
