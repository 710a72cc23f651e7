"""Quantise an ONNX graph to INT8 by explicit Q/DQ; layers that cost accuracy stay in float16."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline import console
from pipeline.data import imagesets
from pipeline.errors import CheckFailed, UsageError
from pipeline.graph import float16, load, quantization
from pipeline.graph import run as graphs
from pipeline.measure import statistics
from pipeline.records.forms import Quantized, QuantizedLayer
from pipeline.records.manifest import Artifact
from pipeline.stages import Data, Out, describe, images, output, recorded, write_graph

if TYPE_CHECKING:
    from onnx import ModelProto

    from pipeline.data.imagesets import ImageSet

KIND, FILE = "int8", "{model}.int8.onnx"
NEEDS = ("onnxruntime",)
HELD_OUT, CALIBRATION, COST = 10_000, 2000, 1000  # images to choose by, to calibrate on, to measure a layer's cost on


def run(folded: Artifact, *, out: Out, data: Data = None) -> Artifact:
    """Store weights as int8 and quantise activations, symmetrically, with QuantizeLinear and DequantizeLinear.

    Limits of the activations come from training images, and so do the mean errors that may be taken from the biases.
    The way to find them comes from other, held-out images: it is the one with the most right answers. While the graph
    is significantly worse on those than the float32 one (exact McNemar, p < 0.05), the layer that by itself changes the
    logits most stays in float16. What can't pass even so is written with the reason, and the exit code is 1. The test
    images choose nothing.
    """
    model, train, test = load.load(folded), images(folded, data, "train"), images(folded, data)
    if not quantization.layers(model):
        raise CheckFailed(f"{folded.path}: expected a convolution or matrix product with constant weights, for int8")
    if len(train) < 2:
        raise UsageError(f"{train.name}: has {len(train)} training image: expected 2 or more, some to choose by")
    card, name = folded.facts.model, f"{folded.path}, quantised"
    share = min(HELD_OUT, len(train) // 2)
    fit, held = imagesets.split(data or card.data, card.input, card.classes, share, CALIBRATION)
    counts = quantization.histograms(model, fit.images)
    search = _Search(model, held, name)
    ways: dict[str, tuple[Mapping[str, float], Mapping[str, np.ndarray]]] = {
        method: ({tensor: quantization.limit(*each, method) for tensor, each in counts.items()}, {})
        for method in quantization.METHODS
    }
    tried = {way: search.score(*ways[way]) for way in ways}
    limits, _ = ways[way := _best(tried)]
    ways[corrected := f"{way}-bias-corrected"] = limits, quantization.bias_errors(model, limits, fit.images)
    tried[corrected] = search.score(*ways[corrected])
    way = _best(tried)
    kept, score = [], tried[way]
    costs = search.costs(*ways[way]) if score.worse else {}
    dearest = sorted(costs, key=lambda each: -costs[each])
    for layer in dearest[:-1]:
        if not score.worse:
            break
        kept.append(layer)
        score = search.score(*ways[way], kept)
    limits, errors = ways[way]
    quantised = describe(quantization.quantize(model, limits, kept, errors), folded, name)
    return write_graph(
        output(out, FILE, folded),
        quantised,
        folded,
        Quantized,
        stage=__name__,
        packages=("onnx", "onnxruntime", "onnxruntime-gpu", "numpy", "scipy"),
        options=recorded(train, test),
        difference=float16.difference(model, quantised, test.images, name),
        method=way,
        methods={each: scored.correct for each, scored in tried.items()},
        layers=[
            QuantizedLayer(name=each, int8=each not in kept, cost=costs.get(each))
            for each in quantization.layers(model)
        ],
        scales=quantization.scales(quantised),
        weights=quantization.weights(quantised),
        calibrated_on=len(fit),
        held_out=len(held),
        correct_before=search.correct,
        correct=score.correct,
        p=score.p,
        failures=[
            f"{name}: in int8 it is worse than in float32, even with all layers but one in float16: {score.lost} more "
            f"errors and {score.won} fewer on {held.name}, McNemar p = {score.p:.3g}; {dearest[0]} costs most"
        ]
        if score.worse
        else [],
    )


class _Score:
    """How a quantised graph does on the held-out images: right answers, those lost and won, the logits' error."""

    def __init__(self, before: np.ndarray, after: np.ndarray, labels: np.ndarray) -> None:
        predictions = after.argmax(1)
        self.correct, self.error = int((predictions == labels).sum()), error(before, after)
        self.lost, self.won = statistics.discordant(predictions, before.argmax(1), labels)
        self.p = statistics.mcnemar(self.lost, self.won)
        self.worse = not np.isfinite(self.error) or (self.lost > self.won and self.p < statistics.SIGNIFICANT)


def _best(tried: Mapping[str, _Score]) -> str:
    """The way with the most right answers; of several, the one with the least error."""
    return min(tried, key=lambda way: (-tried[way].correct, tried[way].error))


def error(before: np.ndarray, after: np.ndarray) -> float:
    """Mean squared difference of logits relative to the mean square of the first; infinite if one isn't finite."""
    value = float(np.square(after.astype(np.float64) - before).mean() / (np.square(before).mean() or 1))
    return value if np.isfinite(value) else float("inf")


class _Search:
    """The float32 graph's answers on the held-out images, and quantised graphs held against them."""

    def __init__(self, model: ModelProto, held: ImageSet, name: str) -> None:
        self._model, self._held, self._name = model, held, name
        self._before = graphs.outputs(model, held.images, name)
        self.correct = int((self._before.argmax(1) == held.labels).sum())

    def score(self, limits: Mapping[str, float], errors: Mapping[str, np.ndarray], kept: Iterable[str] = ()) -> _Score:
        return _Score(self._before, self._outputs(limits, errors, kept, len(self._held)), self._held.labels)

    def costs(self, limits: Mapping[str, float], errors: Mapping[str, np.ndarray]) -> dict[str, float]:
        """The error of the logits, by layer, if that layer alone is quantised."""
        names, costs = list(quantization.layers(self._model)), {}
        with console.progress(len(names), "layer", "cost in int8") as bar:
            for name in names:
                after = self._outputs(limits, errors, [each for each in names if each != name], COST)
                costs[name] = min(error(self._before[:COST], after), 1e300)  # what a record can hold
                bar.update()
        return costs

    def _outputs(
        self, limits: Mapping[str, float], errors: Mapping[str, np.ndarray], kept: Iterable[str], n: int
    ) -> np.ndarray:
        model = quantization.quantize(self._model, limits, list(kept), errors)
        return graphs.outputs(model, self._held.images[:n], self._name)


def options(folded: Artifact, *, data: str | None, **_: Any) -> dict[str, Any]:
    """Return what the file depends on besides the folded one."""
    return recorded(images(folded, data, "train"), images(folded, data))


def show(quantized: Artifact) -> None:
    """Print what is in int8, what was left in float16 and why, and how the held-out images are answered."""
    facts = quantized.facts
    kept = [each for each in facts.layers if not each.int8]
    if kept:
        rows = [[each.name, "int8" if each.int8 else "float16", f"{each.cost:.2g}"] for each in facts.layers]
        console.table(["layer", "computes in", "logits' error alone"], rows, title=f"limits by {facts.method}")
    console.result(f"{len(facts.layers) - len(kept)} of {len(facts.layers)} layers in int8, limits by {facts.method}")
    console.result(
        f"{facts.correct:,} of {facts.held_out:,} held-out training images right, float32 {facts.correct_before:,}, "
        f"McNemar p = {facts.p:.3g}; {facts.weights:,} weights in int8, {facts.scales:,} scales"
    )
