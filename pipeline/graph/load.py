"""Opening ONNX files: the one place where a graph is parsed, so that every stage refuses the same things."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pipeline.errors import CheckFailed
from pipeline.records import manifest
from pipeline.records.manifest import Artifact

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto

# Operators with subgraphs, and those whose result is not a function of the image.
CONTROL_FLOW = {"If", "Loop", "Scan", "SequenceMap"}
RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"}
LARGEST = 1 << 26  # elements of one tensor for one image: 256 MiB in float32


def load(artifact: Artifact) -> ModelProto:
    """Parse the ONNX model of an artifact whose bytes match its record.

    Raises CheckFailed if the file is not ONNX or holds something that `refuse` names.
    """
    model = parse(manifest.content(artifact), str(artifact.path))
    if len(model.graph.input) != 1 or len(model.graph.output) != 1:
        raise CheckFailed(
            f"{artifact.path}: expected one input and one output, received {len(model.graph.input)} inputs and "
            f"{len(model.graph.output)} outputs"
        )
    return model


def parse(content: bytes, name: str) -> ModelProto:
    """Parse ONNX bytes and check them; `name` is what errors call them."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load_from_string(content)
    except (DecodeError, ValueError) as error:  # the latter for a message nested too deeply
        raise CheckFailed(f"{name}: is not an ONNX file: {error}") from error
    refuse(model, name)
    try:
        onnx.checker.check_model(model, full_check=True)
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception as error:  # ValidationError, InferenceError and what C++ throws share no base
        raise CheckFailed(f"{name}: is not a valid ONNX graph: {' '.join(str(error).split())[:200]}") from error
    _refuse_large(inferred, name)
    return model


def refuse(model: ModelProto, name: str) -> None:
    """Raise CheckFailed for what could run code, read other files or depend on more than the image.

    That is: operators outside ONNX's own domain, control flow, random numbers, model-local functions, training graphs,
    sparse weights, and weights in other files, which no digest covers (CVE-2026-27489 and others).
    """
    custom = {f"{node.domain}::{node.op_type}" for node in model.graph.node if node.domain not in ("", "ai.onnx")}
    operators = {node.op_type for node in model.graph.node}
    problems = {
        "custom operators": custom,
        "control flow": operators & CONTROL_FLOW,
        "random operators": operators & RANDOM,
        "model-local functions": {function.name for function in model.functions},
        "training graphs": {"training_info"} if model.training_info else set(),
        "sparse weights": {"sparse_initializer"} if model.graph.sparse_initializer else set(),
        "subgraphs": {node.op_type for node in model.graph.node for a in node.attribute if a.HasField("g") or a.graphs},
        "weights outside the file": {t.name for t in _tensors(model) if t.external_data or t.data_location == 1},
    }
    for problem, names in problems.items():
        if names:
            listed = ", ".join(sorted(names))[:300]
            raise CheckFailed(f"{name}: has {problem}: {listed}; expected a plain graph of standard ONNX operators")


def _tensors(model: ModelProto) -> Iterator[TensorProto]:
    yield from model.graph.initializer
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def _refuse_large(inferred: ModelProto, name: str) -> None:
    """Raise CheckFailed for a tensor that would be too large for one image. Dimensions that are free count as one.

    Weights don't count: they are as large as the file. Before IR version 4 they are inputs, too.
    """
    weights = {tensor.name for tensor in inferred.graph.initializer}
    for value in [*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output]:
        if value.name not in weights and (size := math.prod(max(each, 1) for each in shape(value))) > LARGEST:
            raise CheckFailed(f"{name}: tensor {value.name} has {size:,} elements an image: the limit is {LARGEST:,}")


def shape(value: ValueInfoProto) -> list[int]:
    """The dimensions of a value, 0 for one that is free."""
    return [dim.dim_value for dim in value.type.tensor_type.shape.dim]


def operators(model: ModelProto) -> dict[str, int]:
    """How many nodes of each operator a graph has, by name."""
    names = [node.op_type for node in model.graph.node]
    return {name: names.count(name) for name in sorted(set(names))}


def signature(value: ValueInfoProto) -> str:
    """An input or output in words, such as `images uint8[batch,1,28,28]`."""
    import onnx

    dims = ",".join(dim.dim_param or str(dim.dim_value) for dim in value.type.tensor_type.shape.dim)
    return f"{value.name} {onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)}[{dims}]"


def attribute(node: NodeProto, name: str, default: object = None) -> object:
    """The value of a node's attribute, `default` if the node does not have it."""
    import onnx

    return next((onnx.helper.get_attribute_value(each) for each in node.attribute if each.name == name), default)
