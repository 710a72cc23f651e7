"""Put the test set through every form of a model and hold the answers against the gate and against each other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np

from pipeline import console, runtimes
from pipeline.data import imagesets
from pipeline.data.imagesets import ImageSet
from pipeline.errors import UsageError
from pipeline.graph import run as graphs
from pipeline.measure import statistics
from pipeline.measure.statistics import SIGNIFICANT
from pipeline.records import code, manifest
from pipeline.records.forms import ModelCard
from pipeline.records.manifest import Artifact
from pipeline.records.reports import LabelledImages, Proven, Verification
from pipeline.runtimes import classifier, onnxruntime
from pipeline.stages import Data, OptionalOut, Provider, certify, images

KIND, FILE = "verification", "verification.json"


def run(
    *forms: Artifact,
    out: OptionalOut = None,
    data: Data = None,
    gate: Annotated[float | None, "Least test accuracy, 0 to 1; by default the model's own."] = None,
    provider: Provider = "cpu",
) -> Artifact:
    """Measure every form's test accuracy and its agreement with the checkpoint, and hold both against the gate.

    A form passes if its accuracy is at least the gate and it is not significantly worse (exact McNemar, p < 0.05) than
    the checkpoint or than the form it was made from. Forms that fail are listed with the reason; the exit code is 1.
    """
    expect(gate=gate, provider=provider)
    model = _one_model(forms)
    split = images(forms[0], data)
    gate_used = model.gate if gate is None else gate
    readers = [reader for form in forms for reader in runtimes.readers(form.kind, provider)]
    answers = [answer for form in forms for answer in _answers(form, split, provider)]
    reference = _reference(answers, split)
    rows = [_row(answer, reference, answers, split.labels) for answer in answers]
    failures = _ignoring(answers, split) + _spoilt(split, forms[0], data)
    failures += [problem for row in rows if (problem := _problem(row, gate_used, reference.name))]
    return manifest.write(
        out / FILE if out else None,
        None,
        facts=Verification(
            model=model.name,
            data=LabelledImages(name=split.name, images=len(split), digests=split.digests),
            gate=gate_used,
            compared_with=reference.name,
            passed=not failures,
            failures=failures,
            rows=rows,
            certified=[row for made in certify.proven(forms, split.digests) for row in certify.of_all_images(made)],
        ),
        parents={form.name: form.sha256 for form in forms} | split.digests,
        options=_recorded(forms, split, gate, provider),
        versions=manifest.versions("numpy", "scipy", *runtimes.packages(readers)),
        code=code.digest(__name__),
    )


def expect(*, gate: float | None, provider: str = "cpu", **_: Any) -> None:
    """UsageError unless a gate is a share, or left to the model; the provider has to load."""
    if gate is not None and not 0 <= gate <= 1:
        raise UsageError(f"--gate: expected a share from 0 to 1 such as 0.994, received {gate:g}")
    onnxruntime.expect(provider)


def options(
    *forms: Artifact, data: str | None = None, gate: float | None = None, provider: str = "cpu", **_: Any
) -> dict[str, Any]:
    """What a verification depends on besides the forms."""
    return _recorded(forms, images(forms[0], data), gate, provider)


def _recorded(forms: tuple[Artifact, ...], split: ImageSet, gate: float | None, provider: str) -> dict[str, Any]:
    certificates = {made.name: made.sha256 for made in certify.proven(forms, split.digests)}
    more = {"certificates": certificates} if certificates else {}
    return {"gate": gate, "data": split.digests} | ({"provider": provider} if provider != "cpu" else {}) | more


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
            raise UsageError(
                f"{form.path}: comes from a different training run than {forms[0].path}; verify them separately"
            )
    return cards[0]


@dataclass(frozen=True)
class _Answers:
    """What a form answered in a runtime: logits `[n, classes]`, predictions int `[n]`."""

    form: Artifact
    runtime: str
    arithmetic: str
    logits: np.ndarray

    @property
    def predictions(self) -> np.ndarray:
        return self.logits.argmax(1)


@dataclass(frozen=True)
class _Reference:
    """Predictions int `[n]` that forms are compared with, and logits `[n, classes]` where they are known."""

    name: str
    predictions: np.ndarray
    logits: np.ndarray | None = None


def _answers(form: Artifact, split: ImageSet, provider: str) -> Iterator[_Answers]:
    """A form's answers in every runtime that runs it."""
    for runtime, mode in runtimes.readers(form.kind, provider):
        with (
            runtime.load(form, mode=mode) as session,
            console.progress(len(split), "image", f"{form.name}, {mode}" if mode else form.name) as bar,
        ):
            logits = []
            for part in graphs.batches(split.images, classifier.BATCH):
                logits.append(session(part))
                bar.update(len(logits[-1]))
            yield _Answers(form, runtimes.title(runtime), session.arithmetic, np.concatenate(logits))


def _reference(answers: list[_Answers], split: ImageSet) -> _Reference:
    """The checkpoint's answers if it is among the forms, else those recorded when it was trained, which every form
    carries, else (on another data set) the first form's.
    """
    live = next((each for each in answers if each.form.kind == "checkpoint"), None)
    recorded = answers[0].form.facts.reference
    if live is None and recorded.digests == split.digests:
        predictions = split.labels.copy()
        for index, answer in recorded.wrong.items():
            predictions[int(index)] = answer
        return _Reference("the network's recorded answers", predictions)
    live = live or answers[0]
    return _Reference(live.form.name, live.predictions, live.logits)


def _row(answer: _Answers, reference: _Reference, answers: list[_Answers], labels: np.ndarray) -> Proven:
    """A form's score, how its answers differ from the reference's, and whether it is worse than the form before it."""
    form, logits, predictions = answer.form, answer.logits, answer.predictions
    correct = predictions == labels
    worse, better = statistics.discordant(predictions, reference.predictions, labels)
    parent = next((each for each in answers if form.parents.get(each.form.name) == each.form.sha256), None)
    lost, won = statistics.discordant(predictions, parent.predictions, labels) if parent else (0, 0)
    difference = float("nan") if reference.logits is None else float(np.abs(logits - reference.logits).max())
    return Proven(
        form=form.name,
        kind=form.kind,
        sha256=form.sha256,
        bytes=form.bytes,
        runtime=answer.runtime,
        arithmetic=answer.arithmetic,
        correct=int(correct.sum()),
        accuracy=float(correct.mean()),
        interval=list(statistics.wilson(int(correct.sum()), len(labels))),
        finite=bool(np.isfinite(logits).all()),
        differ=int((predictions != reference.predictions).sum()),
        worse=worse,
        better=better,
        mcnemar_p=statistics.mcnemar(worse, better),
        largest_logit_difference=difference if np.isfinite(difference) else None,
        wrong={str(index): int(predictions[index]) for index in np.flatnonzero(~correct)},
        parent=parent.form.name if parent else None,
        parent_p=statistics.mcnemar(lost, won) if lost > won else 1.0,
    )


def _spoilt(split: ImageSet, form: Artifact, data: str | None) -> list[str]:
    """Reasons why the set is invalid for testing, unless it is the one that the model was measured on when trained."""
    card = form.facts.model
    if split.digests == form.facts.reference.digests:
        return []
    return imagesets.spoilt(split, (data or card.data, card.data), card.input, card.classes)


def _ignoring(answers: list[_Answers], split: ImageSet) -> list[str]:
    """Forms that don't look at their input: on a set with one label, such a form could pass any gate."""
    if (split.images == split.images[:1]).all():
        return []
    same = [each for each in answers if (each.logits == each.logits[:1]).all()]
    return [f"{each.form.name} ({each.runtime}): gives the same logits whatever the image" for each in same]


def _problem(row: Proven, gate: float, reference: str) -> str | None:
    """Why a row fails, if it does."""
    name = f"{row.form} ({row.runtime}: {row.arithmetic})"
    if not row.finite:
        return f"{name}: gives logits that are not finite numbers"
    if row.accuracy < gate:
        return f"{name}: accuracy {row.accuracy:.2%} is under the gate of {gate:.2%}"
    if row.worse > row.better and row.mcnemar_p < SIGNIFICANT:
        return (
            f"{name}: is worse than {reference}: {row.worse} more errors, {row.better} fewer, "
            f"McNemar p = {row.mcnemar_p:.3g}"
        )
    if row.parent_p < SIGNIFICANT:
        return f"{name}: is worse than {row.parent}, which it was made from: McNemar p = {row.parent_p:.3g}"
    return None


def show(verification: Artifact) -> None:
    """The verification as a table for people."""
    facts, rows = verification.facts, []
    for row in facts.rows:
        cells = [row.form, f"{row.runtime}: {row.arithmetic}", console.size(row.bytes), f"{row.accuracy:.2%}"]
        cells += [f"{row.interval[0]:.2%} – {row.interval[1]:.2%}", str(row.differ), f"{row.mcnemar_p:.3g}"]
        within = row.largest_logit_difference
        rows.append([*cells, "–" if within is None else f"{within:.2g}"])
    headers = "form", "runtime: arithmetic", "size", "accuracy", "95 % interval", "differ", "McNemar p", "logits within"
    title = f"{facts.data.name}, {facts.data.images:,} images; compared with {facts.compared_with}"
    console.table(headers, rows, title=title, spare=("size", "logits within", "McNemar p", "95 % interval"))
    for proof in facts.certified:
        console.result(f"{proof.form}: at least {proof.at_least:.2%} under every execution {proof.execution}, proven")
    console.result(f"{'passed' if facts.passed else 'FAILED'}: gate {facts.gate:.2%}")
    statistics.remark_few(facts.data.name, facts.data.images, min(row.correct for row in facts.rows))
