"""What a report shows image by image: confusions, mistakes with probabilities, calibration.

Every file is run once more, in ONNX Runtime, as its users run it: so a release is never built on a claim alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline import runtimes
from pipeline.data.imagesets import ImageSet
from pipeline.records.manifest import Artifact
from pipeline.runtimes import classifier as model
from pipeline.runtimes import onnxruntime

BINS = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999, 1.0)  # edges of confidence; most answers are near 1
RECOUNT = 2  # images by which another processor's sums may change a score


def answers(forms: list[Artifact], split: ImageSet) -> dict[str, np.ndarray]:
    """Each form's probabilities float64 `[n, classes]`, by name."""
    found = {}
    for form in forms:
        with onnxruntime.load(form, threads=1) as session:  # one thread: sums in one order
            found[form.name] = model.softmax(model.in_batches(session, split.images))
    return found


def against(found: dict[str, np.ndarray], split: ImageSet, verification: Artifact, gate: float) -> list[str]:
    """Where what was just measured contradicts a verification: its count of right answers, or the gate."""
    problems = []
    for name, probabilities in found.items():
        correct = int((probabilities.argmax(1) == split.labels).sum())
        rows = [row for row in verification.facts.rows if row.form == name]
        claimed = {row.correct for row in rows if row.runtime == runtimes.title(onnxruntime)}
        if not any(abs(correct - count) <= RECOUNT for count in claimed):
            problems.append(
                f"{name}: {correct} right when shipped: expected {sorted(claimed)}, as {verification.name} says"
            )
        if correct / len(split) < gate:
            problems.append(f"{name}: accuracy {correct / len(split):.2%} when shipped is under the gate of {gate:.2%}")
    return problems


def summary(found: dict[str, np.ndarray], split: ImageSet) -> dict[str, Any]:
    """What the report needs, in JSON types: of the first form confusions and calibration, of all forms the mistakes."""
    first = next(iter(found.values()))
    return {
        "confusion": confusion(first.argmax(1), split.labels, first.shape[1]),
        "calibration": calibration(first, split.labels),
        "mistakes": mistakes(found, split.labels),
    }


def confusion(predictions: np.ndarray, labels: np.ndarray, classes: int) -> list[list[int]]:
    """Counts by label (row) and answer (column)."""
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (labels, predictions), 1)
    return counts.tolist()


def calibration(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """How often answers of a confidence are right: bins with count, mean confidence, accuracy; and their mean gap.

    The gap is the expected calibration error: Guo et al., On Calibration of Modern Neural Networks (2017), with bins
    narrower towards 1.
    """
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    which = np.digitize(confidence, BINS[1:-1])
    bins = []
    for index in range(len(BINS) - 1):
        inside = which == index
        if n := int(inside.sum()):
            bins.append({"n": n, "confidence": float(confidence[inside].mean()), "right": int(right[inside].sum())})
    gap = sum(abs(each["n"] * each["confidence"] - each["right"]) for each in bins) / len(labels)
    return {"bins": bins, "error": gap}


def mistakes(found: dict[str, np.ndarray], labels: np.ndarray) -> list[dict[str, Any]]:
    """Every image that some form gets wrong: its label, each form's two likeliest answers, whether the forms differ."""
    predictions = {name: each.argmax(1) for name, each in found.items()}
    wrong = np.flatnonzero(np.any([each != labels for each in predictions.values()], axis=0))
    rows = []
    for index in map(int, wrong):
        said = {}
        for name, probabilities in found.items():
            likeliest = np.argsort(-probabilities[index], kind="stable")[:2]
            said[name] = [[int(digit), round(float(probabilities[index, digit]), 3)] for digit in likeliest]
        differ = len({int(each[index]) for each in predictions.values()}) > 1
        rows.append({"index": index, "label": int(labels[index]), "answers": said, "differ": differ})
    return rows
