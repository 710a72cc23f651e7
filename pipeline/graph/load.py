"""Opening ONNX files: the one place where a graph is parsed, so that every stage refuses the same things."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, TypeVar

from pipeline.errors import CheckFailed, reason
from pipeline.records import manifest
from pipeline.records.manifest import Artifact

if TYPE_CHECKING:
    from onnx import AttributeProto, ModelProto, NodeProto, ValueInfoProto

# Operators with subgraphs, and those whose result is not a function of the image.
CONTROL_FLOW = {"If", "Loop", "Scan", "SequenceMap"}
RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"}
LARGEST = 1 << 26  # elements of one tensor for one image: 256 MiB in float32
Value = TypeVar("Value")


def load(artifact: Artifact) -> ModelProto:
    """Parse the ONNX model of an artifact whose bytes match its record.

    Raises CheckFailed for what `parse` refuses, and for a graph with more than one input or output.
    """
    model = parse(manifest.content(artifact), str(artifact.path))
    inputs, outputs = len(model.graph.input), len(model.graph.output)
    if inputs != 1 or outputs != 1:
        raise CheckFailed(
            f"{artifact.path}: expected one input and one output, received {inputs} inputs and {outputs} outputs"
        )
    return model


def parse(content: bytes, name: str) -> ModelProto:
    """Parse ONNX bytes; `name` is what errors call them.

    Raises CheckFailed for what is no valid ONNX, for what `_refuse` names, and for a tensor that is too large for one
    image: dimensions that are free count as one, weights don't count, since they are as large as the file.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load_from_string(content)
    except (DecodeError, ValueError) as error:  # the latter for a message nested too deeply
        raise CheckFailed(f"{name}: is not an ONNX file: {error}") from error
    _refuse(model, name)
    try:
        onnx.checker.check_model(model, full_check=True)
        tensors = values(model)
    except Exception as error:  # ValidationError, InferenceError and what C++ throws share no base
        raise CheckFailed(f"{name}: is not a valid ONNX graph: {reason(error)}") from error
    weights = {weight.name for weight in model.graph.initializer}  # before IR version 4 they are inputs, too
    scaled = [node for node in model.graph.node if node.op_type == "DequantizeLinear"]
    weights |= {name for node in scaled if weights.issuperset(node.input) for name in node.output}
    for weight in weights & tensors.keys():
        tensors.pop(weight)
    for tensor, value in tensors.items():
        if (size := math.prod(max(edge, 1) for edge in shape(value))) > LARGEST:
            raise CheckFailed(f"{name}: tensor {tensor} has {size:,} elements an image: expected at most {LARGEST:,}")
    return model


def _refuse(model: ModelProto, name: str) -> None:
    """Raise CheckFailed for what could run code, read other files or depend on more than the image.

    Weights in other files are covered by no digest (CVE-2026-27489 and others).
    """
    nodes = model.graph.node
    operators = {node.op_type for node in nodes}
    attributes = [attribute for node in nodes for attribute in node.attribute]
    tensors = [*model.graph.initializer, *(each.t for each in attributes)]
    tensors += [tensor for each in attributes for tensor in each.tensors]
    problems = {
        "custom operators": {f"{node.domain}::{node.op_type}" for node in nodes if node.domain not in ("", "ai.onnx")},
        "control flow": operators & CONTROL_FLOW,
        "random operators": operators & RANDOM,
        "model-local functions": {function.name for function in model.functions},
        "training graphs": {"training_info"} if model.training_info else set(),
        "sparse weights": {"sparse_initializer"} if model.graph.sparse_initializer else set(),
        "sparse tensors": {node.op_type for node in nodes for each in node.attribute if _is_sparse(each)},
        "operators in training mode": {node.op_type for node in nodes if _trains(node, model)},
        "subgraphs": {node.op_type for node in nodes for each in node.attribute if each.HasField("g") or each.graphs},
        "weights outside the file": {each.name for each in tensors if each.external_data or each.data_location == 1},
    }
    for problem, names in problems.items():
        if names:
            listed = ", ".join(sorted(names))[:300]
            if problem == "weights outside the file":
                listed += " (onnx.save(onnx.load(FILE), NEW) takes them in)"
            raise CheckFailed(f"{name}: has {problem}: {listed}; expected a plain graph of standard ONNX operators")


def _trains(node: NodeProto, model: ModelProto) -> bool:
    """Tell whether a node computes as in training: it says so, or it gives a batch's statistics, as before opset 14."""
    if attribute(node, "training_mode", 0) or (node.op_type == "BatchNormalization" and any(node.output[1:])):
        return True
    if node.op_type != "Dropout" or len(node.input) < 3:
        return False
    modes = [tensor for tensor in model.graph.initializer if tensor.name == node.input[2]]
    modes += [a.t for each in model.graph.node if node.input[2] in each.output for a in each.attribute]
    # As stored: to read a tensor may open another file, which is refused only after this.
    return any(any(mode.raw_data) or any(mode.int32_data) for mode in modes)


def _is_sparse(attribute: AttributeProto) -> bool:
    return attribute.HasField("sparse_tensor") or len(attribute.sparse_tensors) > 0


def values(model: ModelProto, *, strict: bool = False) -> dict[str, ValueInfoProto]:
    """Inputs, intermediate tensors and outputs by name, with the types and shapes that ONNX infers.

    With `strict`, an operator whose inference fails is an error, not a gap.
    """
    import onnx

    graph = onnx.shape_inference.infer_shapes(model, strict_mode=strict, data_prop=True).graph
    return {value.name: value for value in [*graph.value_info, *graph.input, *graph.output]}


def of_type(model: ModelProto, element: int) -> set[str]:
    """Names of the tensors with an element type, such as `TensorProto.FLOAT`, by ONNX's strict inference."""
    tensors = values(model, strict=True)
    return {name for name, value in tensors.items() if value.type.tensor_type.elem_type == element}


def shape(value: ValueInfoProto) -> list[int]:
    """The dimensions of a tensor, 0 for one that is free."""
    return [dim.dim_value for dim in value.type.tensor_type.shape.dim]


def operators(model: ModelProto) -> dict[str, int]:
    """How many nodes of each operator a graph has, by name."""
    return dict(sorted(Counter(node.op_type for node in model.graph.node).items()))


def signature(value: ValueInfoProto) -> str:
    """An input or output in words, such as `images uint8[batch,1,28,28]`."""
    import onnx

    if (kind := value.type.WhichOneof("value")) != "tensor_type":
        return f"{value.name} {kind}"
    dims = ",".join(dim.dim_param or str(dim.dim_value) for dim in value.type.tensor_type.shape.dim)
    return f"{value.name} {onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)}[{dims}]"


def attribute(node: NodeProto, name: str, default: Value) -> Value:
    """The value of a node's attribute; `default`, which is of the same type, if the node does not have it."""
    import onnx

    return next((onnx.helper.get_attribute_value(each) for each in node.attribute if each.name == name), default)
