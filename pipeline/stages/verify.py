"""Put the test set through every form of a model and hold the answers against the gate and against each other."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np

from pipeline import console, runtimes
from pipeline.data import imagesets
from pipeline.data.imagesets import ImageSet
from pipeline.errors import UsageError
from pipeline.measure import statistics
from pipeline.records import code, manifest
from pipeline.records.forms import ModelCard
from pipeline.records.manifest import Artifact
from pipeline.records.reports import LabelledImages, Verification
from pipeline.stages import Data, OptionalOut, Provider, images

KIND, FILE = "verification", "verification.json"
BATCH = 500
SIGNIFICANT = 0.05  # McNemar's p under which a form that errs more often is worse, not unlucky


def run(
    *forms: Artifact,
    out: OptionalOut = None,
    data: Data = None,
    gate: Annotated[float | None, "Least test accuracy, 0 to 1; by default the model's own."] = None,
    provider: Provider = "cpu",
) -> Artifact:
    """Measure every form's test accuracy and its agreement with the checkpoint, and hold both against the gate.

    A form passes if its accuracy is at least the gate and it is not significantly worse (exact McNemar, p < 0.05) than
    the checkpoint or than the form it was made from.

    The verification's `failures` name those that don't pass, and why.
    """
    if gate is not None and not 0 <= gate <= 1:
        raise UsageError(f"--gate: expected a share from 0 to 1 such as 0.994, received {gate:g}")
    model = _one_model(forms)
    split = images(forms[0], data)
    gate_used = model.gate if gate is None else gate
    used = [reader for form in forms for reader in runtimes.readers(form.kind, provider)]
    answers = [answer for form in forms for answer in _answers(form, split, provider)]
    reference = _reference(answers, forms, split)
    rows = [
        row | _agreement(logits, split, reference) | _step(row, logits, forms, answers, split)
        for row, logits in answers
    ]
    failures = _ignoring(answers, split) + _spoilt(split, forms[0], data)
    failures += [problem for row in rows if (problem := _problem(row, gate_used, reference))]
    return manifest.write(
        out / FILE if out else None,
        None,
        facts=Verification(
            model=model.name,
            data=LabelledImages(name=split.name, images=len(split), digests=split.digests),
            gate=gate_used,
            compared_with=reference["name"],
            passed=not failures,
            failures=failures,
            rows=rows,
        ),
        parents={form.name: form.sha256 for form in forms} | split.digests,
        options=options(*forms, data=data, gate=gate, provider=provider),
        versions=manifest.versions("numpy", "scipy", *runtimes.packages(used)),
        code=code.digest(__name__),
    )


def options(
    *forms: Artifact, data: str | None = None, gate: float | None = None, provider: str = "cpu", **_: Any
) -> dict[str, Any]:
    """What a verification depends on besides the forms."""
    return {"gate": gate, "data": images(forms[0], data).digests} | (
        {"provider": provider} if provider != "cpu" else {}
    )


def _one_model(forms: tuple[Artifact, ...]) -> ModelCard:
    """The card of the model that all of these are forms of; UsageError if there is none."""
    if not forms:
        raise UsageError(
            "nothing to verify: expected a form of a model, or a folder with one; `pipeline run` makes them"
        )
    for form in forms:
        runtimes.readers(form.kind)
    cards = [form.facts.model for form in forms]
    for form, card in zip(forms, cards, strict=True):
        if card.name != cards[0].name:
            raise UsageError(f"{form.path}: is a form of {card.name}: expected {cards[0].name}, as the others are")
    if len({form.name for form in forms}) < len(forms):
        raise UsageError(f"{', '.join(str(form.path) for form in forms)}: two files of one name; expected one of each")
    for form in forms:
        if form.facts.reference != forms[0].facts.reference:
            raise UsageError(f"{form.path}: comes from another training than {forms[0].path}; verify them one by one")
    return cards[0]


def _answers(form: Artifact, split: ImageSet, provider: str) -> list[tuple[dict[str, Any], np.ndarray]]:
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


def _reference(answers: list, forms: tuple[Artifact, ...], split: ImageSet) -> dict[str, Any]:
    """What forms are compared with: the checkpoint if it is among them, else what it answered when it was trained,
    which every form has on record, else (on another data set) the first form.
    """
    for row, logits in answers:
        if row["kind"] == "checkpoint":
            return {"name": row["form"], "predictions": logits.argmax(1), "logits": logits}
    recorded = forms[0].facts.reference
    if recorded.digests == split.digests:
        predictions = split.labels.copy()
        for index, answer in recorded.wrong.items():
            predictions[int(index)] = answer
        return {"name": "the checkpoint's recorded answers", "predictions": predictions, "logits": None}
    row, logits = answers[0]
    return {"name": row["form"], "predictions": logits.argmax(1), "logits": logits}


def _agreement(logits: np.ndarray, split: ImageSet, reference: dict[str, Any]) -> dict[str, Any]:
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


def _discordant(answers: np.ndarray, others: np.ndarray, split: ImageSet) -> tuple[int, int]:
    """How many images only the other ones are right on, and how many only these are."""
    right, others_right = answers == split.labels, others == split.labels
    return int((others_right & ~right).sum()), int((right & ~others_right).sum())


def _step(row: dict, logits: np.ndarray, forms: tuple[Artifact, ...], answers: list, split: ImageSet) -> dict[str, Any]:
    """A form against the one it was made from, if that is here: its parent's name, and McNemar's p if it is worse."""
    parents = next(form.parents for form in forms if form.name == row["form"])
    for other, before in answers:
        if parents.get(other["form"]) == other["sha256"]:
            worse, better = _discordant(logits.argmax(1), before.argmax(1), split)
            return {"parent": other["form"], "parent_p": statistics.mcnemar(worse, better) if worse > better else 1.0}
    return {"parent": None, "parent_p": 1.0}


def _spoilt(split: ImageSet, form: Artifact, data: str | None) -> list[str]:
    """Reasons why the set is invalid for testing, unless it is the one that the model was measured on when trained."""
    card = form.facts.model
    if split.digests == form.facts.reference.digests:
        return []
    return imagesets.spoilt(split, (data or card.data, card.data), card.input, card.classes)


def _largest(difference: np.ndarray) -> float | None:
    largest = float(np.abs(difference).max())
    return largest if np.isfinite(largest) else None


def _ignoring(answers: list, split: ImageSet) -> list[str]:
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
    facts = verification.facts
    rows = [
        [
            row.form,
            f"{row.runtime}: {row.arithmetic}",
            f"{row.bytes / 1000:.1f} KB",
            f"{row.accuracy:.2%}",
            f"{row.interval[0]:.2%} – {row.interval[1]:.2%}",
            str(row.differ),
            f"{row.mcnemar_p:.3g}",
            "–" if row.largest_logit_difference is None else f"{row.largest_logit_difference:.2g}",
        ]
        for row in facts.rows
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
    title = f"{facts.data.name}, {facts.data.images:,} images; compared with {facts.compared_with}"
    console.table(headers, rows, title=title, spare=("size", "logits within", "McNemar p", "95 % interval"))
    verdict = "passed" if facts.passed else "FAILED"
    console.result(f"{verdict}: gate {facts.gate:.2%}")
