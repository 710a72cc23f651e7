"""Fold BatchNorm and the pixel normalisation into the convolutions of an ONNX graph."""

from __future__ import annotations

from typing import Any

from pipeline import console
from pipeline.graph import load, passes
from pipeline.graph import run as graphs
from pipeline.records.forms import Folded
from pipeline.records.manifest import Artifact
from pipeline.stages import Data, Out, describe, images, output, recorded, write_graph

KIND, FILE = "folded", "{model}.onnx"
NEEDS = ("onnxscript", "onnxruntime")


def run(unfolded: Artifact, *, out: Out, data: Data = None) -> Artifact:
    """Fold BatchNorm, 1/255 and the normalisation into the convolutions; the same function with fewer operators.

    BatchNorm that does not follow a convolution becomes Mul and Add. Before a padded convolution the mean stays as one
    Sub of raw pixels, since padding adds zeros after it. The folded graph is compared with the unfolded one over the
    whole test set.

    Raises CheckFailed if a logit differs by more than 1e-4 of the largest.
    """
    source = load.load(unfolded)
    model, left = passes.fold(load.load(unfolded))
    name = f"{unfolded.path}, folded"
    describe(model, unfolded, name)
    measured = images(unfolded, data)
    before, after = (graphs.outputs(each, measured.images, name) for each in (source, model))
    difference = graphs.check_same(before, after, f"{name}: a logit differs")
    return write_graph(
        output(out, FILE, unfolded),
        model,
        unfolded,
        Folded,
        stage=__name__,
        packages=("onnx", "onnxscript", "onnx-ir", "onnxruntime", "onnxruntime-gpu"),
        options=recorded(measured),
        batch_norms=unfolded.facts.batch_norms,
        batch_norms_left=left,
        difference=difference,
    )


def options(unfolded: Artifact, *, data: str | None, **_: Any) -> dict[str, Any]:
    """Return what the file's facts depend on besides the unfolded one."""
    return recorded(images(unfolded, data))


def show(folded: Artifact) -> None:
    """What became of BatchNorm, the operators that are left, and how near they are to the unfolded graph."""
    facts = folded.facts
    left = f", {facts.batch_norms_left} left as Mul and Add" if facts.batch_norms_left else ""
    console.result(f"BatchNorm: {facts.batch_norms - facts.batch_norms_left} of {facts.batch_norms} folded{left}")
    console.result(f"opset {facts.opset}: {', '.join(f'{count} {name}' for name, count in facts.operators.items())}")
    console.result(f"largest difference to the unfolded graph: {facts.difference:.2g} of the largest logit")
