"""An artifact's ONNX graph, parsed: the one place where an ONNX file is opened, so that all refuse the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline import artifact as artifacts
from pipeline.artifact import Artifact
from pipeline.errors import CheckFailed

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
    except DecodeError as error:
        raise CheckFailed(f"{artifact.path}: is no ONNX file: {error}") from error
    weights = list(model.graph.initializer)
    weights += [a.t for node in model.graph.node for a in node.attribute if a.HasField("t")]
    outside = [weight.name for weight in weights if weight.external_data]
    if outside:
        raise CheckFailed(f"{artifact.path}: weights {', '.join(outside)} lie in another file; expected them inside")
    if len(model.graph.input) != 1 or len(model.graph.output) != 1:
        raise CheckFailed(f"{artifact.path}: expected one input and one output, as exported here")
    return model
