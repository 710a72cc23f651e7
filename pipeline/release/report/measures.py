"""What a report shows image by image: confusions, mistakes with probabilities, calibration.

Every file is run once more in ONNX Runtime, as its users run it, so no release relies on a record alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline import runtimes
from pipeline.data.imagesets import ImageSet
from pipeline.records.manifest import Artifact
from pipeline.runtimes import classifier, onnxruntime

BINS = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999, 1.0)  # edges of confidence; most answers are near 1
RECOUNT = 2  # images by which another processor's sums may change a score

Answers = dict[str, np.ndarray]  # each form's probabilities, float64 `[n, classes]`, by name


def answers(forms: Sequence[Artifact], split: ImageSet) -> Answers:
    """Run each form over a set of images."""
    probabilities = {}
    for form in forms:
        with onnxruntime.load(form, threads=1) as session:  # one thread: sums in one order
            probabilities[form.name] = classifier.softmax(classifier.in_batches(session, split.images))
    return probabilities


def against(answers: Answers, split: ImageSet, verification: Artifact, gate: float) -> list[str]:
    """Where answers contradict a verification, by its count of right ones, or miss the gate."""
    problems = []
    for name, probabilities in answers.items():
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


def summary(answers: Answers, split: ImageSet) -> dict[str, Any]:
    """What the report needs, as JSON types: confusion and calibration of the first form, mistakes of all."""
    first = next(iter(answers.values()))
    confusion = np.zeros([first.shape[1]] * 2, np.int64)  # counts by label (row) and answer (column)
    np.add.at(confusion, (split.labels, first.argmax(1)), 1)
    return {
        "confusion": confusion.tolist(),
        "calibration": calibration(first, split.labels),
        "mistakes": mistakes(answers, split.labels),
    }


def calibration(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """How often answers of a confidence are right: bins with count, mean confidence and right answers; their mean gap.

    The gap is the expected calibration error: Guo et al., On Calibration of Modern Neural Networks (2017), with bins
    narrower towards 1.
    """
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    bin_of = np.digitize(confidence, BINS[1:-1])
    bins = []
    for number in np.unique(bin_of):
        inside = bin_of == number
        mean = float(confidence[inside].mean())
        bins.append({"n": int(inside.sum()), "confidence": mean, "right": int(right[inside].sum())})
    gap = sum(abs(each["n"] * each["confidence"] - each["right"]) for each in bins) / len(labels)
    return {"bins": bins, "error": gap}


def mistakes(answers: Answers, labels: np.ndarray) -> list[dict[str, Any]]:
    """Every image that some form gets wrong: its label, each form's two likeliest answers, whether the forms differ."""
    predictions = np.stack([each.argmax(1) for each in answers.values()])
    rows = []
    for index in np.flatnonzero((predictions != labels).any(axis=0)).tolist():
        likeliest = {}
        for name, probabilities in answers.items():
            first_two = np.argsort(-probabilities[index], kind="stable")[:2]
            likeliest[name] = [[int(label), round(float(probabilities[index, label]), 3)] for label in first_two]
        differ = len(set(predictions[:, index])) > 1
        rows.append({"index": index, "label": int(labels[index]), "answers": likeliest, "differ": differ})
    return rows
