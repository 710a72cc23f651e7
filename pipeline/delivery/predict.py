"""Pictures in, what the model takes them for out: probabilities, and accuracy where folders are named by label."""

from __future__ import annotations

import hashlib
import json
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from pipeline import console, installs, pictures, statistics
from pipeline import model as models
from pipeline.artifact import Artifact
from pipeline.errors import CheckFailed, UsageError

KIND = "predictions"
NEEDS = ("onnxruntime", "PIL")
SHOWN = 40  # rows of a table; --json has them all
BATCH = 500


def run(
    *paths: Path,
    model: Annotated[Path, "The file that answers."] = Path("artifacts/mnist_cnn.onnx"),
    as_is: Annotated[bool, "Pixels go in unchanged: 28 × 28, light on dark, as MNIST's."] = False,
    threads: Annotated[int | None, "Threads to use; by default as many as there are cores."] = None,
) -> Artifact:
    """Tell the digit in pictures: PNG, JPEG, IDX files, or folders of them; any size, dark on light or light on dark.

    Each is preprocessed as MNIST was: 20 × 20 box, centred by mass. One digit a picture, on even paper. Pictures in
    folders named by label give accuracy.

    Raises UsageError if nothing can be read; CheckFailed, with the answers to the rest, if some of several can't.
    """
    installs.require("predict", NEEDS)
    rows, bad = [], []
    with models.load(model, threads=threads) as loaded:
        found = pictures.find(paths, loaded.classes, as_is, bad)
        with console.progress(None, "image", "predict") as bar:
            while some := list(islice(found, BATCH)):
                rows += _rows(some, loaded)
                bar.update(len(some))
        facts = {"model": loaded.record.name, "sha256": loaded.record.sha256, "images": len(rows), **_score(rows)}
    if not rows:
        raise UsageError("; ".join(bad))
    content = json.dumps(rows).encode()
    facts |= {"left_out": bad, "rows": rows}
    made = Artifact(None, KIND, hashlib.sha256(content).hexdigest(), len(content), facts=facts)
    if bad:
        raise CheckFailed(f"{len(bad)} left out: {'; '.join(bad[:5])}{'; ...' * (len(bad) > 5)}", artifact=made)
    return made


def _rows(some: list[pictures.Picture], loaded: models.Model) -> list[dict[str, Any]]:
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
    facts, rows = predictions.facts, predictions.facts["rows"]
    chosen = rows
    if len(rows) > SHOWN:
        chosen = [row for row in rows if row["label"] not in (None, row["prediction"])] or rows
    table = []
    for row in chosen[:SHOWN]:
        (first, sure), (second, less) = sorted(row["probabilities"].items(), key=lambda item: -item[1])[:2]
        told = [first, f"{sure:.1%}", f"{second} {less:.1%}"] if row["prediction"] else ["–"] * 3
        table.append([row["image"], row["label"] or "–", *told, row["remark"] or ""])
    title = facts["model"] if len(chosen) == len(rows) else f"{facts['model']}, those that are wrong"
    if table:
        headers = ["image", "label", "answer", "probability", "next", "remark"]
        if not any(row[-1] for row in table):
            headers, table = headers[:-1], [row[:-1] for row in table]
        console.table(headers, table, title=title, spare=("next",))
    if len(chosen) > SHOWN:
        console.result(f"and {len(chosen) - SHOWN} more; --json has them all")
    if "accuracy" in facts:
        low, high = facts["interval"]
        console.result(
            f"accuracy {facts['accuracy']:.2%} ({facts['correct']:,} of {facts['labelled']:,} with a label), "
            f"95 % interval {low:.2%} – {high:.2%}"
        )
