"""Folded network in, ONNX file out: raw uint8 pixels to float32 logits, with nothing in it but what computes."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

from pipeline import artifact, console, onnx_file
from pipeline.artifact import Artifact
from pipeline.errors import CheckFailed
from pipeline.runtimes import pytorch
from pipeline.stages import Out, card, output

if TYPE_CHECKING:
    import onnx

ORDER = 30
KIND, FILE = "onnx", "{model}.onnx"
NEEDS = ("torch", "onnxscript")
IMAGES, LOGITS = "images", "logits"


def run(folded: Artifact, *, out: Out, opset: Annotated[int, "ONNX operator set of the file."] = 18) -> Artifact:
    """Export the folded network to ONNX: uint8 images [batch, 1, 28, 28] in, float32 logits [batch, 10] out.

    Raises CheckFailed if the exporter wrote another opset, other operators or other inputs and outputs than asked for.
    """
    model = _strip(_export(folded, opset))
    _describe(model, folded)
    _check(model, folded, opset)
    return artifact.write(
        output(out, FILE, folded),
        model.SerializeToString(deterministic=True),
        kind=KIND,
        parents=[folded],
        options={"opset": opset},
        versions=artifact.versions("torch", "onnx", "onnxscript", "onnx-ir"),
        facts={**card(folded), "opset": opset, "ir_version": model.ir_version, "operators": _operators(model)},
    )


def _export(folded: Artifact, opset: int) -> onnx.ModelProto:
    import torch

    example = torch.zeros(2, *folded.facts["model"]["input"], dtype=torch.uint8)
    options = {
        "dynamo": True,
        "external_data": False,
        "opset_version": opset,
        "input_names": [IMAGES],
        "output_names": [LOGITS],
        "dynamic_shapes": ({0: torch.export.Dim("batch")},),
        "verbose": False,
    }
    try:
        with _quiet():
            return torch.onnx.export(pytorch.network(folded), (example,), **options).model_proto
    except (RuntimeError, ValueError, TypeError) as error:
        line = " ".join(str(error).split())[:300]
        raise CheckFailed(f"{folded.path}: PyTorch can't export it with opset {opset}: {line}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's deprecations and its remarks on opsets: what it wrote is checked."""
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def _strip(model: onnx.ModelProto) -> onnx.ModelProto:
    """Without the exporter's notes (stack traces with paths, inferable types): they would double the file."""
    graph = model.graph
    for message in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        message.ClearField("metadata_props")
        message.ClearField("doc_string")
    graph.ClearField("value_info")
    for index, node in enumerate(graph.node):
        node.name = f"{node.op_type.lower()}_{index}"
    return model


def _describe(model: onnx.ModelProto, folded: Artifact) -> None:
    """What tools show of the file, and what lets somebody who has only the file use it and trace it."""
    import onnx

    about, reference = folded.facts["model"], folded.facts["reference"]
    model.producer_name, model.producer_version = "edge-pipeline", about["version"]
    model.doc_string = f"{about['title']}. Raw pixels in, logits out; the prediction is the largest logit."
    model.graph.name = about["name"]
    model.graph.input[0].doc_string = about["input_meaning"]
    model.graph.output[0].doc_string = f"logits of the classes {', '.join(about['classes'])}"
    properties = {
        "name": about["name"],
        "version": about["version"],
        "licence": about["licence"],
        "classes": ",".join(about["classes"]),
        "input": about["input_meaning"],
        "accuracy": f"{reference['correct'] / reference['n']:.4f} of {reference['n']} images, {reference['name']}",
        "parent_sha256": folded.sha256,
    }
    onnx.helper.set_model_props(model, properties)


def _check(model: onnx.ModelProto, folded: Artifact, opset: int) -> None:
    import onnx

    onnx.checker.check_model(model, full_check=True)
    shape = ",".join(map(str, folded.facts["model"]["input"]))
    classes = len(folded.facts["model"]["classes"])
    facts = {
        "opset": (", ".join(f"{o.domain}{o.version}" for o in model.opset_import), str(opset)),
        "operators besides the expected": (set(_operators(model)) - onnx_file.OPERATORS, set()),
        "inputs": ([_signature(value) for value in model.graph.input], [f"images uint8[batch,{shape}]"]),
        "outputs": ([_signature(value) for value in model.graph.output], [f"logits float32[batch,{classes}]"]),
        "weights outside the file": ([t.name for t in model.graph.initializer if t.external_data], []),
    }
    for what, (received, expected) in facts.items():
        if received != expected:
            raise CheckFailed(f"{folded.path}: exported with {what} {received}: expected {expected}")


def _operators(model: onnx.ModelProto) -> dict[str, int]:
    names = [node.op_type for node in model.graph.node]
    return {name: names.count(name) for name in sorted(set(names))}


def _signature(value: onnx.ValueInfoProto) -> str:
    import onnx

    kind = value.type.tensor_type
    dims = ",".join(d.dim_param or str(d.dim_value) for d in kind.shape.dim)
    return f"{value.name} {onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)}[{dims}]"


def show(exported: Artifact) -> None:
    """What the graph is made of, in a line."""
    operators = ", ".join(f"{count} {name}" for name, count in exported.facts["operators"].items())
    console.result(f"opset {exported.facts['opset']}: {operators}")
