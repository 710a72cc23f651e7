"""The artifacts of a folder that go into a release, and every reason not to ship them.

Every file must match its record; an altered one never ships. Further reasons (the verification is missing, failed, or
was made for other bytes) are listed, expected and received. They name no folder, since they become part of the release.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.data import mnist
from pipeline.errors import CheckFailed, UsageError
from pipeline.records import manifest
from pipeline.records.forms import ModelCard
from pipeline.records.manifest import Artifact
from pipeline.stages import bench, export, fold, half, quantize, train, verify

REPORT = "device-report.json"  # what `deploy` writes
FORMS = (fold.KIND, half.KIND, quantize.KIND)  # the kinds that ship: an engine is for one device and made there


@dataclass
class Contents:
    """The artifacts of a release, and the reasons `against` shipping them. Of `ancestors` only the records ship."""

    forms: list[Artifact]
    ancestors: list[Artifact]
    verification: Artifact | None
    latency: Artifact | None
    history: Artifact | None
    against: list[str] = field(default_factory=list)
    boards: dict[str, Artifact] = field(default_factory=dict)  # reports of devices by name, for people alone

    @property
    def model(self) -> ModelCard:
        return self.forms[0].facts.model

    @property
    def line(self) -> list[Artifact]:
        """The forms and what they were made from, oldest first."""
        return [*self.ancestors, *self.forms]

    @property
    def reports(self) -> list[Artifact]:
        return [each for each in (self.verification, self.latency, self.history) if each]


def gather(folder: Path) -> Contents:
    """Read the ONNX files of a folder with their records, proof and latency.

    Raises UsageError if the folder has no ONNX file or those of several models, CheckFailed if anything is altered.
    """
    if folder.is_file():
        raise UsageError(f"{folder}: is a file: expected the folder it lies in, {folder.parent}")
    if not manifest.is_intact(folder):
        raise CheckFailed(f"{folder / manifest.FILE}: altered; {manifest.AGAIN}")
    artifacts = {(each.kind, each.name): each for each in map(manifest.read, manifest.recorded(folder))}
    forms = sorted((each for each in artifacts.values() if each.kind in FORMS), key=lambda each: FORMS.index(each.kind))
    verification = artifacts.get((verify.KIND, verify.FILE))
    if verification and len({form.facts.model.name for form in forms}) > 1:  # the last that a run went through
        forms = [form for form in forms if form.facts.model.name == verification.facts.model]
    if not forms:
        raise UsageError(f"{folder}: expected an ONNX file to ship, with its record; `pipeline run` makes it")
    models = {form.facts.model.name for form in forms}
    if len({form.kind for form in forms}) < len(forms) or len(models) > 1:
        names = ", ".join(form.name for form in forms)
        raise UsageError(f"{folder}: expected one file of a kind, all of one model, received {names}")
    contents = Contents(
        forms,
        _ancestors(forms, folder),
        verification=verification,
        latency=artifacts.get((bench.KIND, bench.FILE)),
        history=artifacts.get(("history", train.HISTORY.format(model=models.pop()))),
    )
    contents.against = list(_against(contents))
    return contents


def boards(folders: Sequence[Path], forms: list[Artifact]) -> dict[str, Artifact]:
    """Read the reports that `deploy` left in folders, by the folders' names.

    Raises UsageError for a folder without one and for two of one name, CheckFailed if a report was altered or is about
    other bytes.
    """
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        raise UsageError(f"--board: expected folders of different names, received {', '.join(map(str, folders))}")
    reports = {name: manifest.read(folder / REPORT) for name, folder in zip(names, folders, strict=True)}
    for name, report in reports.items():
        for form in forms:
            if report.parents.get(form.name, form.sha256) != form.sha256:
                received = report.parents[form.name]
                raise CheckFailed(
                    f"--board {name}: deployed another {form.name}: expected sha256 {form.sha256}, received {received}"
                )
        if not report.parents.keys() & {form.name for form in forms}:
            raise CheckFailed(f"--board {name}: deployed none of these files: expected {forms[0].name}")
    return reports


def _ancestors(forms: list[Artifact], folder: Path) -> list[Artifact]:
    """The records of what the forms were made from, oldest first."""
    ancestors: list[Artifact] = []
    waiting, names = list(forms), {form.name for form in forms}
    while waiting:
        for name in waiting.pop().parents:
            if name not in names and manifest.claimed_kind(folder / name):
                names.add(name)
                ancestors.insert(0, manifest.recall(folder / name))
                waiting.append(ancestors[0])
    return ancestors


def sources(line: Iterable[Artifact]) -> dict[str, str]:
    """sha256, by name, of what a line was made from and has no record of: pixels and labels."""
    names = {each.name for each in line}
    return {name: sha for each in line for name, sha in each.parents.items() if name not in names}


def _against(contents: Contents) -> Iterator[str]:
    yield from _chain_breaks([*contents.line, *([contents.history] if contents.history else [])])
    if contents.verification is None:
        yield f"{verify.FILE}: missing: expected the proof of these files; `pipeline verify` makes it"
    else:
        yield from proof_gaps(contents.verification, contents.forms)
    if contents.latency is None:
        yield f"{bench.FILE}: missing: expected these files' latency; `pipeline bench` without options measures it"
    else:
        yield from _other_bytes(contents.latency, contents.forms, "pipeline bench")


def _chain_breaks(line: list[Artifact]) -> Iterator[str]:
    """Yield where records, oldest first, do not lead from the pixels to each form."""
    published = {mnist.FILES[name] for name in mnist.names("train")}
    by_name = {each.name: each for each in line}
    for each in line:
        for parent, sha in each.parents.items():
            if parent in by_name and by_name[parent].sha256 != sha:
                received = by_name[parent].sha256
                yield f"{each.name}: made from another {parent}: expected sha256 {sha}, received {received}"
    for root in (each for each in line if not by_name.keys() & each.parents.keys()):
        adopted = root.kind == export.KIND and root.facts.adopted
        if not root.parents or not (root.kind == train.KIND or adopted):
            yield f"{root.name}: expected the record of what it was made from, {', '.join(root.parents) or 'unnamed'}"
        elif root.facts.model.data == "mnist" and not adopted and _pixels(root) != published:
            received = ", ".join(f"{name} {sha256[:12]}…" for name, sha256 in root.parents.items())
            yield f"{root.name}: expected all of MNIST as published (no --limit, no --hold-out), received {received}"


def _pixels(root: Artifact) -> set[str]:
    """Return the digests of what a checkpoint was trained on, but for a teacher's labels."""
    return set(root.parents.values()) - ({root.facts.taught.sha256} if root.facts.taught else set())


def proof_gaps(verification: Artifact, forms: list[Artifact]) -> Iterator[str]:
    """Yield why a verification does not prove that these files reach their model's gate on its test set."""
    facts, name = verification.facts, verification.name
    gate, reference = forms[0].facts.model.gate, forms[0].facts.reference
    if not facts.passed or facts.failures:
        yield f"{name}: failed: {'; '.join(facts.failures) or 'no reason on record'}"
    if facts.gate < gate:
        yield f"{name}: was checked against a gate of {facts.gate:.2%}: expected the model's {gate:.2%}"
    if facts.data.digests != reference.digests:
        made_with = f"{facts.data.name}, {facts.data.images} images"
        yield f"{name}: was made with {made_with}: expected {reference.name}, {reference.n} images"
    yield from _other_bytes(verification, forms, "pipeline verify")
    proven = {row.form for row in facts.rows if row.kind in FORMS}
    for missing in sorted(proven - {form.name for form in forms}):
        yield f"{missing}: missing: expected every ONNX file that {name} is about"


def _other_bytes(report: Artifact, forms: list[Artifact], command: str) -> Iterator[str]:
    """Yield which forms a report was not made for."""
    for form in forms:
        measured = {row.sha256 for row in report.facts.rows if row.form == form.name}
        parent = report.parents.get(form.name)
        if parent != form.sha256 or measured != {form.sha256}:
            yield (
                f"{report.name}: was made for other bytes of {form.name}: expected sha256 {form.sha256}, received "
                f"{parent or 'none'}; run `{command}` again"
            )
