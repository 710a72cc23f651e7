"""Export a checkpoint to ONNX as it is: preprocessing in front, BatchNorm still in it."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pipeline import console
from pipeline.errors import CheckFailed, UsageError, reason
from pipeline.graph import load, metadata, passes
from pipeline.graph import run as graphs
from pipeline.records.forms import ModelCard, Unfolded
from pipeline.records.manifest import Artifact
from pipeline.runtimes import classifier, pytorch
from pipeline.stages import Data, Out, describe, images, output, recorded, write_graph

if TYPE_CHECKING:
    import torch
    from onnx import ModelProto

KIND, FILE = "unfolded", "{model}.unfolded.onnx"
NEEDS = ("torch", "onnxscript", "onnxruntime")
PACKAGES = ("torch", "onnx", "onnxscript", "onnx-ir", "onnxruntime", "onnxruntime-gpu")
OPSETS = range(18, 24)  # PyTorch's exporter writes 18 and later; ONNX Runtime takes up to 23


def run(
    checkpoint: Artifact,
    *,
    out: Out,
    data: Data = None,
    opset: Annotated[int, f"ONNX operator set of the file, {OPSETS[0]} to {OPSETS[-1]}."] = 18,
) -> Artifact:
    """Export a checkpoint to an ONNX file that takes uint8 images [batch, c, h, w] and returns float32 logits.

    BatchNorm and the normalisation stay in the graph; `pipeline fold` removes them. The exported graph is compared with
    the checkpoint over the whole test set.

    Raises CheckFailed if the exporter fails, writes other inputs, outputs or operators than expected, or if a logit
    differs by more than 1e-4 of the largest.
    """
    expect(opset=opset)
    model = passes.strip(export(pytorch.network(checkpoint), checkpoint.facts.model, opset, str(checkpoint.path)))
    describe(model, checkpoint, f"{checkpoint.path}, exported")
    measured = images(checkpoint, data)
    with pytorch.load(checkpoint) as session:
        before = classifier.in_batches(session, measured.images)
    after = graphs.outputs(model, measured.images, str(checkpoint.path))
    difference = graphs.check_same(before, after, f"{checkpoint.path}: exported, a logit differs")
    return write_graph(
        output(out, FILE, checkpoint),
        model,
        checkpoint,
        Unfolded,
        stage=__name__,
        packages=PACKAGES,
        options=recorded(measured, opset=opset),
        batch_norms=passes.batch_norms(model),
        difference=difference,
    )


def expect(*, opset: int, **_: Any) -> None:
    """UsageError for an operator set that can't be written."""
    if opset not in OPSETS:
        raise UsageError(f"--opset {opset}: expected {OPSETS[0]} to {OPSETS[-1]}")


def options(checkpoint: Artifact, *, data: str | None, opset: int, **_: Any) -> dict[str, Any]:
    """Return what the file and its facts depend on besides the checkpoint."""
    return recorded(images(checkpoint, data), opset=opset)


def export(network: torch.nn.Module, card: ModelCard, opset: int, name: str) -> ModelProto:
    """Export a network behind Cast, Mul and Add of the pixels, and check the graph's ends and operators.

    Raises CheckFailed, in a line that begins with `name`, for what PyTorch can't export or the chain can't take.
    """
    import torch

    try:
        with _quiet():
            exported = torch.onnx.export(
                from_pixels(network, card.mean, card.std),
                (torch.zeros(2, *card.input, dtype=torch.uint8),),
                dynamo=True,
                optimize=False,
                external_data=False,
                opset_version=opset,
                input_names=[passes.IMAGES],
                output_names=[passes.LOGITS],
                dynamic_shapes=({0: torch.export.Dim(passes.BATCH)},),
                verbose=False,
            )
    except Exception as error:  # torch.export's errors share no narrower public base
        cause: BaseException = error
        while cause.__cause__:  # the outermost tells of the exporter's steps
            cause = cause.__cause__
        raise CheckFailed(f"{name}: PyTorch can't export it: {reason(cause)}") from error
    model = load.parse(exported.model_proto.SerializeToString(), f"{name}, exported")
    shape = ",".join(map(str, card.input))
    ends = [load.signature(value) for value in (*model.graph.input, *model.graph.output)]
    expected = [f"images uint8[batch,{shape}]", f"logits float32[batch,{len(card.classes)}]"]
    if ends != expected or metadata.opset(model) != opset:
        fixed = ""
        if ends[0].startswith("images uint8[2,"):
            fixed = "; forward() fixes the batch, as `len(x)`, `int(x.shape[0])` and loops over x do: use x.shape[0]"
        raise CheckFailed(
            f"{name}: exported as {', '.join(ends)}, opset {metadata.opset(model)}: expected {', '.join(expected)}, "
            f"opset {opset}{fixed}"
        )
    return model


def from_pixels(network: torch.nn.Module, mean: Sequence[float], std: Sequence[float]) -> torch.nn.Module:
    """The network in evaluation mode behind `pixel * scale + shift`, from uint8 images to logits `[n, classes]`."""
    import torch

    scale, shift = (torch.tensor(each, dtype=torch.float32).view(-1, 1, 1) for each in passes.normalisation(mean, std))

    class FromPixels(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network
            self.register_buffer("scale", scale)
            self.register_buffer("shift", shift)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.network(images.float() * self.scale + self.shift).flatten(1)

    return FromPixels().eval()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's deprecations and its remarks on opsets: what it wrote is checked."""
    logging.disable(logging.CRITICAL)
    try:
        silent = io.StringIO()
        with warnings.catch_warnings(), contextlib.redirect_stdout(silent), contextlib.redirect_stderr(silent):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def show(exported: Artifact) -> None:
    """The graph's operators, and how near it is to the checkpoint."""
    facts = exported.facts
    console.result(f"opset {facts.opset}: {', '.join(f'{count} {name}' for name, count in facts.operators.items())}")
    console.result(f"largest difference to the checkpoint: {facts.difference:.2g} of the largest logit")
