"""Names, doc strings and properties of an ONNX file, for readers who have only the file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.graph import load
from pipeline.records.forms import ModelCard, Reference

if TYPE_CHECKING:
    from onnx import ModelProto


def describe(model: ModelProto, card: ModelCard, reference: Reference, parent_sha256: str) -> ModelProto:
    """Write the model's card, its accuracy and its parent's digest into the file; viewers such as Netron show them.

    The IR version becomes the lowest that the operator set goes with, so that old runtimes load the file.
    """
    import onnx

    model.producer_name, model.producer_version = "edge-pipeline", card.version
    model.ir_version = onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", opset(model))])
    model.doc_string = (
        f"{card.title}. Takes raw uint8 pixels and returns logits; the predicted class is the largest logit."
    )
    model.graph.name = card.name
    model.graph.input[0].doc_string = card.input_meaning
    names = ", ".join(card.classes)
    model.graph.output[0].doc_string = f"logits of the classes {names}" if len(names) < 1000 else "logits"
    del model.metadata_props[:]
    properties = {
        "name": card.name,
        "version": card.version,
        "licence": card.licence,
        "classes": ",".join(card.classes),
        "input": card.input_meaning,
        "accuracy": f"{reference.correct / reference.n:.4f} of {reference.n} images, {reference.name}",
        "parent_sha256": parent_sha256,
    }
    onnx.helper.set_model_props(model, properties)
    return model


def opset(model: ModelProto) -> int:
    """The version of ONNX's own operator set that a model uses."""
    return next(each.version for each in model.opset_import if each.domain in ("", "ai.onnx"))


def facts(model: ModelProto) -> dict[str, Any]:
    """The facts that are recorded of every ONNX file: its operator set, IR version and operators."""
    return {"opset": opset(model), "ir_version": model.ir_version, "operators": load.operators(model)}
