"""The stages as one chain: what is fresh, what isn't and why, and a run that makes just the latter."""

from __future__ import annotations

import contextlib
import inspect
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from pipeline import console, runtimes, stages
from pipeline.errors import CheckFailed, PipelineError, UsageError
from pipeline.records import code, disk, manifest
from pipeline.records.manifest import Artifact
from pipeline.training import models

MADE, FRESH, STALE, MISSING, ALTERED = "made", "fresh", "stale", "missing", "altered"
RECORDED = "recorded"  # unaltered, but of no stage that could tell whether it is fresh
FORMS = "*"


@dataclass(frozen=True)
class Link:
    """An artifact in a folder and its state: fresh, stale, missing, altered, or recorded; `why` says so in words."""

    stage: str
    path: Path
    state: str
    why: str = ""
    artifact: Artifact | None = None


def inputs(stage: ModuleType) -> list[str]:
    """The kinds of artifact that a stage takes, by the names of its positional parameters; FORMS for `*forms`."""
    parameters = inspect.signature(stage.run).parameters.values()
    return [FORMS if p.kind is p.VAR_POSITIONAL else p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]


def status(folder: Path, model: str | None = None) -> list[Link]:
    """Each link of a model's chain in a folder, in order; by default of the one model that the folder has."""
    model = model or _model(folder)
    links = [Link("adopt", folder / adopted.name, FRESH, "", adopted)] if (adopted := _adopted(folder, model)) else []
    for name in _stages(adopted):
        links.append(_link(stages.get(name), folder, model, links))
    others = [folder / name for name in manifest.names(folder)]
    return links + [_other(path) for path in others if path not in {link.path for link in links}]


def _model(folder: Path) -> str:
    """The model whose forms a folder has, by their records. UsageError if there are several."""
    found = set()
    for path in (folder / name for name in manifest.names(folder)):
        if manifest.claimed_kind(path) in runtimes.kinds():
            with contextlib.suppress(PipelineError):  # an altered record names nothing
                found.add(manifest.recall(path).facts.model.name)
    with contextlib.suppress(PipelineError):  # as a device's folder has it, which has no forms
        found = found or {manifest.read(folder / "verification.json").facts.model}
    if len(found) > 1:
        raise UsageError(f"{folder}: has forms of {', '.join(sorted(found))}: expected --model to name one")
    return next(iter(found), models.DEFAULT)


def _adopted(folder: Path, model: str) -> Artifact | None:
    """The adopted file that a model's chain begins with, if it is an adopted one."""
    path = folder / stages.get("export").FILE.format(model=model)
    if manifest.claimed_kind(path) != "unfolded":
        return None
    return manifest.read(path) if manifest.recall(path).facts.adopted else None


def _stages(adopted: Artifact | None) -> tuple[str, ...]:
    """The stages of a chain: all of them, or those after `export` if it begins with an adopted file."""
    names = stages.names()
    return names[names.index("export") + 1 :] if adopted else names


def _other(path: Path) -> Link:
    """A file with a record that no stage is asked for by name, such as a training's history."""
    if not path.is_file():
        return Link("", path, MISSING)
    try:
        return Link("", path, RECORDED, artifact=manifest.read(path))
    except CheckFailed as error:
        return Link("", path, ALTERED, str(error))


def _link(stage: ModuleType, folder: Path, model: str, earlier: list[Link]) -> Link:
    name, path = stages.title(stage), folder / stage.FILE.format(model=model)
    if not path.is_file():
        return Link(name, path, MISSING)
    try:
        made = manifest.read(path)
    except PipelineError as error:
        return Link(name, path, ALTERED, str(error))
    kinds = {kind for wanted in inputs(stage) for kind in (runtimes.kinds() if wanted == FORMS else {wanted})}
    parents = []
    for parent in earlier:
        if parent.state == MISSING or stages.get(parent.stage).KIND not in kinds:
            continue
        if parent.state != FRESH or parent.artifact is None:
            return Link(name, path, STALE, f"{parent.path.name} is {parent.state}", made)
        if FORMS in inputs(stage) and runtimes.unable(parent.artifact):
            continue  # what can't be run here can't be in a verification made here
        parents.append(parent.artifact)
    try:
        why = outdated(stage, made, model, parents)
    except UsageError as error:  # the model's file may not be here
        why = str(error)
    return Link(name, path, STALE if why else FRESH, why or "", made)


def outdated(
    stage: ModuleType,
    made: Artifact,
    model: str,
    parents: Iterable[Artifact],
    options: Mapping[str, Any] | None = None,
) -> str | None:
    """Why an artifact has to be made again; None if it is fresh.

    It is fresh if its parents, options, code and the versions of its libraries are those on record, and it passed.
    Without options, as `status` has none given, those on record are taken to be the wanted ones.
    """
    for parent in parents:
        if made.parents.get(parent.name) != parent.sha256:
            return f"{parent.name} has changed"
    if options is not None and options != made.options:
        names = [name for name in {**made.options, **options} if made.options.get(name) != options.get(name)]
        return f"made with other options: {', '.join(names)}"
    if made.code != code.digest(stage.__name__, *stage.sources(model)):
        return "made by different code" if made.code else "no code on record"
    here = manifest.versions(*made.versions)
    for package, version in made.versions.items():
        if package != "python" and here.get(package) != version:
            return f"made with {package} {version}, here: {here.get(package, 'none')}"
    return f"failed: {'; '.join(made.facts.failed)}" if made.facts.failed else None


def maker(artifact: Artifact) -> str:
    """The stage that makes artifacts of this kind."""
    return next(name for name in stages.names() if artifact.kind == stages.get(name).KIND)


def run(
    model: str, *, out: Path, force: bool = False, without: Collection[str] = (), **options: Any
) -> Iterator[tuple[Artifact, str]]:
    """Run every stage whose parents or options aren't those on record; yields each artifact and MADE or FRESH.

    Everything downstream of a stage that ran is rerun, even if its output is identical: measurements from another
    machine do not count here. `without` names stages to leave out; `options` are those of all stages, by name. An
    artifact that fails a check, such as a verification, says so in its facts, and the later stages run nevertheless.
    """
    from pipeline.stages import check

    disk.check_writable(out)
    if not manifest.is_intact(out):
        console.say(f"{out / manifest.FILE}: altered; what can't be read will be dropped: stop now to restore it")
    if needed := [name for name in without if name not in optional()]:
        raise UsageError(f"--without {needed[0]}: expected one of {', '.join(optional())}")
    for stage in map(stages.get, stages.names()):
        stage.expect(**_chosen(stage, out, options))
    if not _adopted(out, model):
        check.model(model)
    with disk.held(out):
        yield from _run(model, out, force, without, options)


def optional() -> list[str]:
    """The stages that a run may go without: those whose result no stage takes by name."""
    every = [stages.get(name) for name in stages.names()]
    taken = {kind for stage in every for kind in inputs(stage)}
    return [stages.title(stage) for stage in every if stage.KIND not in taken]


def _run(
    model: str, out: Path, force: bool, without: Collection[str], options: Mapping[str, Any]
) -> Iterator[tuple[Artifact, str]]:
    adopted = _adopted(out, model)
    made: dict[str, Artifact] = {adopted.kind: adopted} if adopted else {}
    done: set[str] = set()
    for name in _stages(adopted):
        stage = stages.get(name)
        if reason := "--without" if name in without else stage.absent(**_chosen(stage, out, options)):
            console.say(f"{name:<9}left out: {reason}")
            continue
        given = [form for kind in inputs(stage) for form in _given(kind, model, made)]
        again = force or any(parent.kind in done for parent in given if isinstance(parent, Artifact))
        made[stage.KIND], state = make(stage, given, model, out=out, again=again, **options)
        done |= {stage.KIND} if state == MADE else set()
        yield made[stage.KIND], state


def make(
    stage: ModuleType, given: list[Any], model: str, *, out: Path, again: bool = False, **options: Any
) -> tuple[Artifact, str]:
    """What a stage makes of what it is given, and MADE; or, unless `again`, that of an earlier run if fresh, FRESH."""
    chosen = _chosen(stage, out, options)
    artifact = None if again else _on_record(stage, out / stage.FILE.format(model=model), model, given, chosen)
    return (artifact, FRESH) if artifact else (stage.run(*given, **chosen), MADE)


def _chosen(stage: ModuleType, out: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """A stage's options: those given for the chain, and the defaults of the others."""
    return {name: {**options, "out": out}.get(name, default) for name, default in stages.options(stage).items()}


def _given(kind: str, model: str, made: Mapping[str, Artifact]) -> list[Any]:
    if kind == FORMS:
        return runnable([form for kind, form in made.items() if kind in runtimes.kinds()])
    return [model if kind == "model" else made[kind]]


def _on_record(stage: ModuleType, path: Path, model: str, given: list[Any], chosen: dict[str, Any]) -> Artifact | None:
    """The artifact of an earlier run, if it is unaltered and fresh."""
    try:
        artifact = manifest.read(path)
    except PipelineError:
        return None
    parents = [parent for parent in given if isinstance(parent, Artifact)]
    options = json.loads(json.dumps(stage.options(*given, **chosen)))
    return None if outdated(stage, artifact, model, parents, options) else artifact


def forms(folder: Path) -> list[Artifact]:
    """Every form of a model that a folder holds, checked, in the order of the chain."""
    all_stages = [stages.get(name) for name in stages.names()]
    order = [stage.KIND for stage in all_stages]
    reports = {stage.FILE for stage in all_stages if stage.KIND not in runtimes.kinds()}  # can be made again
    wanted = {path for path in manifest.recorded(folder) if path.name not in reports}
    for stage in all_stages:  # so that a form without its record is refused, not passed over
        if stage.KIND in runtimes.kinds():
            wanted |= set(folder.glob(stage.FILE.format(model="*")))
    found = [form for form in map(manifest.read, sorted(wanted)) if form.kind in runtimes.kinds()]
    return sorted(found, key=lambda form: order.index(form.kind) if form.kind in order else len(order))


def runnable(some: list[Artifact]) -> list[Artifact]:
    """Those that this machine can run; says why it leaves out the others."""
    reasons = [runtimes.unable(form) for form in some]
    for reason in filter(None, reasons):
        console.say(f"left out: {reason}")
    return [form for form, reason in zip(some, reasons, strict=True) if not reason]
