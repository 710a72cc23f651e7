"""Classify pictures; with folders named by label, measure accuracy."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from pipeline import console
from pipeline.data import pictures
from pipeline.errors import UsageError
from pipeline.machine import extras as installs
from pipeline.measure import statistics
from pipeline.records import manifest
from pipeline.records.manifest import Artifact
from pipeline.records.reports import Predictions
from pipeline.runtimes import classifier as models

KIND = "predictions"
NEEDS = ("onnxruntime", "PIL")
SHOWN = 40  # rows of a table; --json has them all
BATCH = 500


def run(
    *paths: Path,
    model: Annotated[Path, "The file that answers."] = Path("artifacts/mnist_cnn.onnx"),
    as_is: Annotated[bool, "Pictures are in the model's own size: pixels go in unchanged."] = False,
    threads: Annotated[int | None, "Threads to use; by default as many as there are cores."] = None,
) -> Artifact:
    """Classify pictures: PNG, JPEG, IDX files, or folders of them. Folders named by label give accuracy.

    A picture is resized to the model's input. Digits are prepared as MNIST's were: dark on light or light on dark, put
    into a 20 × 20 box and centred by mass; one digit a picture, on even paper.

    Pictures that can't be read are left out; the predictions' `failures` say which. Raises UsageError if none can be.
    """
    installs.require("predict", NEEDS)
    rows, bad = [], []
    with models.load(model, threads=threads) as loaded:
        found = pictures.find(paths, loaded.record.facts.model, as_is, bad)
        with console.progress(None, "image", "predict") as bar:
            while some := list(islice(found, BATCH)):
                rows += _rows(some, loaded)
                bar.update(len(some))
        record = loaded.record
    if not rows:
        raise UsageError("; ".join(bad))
    facts = {"model": record.name, "sha256": record.sha256, "images": len(rows), **_score(rows)}
    return manifest.write(None, None, facts=Predictions(**facts, failures=bad, rows=rows), parents=[record])


def _rows(some: list[pictures.Picture], loaded: models.Classifier) -> list[dict[str, Any]]:
    found = loaded.probabilities(np.stack([picture.pixels for picture in some]))
    return [
        {
            "image": picture.name,
            "label": picture.label,
            "prediction": None if picture.remark == pictures.NONE else loaded.classes[int(chances.argmax())],
            "remark": picture.remark,
            "probabilities": {name: round(float(p), 6) for name, p in zip(loaded.classes, chances, strict=True)},
        }
        for picture, chances in zip(some, found, strict=True)
    ]


def _score(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Accuracy over those that have a label, with its 95 % interval."""
    known = [row for row in rows if row["label"] is not None]
    if not known:
        return {}
    correct = sum(row["prediction"] == row["label"] for row in known)
    interval = list(statistics.wilson(correct, len(known)))
    return {"labelled": len(known), "correct": correct, "accuracy": correct / len(known), "interval": interval}


def show(predictions: Artifact) -> None:
    """A table of the pictures (of many, those that are wrong), then the score."""
    facts, rows = predictions.facts, predictions.facts.rows
    chosen = rows
    if len(rows) > SHOWN:
        chosen = [row for row in rows if row.label not in (None, row.prediction)] or rows
    table = []
    for row in chosen[:SHOWN]:
        (first, sure), (second, less) = sorted(row.probabilities.items(), key=lambda item: -item[1])[:2]
        told = [first, f"{sure:.1%}", f"{second} {less:.1%}"] if row.prediction else ["–"] * 3
        table.append([row.image, row.label or "–", *told, row.remark or ""])
    title = facts.model if len(chosen) == len(rows) else f"{facts.model}, those that are wrong"
    if table:
        headers = ["image", "label", "answer", "probability", "next", "remark"]
        if not any(row[-1] for row in table):
            headers, table = headers[:-1], [row[:-1] for row in table]
        console.table(headers, table, title=title, spare=("next",))
    if len(chosen) > SHOWN:
        console.result(f"and {len(chosen) - SHOWN} more; --json has them all")
    if facts.accuracy is not None:
        low, high = facts.interval
        console.result(
            f"accuracy {facts.accuracy:.2%} ({facts.correct:,} of {facts.labelled:,} with a label), "
            f"95 % interval {low:.2%} – {high:.2%}"
        )
