"""Classify pictures; with folders named by label, measure accuracy."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from pipeline import console
from pipeline.data import digits, pictures
from pipeline.errors import UsageError
from pipeline.machine import extras as installs
from pipeline.measure import statistics
from pipeline.records import manifest
from pipeline.records.manifest import Artifact
from pipeline.records.reports import Prediction, Predictions
from pipeline.runtimes import classifier as models

NEEDS = ("onnxruntime", "PIL", "cv2")
# An answer to a found digit under SURE is doubtful: chosen on held-out training images.
SURE, UNSURE = 0.95, "unsure"
SHOWN = 40  # rows of a table; --json has them all


def run(
    *paths: Path,
    model: Annotated[Path, "Model file to use."] = Path("artifacts/mnist_cnn.onnx"),
    as_is: Annotated[bool, "Use the pixels unchanged; pictures must have the model's input size."] = False,
    one: Annotated[bool, "Take all the ink of a picture as one digit."] = False,
    strict: Annotated[bool, "Exit with 1 if an answer is doubtful, too: has a remark."] = False,
    threads: Annotated[int | None, "Threads to use; by default as many as there are cores."] = None,
) -> Artifact:
    """Classify pictures: what Pillow reads, IDX files, or folders of them. Folders named by label give accuracy.

    A picture is resized to the model's input. Of a model of digits, every digit in it is found, dark on light or light
    on dark, and prepared as MNIST's were: put into a 20 × 20 box and centred by mass. An answer that is doubtful has a
    remark, such as "other marks beside it" or "unsure".

    Every file and every frame of it is answered, or named and left out; the exit code is then 1.

    Raises UsageError if none can be read.
    """
    installs.require("predict", NEEDS)
    if threads is not None and threads < 1:
        raise UsageError(f"--threads: expected 1 or more, received {threads}")
    rows: list[Prediction] = []
    failures: list[str] = []
    with models.load(model, threads=threads) as loaded:
        record = loaded.record
        remaining = pictures.find(paths, record.facts.model, as_is, failures, one)
        if not (batch := list(islice(remaining, models.BATCH))):
            raise UsageError("; ".join(failures))
        with console.progress(None, "image", "predict") as bar:
            while batch:
                rows += _predictions(batch, loaded)
                bar.update(len(batch))
                batch = list(islice(remaining, models.BATCH))
    if strict:
        failures += [f"{row.image}: {row.remark}" for row in rows if row.remark]
    facts = Predictions(
        model=record.name, sha256=record.sha256, images=len(rows), **_score(rows), failures=failures, rows=rows
    )
    return manifest.write(None, None, facts=facts, parents=[record])


def _predictions(batch: list[pictures.Picture], loaded: models.Classifier) -> Iterator[Prediction]:
    probabilities = loaded.probabilities(np.stack([picture.pixels for picture in batch]))
    for picture, chances in zip(batch, probabilities, strict=True):
        yield Prediction(
            image=picture.name,
            label=picture.label,
            prediction=None if picture.remark == digits.NONE else loaded.classes[int(chances.argmax())],
            remark=picture.remark or (UNSURE if picture.box and chances.max() < SURE else None),
            probabilities={name: round(float(p), 6) for name, p in zip(loaded.classes, chances, strict=True)},
            box=list(picture.box) if picture.box else None,
        )


def _score(rows: list[Prediction]) -> dict[str, Any]:
    """Return the accuracy over rows that have a label, with its 95 % interval, as fields of Predictions."""
    labelled = [row for row in rows if row.label is not None]
    if not labelled:
        return {}
    n, correct = len(labelled), sum(row.prediction == row.label for row in labelled)
    interval = list(statistics.wilson(correct, n))
    return {"labelled": n, "correct": correct, "accuracy": correct / n, "interval": interval}


def show(predictions: Artifact) -> None:
    """Print a table of the pictures (of many, those that are wrong or doubtful), then the accuracy."""
    facts = predictions.facts
    chosen, title = facts.rows, facts.model
    if len(chosen) > SHOWN:
        telling = [row for row in chosen if row.remark or row.label not in (None, row.prediction)]
        if telling:
            chosen = sorted(telling, key=lambda row: row.label in (None, row.prediction))  # the wrong ones first
            title += ", those that are wrong or doubtful"
    table = []
    for row in chosen[:SHOWN]:
        (first, sure), (second, less) = sorted(row.probabilities.items(), key=lambda item: -item[1])[:2]
        cells = [first, f"{sure:.1%}", f"{second} {less:.1%}"] if row.prediction else ["–"] * 3
        box = "{} {} – {} {}".format(*row.box) if row.box else ""
        table.append([row.image, row.label or "–", *cells, box, row.remark or ""])
    headers = ["image", "label", "answer", "probability", "next", "box", "remark"]
    shown = [n for n, header in enumerate(headers) if n < 5 or any(row[n] for row in table)]
    table = [[row[n] for n in shown] for row in table]
    console.table([headers[n] for n in shown], table, title=title, spare=("next", "box"))
    if len(chosen) > SHOWN:
        console.result(f"and {len(chosen) - SHOWN} more; --json has them all")
    if facts.accuracy is not None:
        low, high = facts.interval
        console.result(
            f"accuracy {facts.accuracy:.2%} ({facts.correct:,} of {facts.labelled:,} with a label), "
            f"95 % interval {low:.2%} – {high:.2%}"
        )
