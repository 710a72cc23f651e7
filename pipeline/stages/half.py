"""Convert an ONNX graph to float16, weights and arithmetic, clear of float16's limits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from pipeline import console
from pipeline.errors import CheckFailed, UsageError
from pipeline.graph import calibration, edit, float16, load
from pipeline.graph.float16 import LARGEST, SMALLEST_NORMAL
from pipeline.records.forms import Half, Margins
from pipeline.records.manifest import Artifact
from pipeline.stages import Data, Out, describe, images, output, recorded, write_graph

if TYPE_CHECKING:
    from onnx import ModelProto

KIND, FILE = "half", "{model}.fp16.onnx"
NEEDS = ("onnxruntime",)


def run(
    folded: Artifact,
    *,
    out: Out,
    data: Data = None,
    headroom: Annotated[float, "Least ratio of float16's largest number, 65504, to the largest activation."] = 8.0,
) -> Artifact:
    """Convert weights and arithmetic to float16, with a cast after the input and one before the output.

    Every activation over all training images is measured: none may come within `headroom` of overflow. How much rounds
    to zero goes on record. The converted graph, rounded after every operator, is compared with the float32 one over the
    whole test set.

    Raises CheckFailed, naming the tensors, where a number would not fit.
    """
    expect(headroom=headroom)
    model, train, test = load.load(folded), images(folded, data, "train"), images(folded, data)
    sizes = _weights(str(folded.path), model)
    name = f"{folded.path}, converted to float16"
    half = describe(float16.half(model), folded, name)
    if wide := float16.float32_nodes(half):
        raise CheckFailed(f"{name}: {', '.join(wide)} would still be float32")
    margins = _margins(str(folded.path), sizes, calibration.ranges(model, train.images), headroom)
    return write_graph(
        output(out, FILE, folded),
        half,
        folded,
        Half,
        stage=__name__,
        packages=("onnx", "onnxruntime", "onnxruntime-gpu", "numpy"),
        options=recorded(train, test, headroom=headroom),
        difference=float16.difference(model, half, test.images, name),
        margins=margins,
    )


def expect(*, headroom: float, **_: Any) -> None:
    """UsageError for a headroom that no float16 number could have."""
    if not 1 <= headroom <= LARGEST:
        raise UsageError(f"--headroom {headroom:g}: expected 1 to {LARGEST:g}")


def options(folded: Artifact, *, data: str | None, headroom: float, **_: Any) -> dict[str, Any]:
    """Return what the file and its margins depend on besides the folded one."""
    return recorded(images(folded, data, "train"), images(folded, data), headroom=headroom)


def _weights(name: str, model: ModelProto) -> np.ndarray:
    """The magnitudes of a graph's weights. CheckFailed, by name, for those that float16 can't hold.

    What Clip or Pad alone reads isn't a weight: a bound or an edge of infinity, as float16 has it, does the same.
    """
    values, bounds = edit.weights(model), ("Clip", "Pad")
    read = [name for n in model.graph.node for name in (n.input[:1] if n.op_type in bounds else n.input)]
    weights = {n: values[n] for n in read if n in values and values[n].dtype == np.float32}
    _refuse(name, "weights that are not finite numbers", [n for n, w in weights.items() if not np.isfinite(w).all()])
    _refuse(name, f"weights over {LARGEST:g}", [n for n, w in weights.items() if (np.abs(w) > LARGEST).any()])
    return np.concatenate([np.zeros(0, np.float32), *(np.abs(value).ravel() for value in weights.values())])


def _refuse(name: str, problem: str, names: list[str]) -> None:
    if names:
        more = f" and {len(names) - 5} more" * (len(names) > 5)
        raise CheckFailed(f"{name}: in float16 it would have {problem}: {', '.join(names[:5])}{more}")


def _margins(name: str, weights: np.ndarray, ranges: dict[str, calibration.Range], headroom: float) -> Margins:
    """How far weights and activations stay from float16's limits. CheckFailed, by name, for activations that don't."""
    largest = max(seen.largest for seen in ranges.values())
    over = [f"{n} ({seen.largest:.3g})" for n, seen in ranges.items() if not seen.largest * headroom <= LARGEST]
    _refuse(name, f"activations over {LARGEST:g} / {headroom:g} (--headroom)", over)
    nonzero = weights[weights > 0]
    return Margins(
        largest_activation=largest,
        overflow_margin=LARGEST / largest if largest else LARGEST,
        weights=weights.size,
        weights_to_zero=int((nonzero <= calibration.TO_ZERO).sum()),
        weights_below_smallest_normal=int((nonzero < SMALLEST_NORMAL).sum()),
        images=max(seen.images for seen in ranges.values()),
        activations=sum(seen.values for seen in ranges.values()),
        activations_to_zero=sum(seen.to_zero for seen in ranges.values()),
    )


def show(half: Artifact) -> None:
    """The margins, and how near float16 is to float32."""
    margins = half.facts.margins
    console.result(
        f"float16 margins over {margins.images:,} images: largest activation {margins.overflow_margin:.0f} times under "
        f"overflow; {margins.activations_to_zero:,} of {margins.activations:,} activations and "
        f"{margins.weights_to_zero:,} of {margins.weights:,} weights round to zero"
    )
    console.result(
        "largest difference to float32, with one rounding an operator: "
        f"{half.facts.difference:.2g} of the largest logit"
    )
