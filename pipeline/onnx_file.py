"""An artifact's ONNX graph, parsed: the one place where an ONNX file is opened, so that all refuse the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline import artifact as artifacts
from pipeline.artifact import Artifact
from pipeline.errors import CheckFailed

OPERATORS = {"Cast", "Conv", "Relu", "MaxPool", "AveragePool", "Reshape"}  # what the exporter writes

if TYPE_CHECKING:
    from onnx import ModelProto


def load(artifact: Artifact) -> ModelProto:
    """The model in an artifact, from bytes that were checked.

    Raises CheckFailed if it isn't ONNX, or has weights in other files: no digest covers those, and opening them isn't
    safe (CVE-2026-27489 and others).
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load_from_string(artifacts.content(artifact))
    except (DecodeError, ValueError) as error:  # the latter for a message too deep
        raise CheckFailed(f"{artifact.path}: is no ONNX file: {error}") from error
    _refuse_unknown(model, artifact)
    weights = list(model.graph.initializer)
    weights += [a.t for node in model.graph.node for a in node.attribute if a.HasField("t")]
    outside = [weight.name for weight in weights if weight.external_data]
    if outside:
        raise CheckFailed(f"{artifact.path}: weights {', '.join(outside)} lie in another file; expected them inside")
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # ValidationError, InferenceError and what C++ throws share no base
        line = " ".join(str(error).split())[:200]
        raise CheckFailed(f"{artifact.path}: is no valid ONNX graph: {line}") from error
    if len(model.graph.input) != 1 or len(model.graph.output) != 1:
        raise CheckFailed(f"{artifact.path}: expected one input and one output, as exported here")
    return model


def _refuse_unknown(model: ModelProto, artifact: Artifact) -> None:
    """An operator may loop, allocate, or load a library: only those that the exporter writes are run."""
    unknown = {node.op_type for node in model.graph.node if node.domain or node.op_type not in OPERATORS}
    if unknown or model.functions or model.training_info or model.graph.sparse_initializer:
        names = ", ".join(sorted(unknown)) or "functions of its own or sparse weights"
        raise CheckFailed(f"{artifact.path}: has operators {names}: expected {', '.join(sorted(OPERATORS))}")
