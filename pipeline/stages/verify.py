"""Every form of the model in, verification out: the test set through each runtime, against the gate and each other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from pipeline import artifact, console, dataset, runtimes, stages, statistics
from pipeline.artifact import Artifact
from pipeline.dataset import Split
from pipeline.errors import CheckFailed, UsageError
from pipeline.stages import OptionalOut, Provider, TestData

ORDER = 60
KIND, FILE = "verification", "verification.json"
BATCH = 500
SIGNIFICANT = 0.05  # McNemar's p under which a form that errs more often is worse, not unlucky


def run(
    *forms: Artifact,
    out: OptionalOut = None,
    data: TestData,
    gate: Annotated[float | None, "Least test accuracy, 0 to 1; by default the model's own."] = None,
    provider: Provider = "cpu",
) -> Artifact:
    """Measure every form's test accuracy and its agreement with the checkpoint, and hold both against the gate.

    A form passes if its accuracy is at least the gate and it is not significantly worse (exact McNemar, p < 0.05) than
    the checkpoint or than the form it was made from.

    Raises CheckFailed, with the verification in it, naming those that don't pass.
    """
    if gate is not None and not 0 <= gate <= 1:
        raise UsageError(f"--gate: expected a share from 0 to 1 such as 0.994, received {gate:g}")
    split = dataset.test(data)
    model = _one_model(forms, split)
    gate_used = model["gate"] if gate is None else gate
    used = [reader for form in forms for reader in runtimes.readers(form.kind, provider)]
    answers = [answer for form in forms for answer in _answers(form, split, provider)]
    reference = _reference(answers, forms, split)
    rows = [
        row | _agreement(logits, split, reference) | _step(row, logits, forms, answers, split)
        for row, logits in answers
    ]
    failures = _ignoring(answers, split) + _spoilt(split)
    failures += [problem for row in rows if (problem := _problem(row, gate_used, reference))]
    found = {
        "model": model["name"],
        "data": {"name": split.name, "images": len(split), "sha256": split.digests},
        "gate": gate_used,
        "compared_with": reference["name"],
        "passed": not failures,
        "failures": failures,
        "rows": rows,
    }
    made = artifact.write(
        out / FILE if out else None,
        (json.dumps(found, indent=1) + "\n").encode(),
        kind=KIND,
        parents={form.name: form.sha256 for form in forms} | split.digests,
        options=options(data=data, gate=gate, provider=provider),
        versions=artifact.versions("numpy", "scipy", *runtimes.packages(used)),
        facts=found,
    )
    if failures:
        raise CheckFailed("; ".join(failures), artifact=made)
    return made


def options(*_: Artifact, data: Path, gate: float | None, provider: str = "cpu", **__: Any) -> dict[str, Any]:
    """What a verification depends on besides the forms."""
    return {"gate": gate, "data": dataset.digests(data)} | ({"provider": provider} if provider != "cpu" else {})


def _one_model(forms: tuple[Artifact, ...], split: Split) -> dict[str, Any]:
    """The card of the model that all of these are forms of; UsageError if there is none, or the images don't fit it."""
    if not forms:
        raise UsageError(
            "nothing to verify: expected a form of a model, or a folder with one; `pipeline run` makes them"
        )
    for form in forms:
        runtimes.readers(form.kind)
    cards = [form.facts["model"] for form in forms]
    for form, card in zip(forms, cards, strict=True):
        if card["name"] != cards[0]["name"]:
            raise UsageError(
                f"{form.path}: is a form of {card['name']}: expected {cards[0]['name']}, as the others are"
            )
    if len({form.name for form in forms}) < len(forms):
        raise UsageError(f"{', '.join(str(form.path) for form in forms)}: two files of one name; expected one of each")
    for form in forms:
        if form.facts["reference"] != forms[0].facts["reference"]:
            raise UsageError(f"{form.path}: comes from another training than {forms[0].path}; verify them one by one")
    shape, classes = list(split.images.shape[1:]), len(cards[0]["classes"])
    if shape != cards[0]["input"]:
        raise UsageError(f"{split.name}: images are {shape}: {cards[0]['name']} expects {cards[0]['input']}")
    if not (split.labels.min() >= 0 and split.labels.max() < classes):
        raise UsageError(
            f"{split.name}: labels go from {split.labels.min()} to {split.labels.max()}: expected 0 to {classes - 1}"
        )
    return cards[0]


def _answers(form: Artifact, split: Split, provider: str) -> list[tuple[dict[str, Any], np.ndarray]]:
    """A row and the logits `[n, classes]` for each way there is to run a form."""
    found = []
    for runtime, mode in runtimes.readers(form.kind, provider):
        name = runtimes.title(runtime)
        with runtime.load(form, mode=mode) as session:
            with console.progress(len(split), "image", form.name if not mode else f"{form.name}, {mode}") as bar:
                logits = []
                for start in range(0, len(split), BATCH):
                    logits.append(session(split.images[start : start + BATCH]))
                    bar.update(len(logits[-1]))
            row = {"form": form.name, "kind": form.kind, "bytes": form.bytes, "sha256": form.sha256}
            found.append((row | {"runtime": name, "arithmetic": session.arithmetic}, np.concatenate(logits)))
    return found


def _reference(answers: list, forms: tuple[Artifact, ...], split: Split) -> dict[str, Any]:
    """What forms are compared with: the checkpoint if it is among them, else what it answered when it was trained,
    which every form has on record, else (on another data set) the first form.
    """
    for row, logits in answers:
        if row["kind"] == "checkpoint":
            return {"name": row["form"], "predictions": logits.argmax(1), "logits": logits}
    recorded = forms[0].facts["reference"]
    if recorded["sha256"] == split.digests:
        predictions = split.labels.copy()
        for index, answer in recorded["wrong"].items():
            predictions[int(index)] = answer
        return {"name": "the checkpoint's recorded answers", "predictions": predictions, "logits": None}
    row, logits = answers[0]
    return {"name": row["form"], "predictions": logits.argmax(1), "logits": logits}


def _agreement(logits: np.ndarray, split: Split, reference: dict[str, Any]) -> dict[str, Any]:
    """A form's score, and how its answers differ from the reference's."""
    predictions, compared = logits.argmax(1), reference["logits"]
    right = predictions == split.labels
    worse, better = _discordant(predictions, reference["predictions"], split)
    return {
        "correct": int(right.sum()),
        "accuracy": float(right.mean()),
        "interval": list(statistics.wilson(int(right.sum()), len(split))),
        "finite": bool(np.isfinite(logits).all()),
        "differ": int((predictions != reference["predictions"]).sum()),
        "worse": worse,
        "better": better,
        "mcnemar_p": statistics.mcnemar(worse, better),
        "largest_logit_difference": None if compared is None else _largest(logits - compared),
        "wrong": {str(index): int(predictions[index]) for index in np.flatnonzero(~right)},
    }


def _discordant(answers: np.ndarray, others: np.ndarray, split: Split) -> tuple[int, int]:
    """How many images only the other ones are right on, and how many only these are."""
    right, others_right = answers == split.labels, others == split.labels
    return int((others_right & ~right).sum()), int((right & ~others_right).sum())


def _step(row: dict, logits: np.ndarray, forms: tuple[Artifact, ...], answers: list, split: Split) -> dict[str, Any]:
    """A form against the one it was made from, if that is here: its parent's name, and McNemar's p if it is worse."""
    parents = next(form.parents for form in forms if form.name == row["form"])
    for other, before in answers:
        if parents.get(other["form"]) == other["sha256"]:
            worse, better = _discordant(logits.argmax(1), before.argmax(1), split)
            return {"parent": other["form"], "parent_p": statistics.mcnemar(worse, better) if worse > better else 1.0}
    return {"parent": None, "parent_p": 1.0}


def _spoilt(split: Split) -> list[str]:
    """Why a set of one's own is no test set; that it can't be held against the training images, where that is so, is
    said."""
    if split.digests == dataset.TEST:
        return []
    seen = dataset.training_images(stages.DEFAULTS["data"])
    if seen is None:
        console.say(
            f"{split.name}: not held against MNIST's training images, which aren't in {stages.DEFAULTS['data']}/ here"
        )
    return dataset.spoilt(split, seen)


def _largest(difference: np.ndarray) -> float | None:
    largest = float(np.abs(difference).max())
    return largest if np.isfinite(largest) else None


def _ignoring(answers: list, split: Split) -> list[str]:
    """Forms that don't look at their input: on a set with one label, such a one could pass any gate."""
    if (split.images == split.images[:1]).all():
        return []
    same = [row for row, logits in answers if (logits == logits[:1]).all()]
    return [f"{row['form']} ({row['runtime']}): gives the same logits whatever the image" for row in same]


def _problem(row: dict[str, Any], gate: float, reference: dict[str, Any]) -> str | None:
    name = f"{row['form']} ({row['runtime']}: {row['arithmetic']})"
    if not row["finite"]:
        return f"{name}: gives logits that are not finite numbers"
    if row["accuracy"] < gate:
        return f"{name}: accuracy {row['accuracy']:.2%} is under the gate of {gate:.2%}"
    if row["worse"] > row["better"] and row["mcnemar_p"] < SIGNIFICANT:
        return (
            f"{name}: is worse than {reference['name']}: {row['worse']} more errors, {row['better']} fewer, "
            f"McNemar p = {row['mcnemar_p']:.3g}"
        )
    if row["parent_p"] < SIGNIFICANT:
        return f"{name}: is worse than {row['parent']}, which it was made from: McNemar p = {row['parent_p']:.3g}"
    return None


def show(verification: Artifact) -> None:
    """The verification as a table for people."""
    found = verification.facts
    rows = [
        [
            row["form"],
            f"{row['runtime']}: {row['arithmetic']}",
            f"{row['bytes'] / 1000:.1f} KB",
            f"{row['accuracy']:.2%}",
            f"{row['interval'][0]:.2%} – {row['interval'][1]:.2%}",
            str(row["differ"]),
            f"{row['mcnemar_p']:.3g}",
            "–" if row["largest_logit_difference"] is None else f"{row['largest_logit_difference']:.2g}",
        ]
        for row in found["rows"]
    ]
    headers = [
        "form",
        "runtime: arithmetic",
        "size",
        "accuracy",
        "95 % interval",
        "differ",
        "McNemar p",
        "logits within",
    ]
    title = f"{found['data']['name']}, {found['data']['images']:,} images; compared with {found['compared_with']}"
    console.table(headers, rows, title=title, spare=("size", "logits within", "McNemar p", "95 % interval"))
    verdict = "passed" if found["passed"] else "FAILED"
    console.result(f"{verdict}: gate {found['gate']:.2%}")
