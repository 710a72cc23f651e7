"""What a folder has for a release: forms, records, proof, and whatever stands against shipping them.

Every file must match its record; an altered one never ships. What stands against a release beyond that (the
verification is missing, failed, or was made for other bytes) is listed, expected and received.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.data import mnist
from pipeline.errors import UsageError
from pipeline.records import manifest
from pipeline.records.forms import ModelCard
from pipeline.records.manifest import Artifact
from pipeline.stages import bench, export, fold, half, train, verify

FORMS = (fold.KIND, half.KIND)  # the kinds that ship: an engine is for one device and made there


@dataclass(frozen=True)
class Contents:
    """What a folder has for a release. `ancestors` are records alone: their files stay at home."""

    forms: list[Artifact]
    ancestors: list[Artifact]
    verification: Artifact | None
    latency: Artifact | None
    history: Artifact | None
    against: list[str] = field(default_factory=list)

    @property
    def model(self) -> ModelCard:
        return self.forms[0].facts.model

    @property
    def reports(self) -> list[Artifact]:
        return [each for each in (self.verification, self.latency, self.history) if each]


def gather(folder: Path) -> Contents:
    """The ONNX files of a folder with their records, proof and latency.

    Raises UsageError if there is no ONNX file, or several models' are there; CheckFailed if anything is altered.
    """
    there = [manifest.read(path) for path in manifest.recorded(folder)]
    forms = sorted((each for each in there if each.kind in FORMS), key=lambda form: FORMS.index(form.kind))
    if not forms:
        raise UsageError(f"{folder}: expected an ONNX file to ship, with its record; `pipeline run` makes it")
    if len({form.kind for form in forms}) < len(forms) or len({form.facts.model.name for form in forms}) > 1:
        names = ", ".join(form.name for form in forms)
        raise UsageError(f"{folder}: expected one file of a kind, all of one model, received {names}")
    named = {each.name: each for each in there}
    history = named.get(train.HISTORY.format(model=forms[0].facts.model.name))
    found = Contents(forms, _ancestors(forms, folder), named.get(verify.FILE), named.get(bench.FILE), history)
    return Contents(**{**vars(found), "against": list(_against(found))})


def _ancestors(forms: list[Artifact], folder: Path) -> list[Artifact]:
    """The records of what the forms were made from, nearest last."""
    found: list[Artifact] = []
    line, known = list(forms), {form.name for form in forms}
    while line:
        for name in line.pop().parents:
            path = folder / name
            if name not in known and manifest.claimed_kind(path):
                known.add(name)
                found.insert(0, manifest.recall(path))
                line.append(found[0])
    return found


def _against(found: Contents) -> Iterator[str]:
    """By the files' names: it goes into what ships, where nobody needs to know the folder that they were made in."""
    yield from chain_breaks([*found.ancestors, *found.forms, *([found.history] if found.history else [])])
    if found.verification is None:
        yield f"{verify.FILE}: missing: expected the proof of these files; `pipeline verify` makes it"
    else:
        yield from proof_gaps(found.verification, found.forms)
    if found.latency is None:
        yield f"{bench.FILE}: missing: expected these files' latency; `pipeline bench` measures it"
    else:
        yield from _other_bytes(found.latency, found.forms, "pipeline bench")


def chain_breaks(line: list[Artifact]) -> Iterator[str]:
    """Where records, oldest first, don't hold each other: from the pixels to each form."""
    by_name = {each.name: each for each in line}
    for each in line:
        for parent, sha in each.parents.items():
            if parent in by_name and by_name[parent].sha256 != sha:
                received = by_name[parent].sha256
                yield f"{each.name}: made from another {parent}: expected sha256 {sha}, received {received}"
    for root in (each for each in line if not by_name.keys() & each.parents.keys()):
        adopted = root.kind == export.KIND and root.facts.adopted
        if root.kind != train.KIND and not adopted:
            yield f"{root.name}: expected the record of what it was made from, {', '.join(root.parents) or 'unnamed'}"
        elif not root.parents:
            yield f"{root.name}: expected on record what it was made from, received nothing"
        elif root.facts.model.data == "mnist" and not adopted and not _is_mnist(root):
            yield f"{root.name}: trained on {root.parents}: expected the published MNIST files"


def _is_mnist(checkpoint: Artifact) -> bool:
    return set(checkpoint.parents.values()) == {mnist.FILES[name] for name in mnist.names("train")}


def proof_gaps(verification: Artifact, forms: list[Artifact]) -> Iterator[str]:
    """Why a verification doesn't prove that these files reach their model's gate on its test set."""
    facts, name = verification.facts, verification.name
    gate, reference = forms[0].facts.model.gate, forms[0].facts.reference
    if not facts.passed or facts.failures:
        yield f"{name}: failed: {'; '.join(facts.failures) or 'no reason on record'}"
    if facts.gate < gate:
        yield f"{name}: was held against a gate of {facts.gate:.2%}: expected the model's {gate:.2%}"
    if facts.data.digests != reference.digests:
        yield (
            f"{name}: was made with {facts.data.name}, {facts.data.images} images: expected {reference.name}, "
            f"{reference.n} images"
        )
    yield from _other_bytes(verification, forms, "pipeline verify")
    proven = {row.form for row in facts.rows if row.kind in FORMS}
    for missing in sorted(proven - {form.name for form in forms}):
        yield f"{missing}: missing: expected every ONNX file that {name} is about"


def _other_bytes(report: Artifact, forms: list[Artifact], makes: str) -> Iterator[str]:
    for form in forms:
        rows = {row.sha256 for row in report.facts.rows if row.form == form.name}
        made_for = report.parents.get(form.name)
        if made_for != form.sha256 or rows != {form.sha256}:
            yield (
                f"{report.name}: was made for other bytes of {form.name}: expected sha256 {form.sha256}, received "
                f"{made_for or 'none'}; `{makes}` makes it anew"
            )
