"""The stages as one chain: what is fresh, what isn't and why, and a run that makes just the latter."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from pipeline import artifact, console, runtimes, stages
from pipeline.artifact import Artifact
from pipeline.errors import CheckFailed, PipelineError, UsageError

MADE, FRESH, STALE, MISSING, ALTERED = "made", "fresh", "stale", "missing", "altered"
FORMS = "*"


@dataclass(frozen=True)
class Link:
    """A stage's artifact in a folder: fresh, stale, missing or altered, or just made; `why` says so in words."""

    stage: str
    path: Path
    state: str
    why: str = ""
    artifact: Artifact | None = None


def inputs(stage: ModuleType) -> list[str]:
    """The kinds of artifact that a stage takes, by the names of its positional parameters; FORMS for `*forms`."""
    parameters = inspect.signature(stage.run).parameters.values()
    return [FORMS if p.kind is p.VAR_POSITIONAL else p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]


def status(folder: Path, model: str) -> list[Link]:
    """Each link of a model's chain in a folder, in order."""
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder; `pipeline run --out {folder}` makes it")
    links: list[Link] = []
    for name in stages.names():
        links.append(_link(stages.get(name), folder, model, links))
    return links + [_other(path) for path in artifact.recorded(folder) if path not in {link.path for link in links}]


def _other(path: Path) -> Link:
    """A file with a record that no stage is asked for by name, such as a training's history."""
    try:
        return Link("", path, FRESH, artifact=artifact.read(path))
    except CheckFailed as error:
        return Link("", path, ALTERED, str(error))


def _link(stage: ModuleType, folder: Path, model: str, earlier: list[Link]) -> Link:
    name, path = stages.title(stage), folder / stage.FILE.format(model=model)
    if not path.is_file():
        return Link(name, path, MISSING)
    try:
        found = artifact.read(path)
    except PipelineError as error:
        return Link(name, path, ALTERED, str(error))
    kinds = {kind for wanted in inputs(stage) for kind in (runtimes.kinds() if wanted == FORMS else {wanted})}
    for parent in earlier:
        wanted = parent.state != MISSING and stages.get(parent.stage).KIND in kinds
        if wanted and parent.state != FRESH:
            return Link(name, path, STALE, f"{parent.path.name} is {parent.state}", found)
        if wanted and found.parents.get(parent.path.name) != parent.artifact.sha256:
            return Link(name, path, STALE, f"{parent.path.name} is another one now", found)
    return Link(name, path, FRESH, "; ".join(found.facts.get("failures", [])), found)


def refuse_altered(links: list[Link]) -> None:
    """CheckFailed if a link is altered, with what was expected and received."""
    if altered := [link.why for link in links if link.state == ALTERED]:
        raise CheckFailed("; ".join(altered))


def forms(folder: Path) -> list[Artifact]:
    """Every form of a model that a folder holds, checked, in the order of the chain."""
    all_stages = [stages.get(name) for name in stages.names()]
    order = [stage.KIND for stage in all_stages]
    reports = {stage.FILE for stage in all_stages if stage.KIND not in runtimes.kinds()}  # can be made again
    wanted = {path for path in artifact.recorded(folder) if path.name not in reports}
    for stage in all_stages:  # so that a form without its record is refused, not passed over
        if stage.KIND in runtimes.kinds():
            wanted |= set(folder.glob(stage.FILE.format(model="*")))
    there = [artifact.read(path) for path in sorted(wanted)]
    found = [form for form in there if form.kind in runtimes.kinds()]
    return sorted(found, key=lambda form: order.index(form.kind) if form.kind in order else len(order))


def gather(stage: ModuleType, given: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """A stage's positional and keyword arguments from a command's. Artifacts that aren't named are looked for in the
    folder that is written to; where forms come from one folder, that is the folder that is written to, unless options
    were given: a look with another gate or data set doesn't take the place of the proof.
    """
    options = {name: given[name] for name in stages.options(stage)}
    found: list[Any] = []
    for name, parameter in inspect.signature(stage.run).parameters.items():
        if parameter.kind is parameter.VAR_POSITIONAL:
            paths = given[name] or (options["out"] or stages.DEFAULTS["out"],)
            if options["out"] is None and len(paths) == 1 and paths[0].is_dir():
                options["out"] = _proof_folder(stage, options, paths[0])
            found += [form for path in paths for form in (forms(path) if path.is_dir() else [artifact.read(path)])]
        elif name == "model":
            found.append(given[name])
        elif parameter.kind is not parameter.KEYWORD_ONLY:
            found.append(_of_kind(name, given[name], options["out"]))
    if options.get("out"):
        check_writable(options["out"])
    return found, options


def _proof_folder(stage: ModuleType, options: Mapping[str, Any], folder: Path) -> Path | None:
    defaults = stages.options(stage)
    given = [name for name, value in options.items() if name != "out" and value != defaults[name]]
    if not given:
        return folder
    console.say(
        f"with {', '.join(f'--{name}' for name in given)} the result is only shown; --out {folder} also writes it"
    )
    return None


def check_writable(folder: Path) -> None:
    """UsageError, before any work is done, if artifacts can't be written to a folder."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise UsageError(f"--out {folder}: expected a folder that can be written to; {there} is none")


def _of_kind(kind: str, path: Path | None, folder: Path) -> Artifact:
    if path is not None:
        found = artifact.read(path)
        if found.kind != kind:
            raise UsageError(f"{path}: is of kind {found.kind!r}: expected {kind!r}")
        return found
    there = [path for path in artifact.recorded(folder) if artifact.claimed_kind(path) == kind]
    if len(there) != 1:
        names = ", ".join(map(str, there)) or "none"
        raise UsageError(f"{folder}: expected one artifact of kind {kind!r}, received {names}; name the one to use")
    return _of_kind(kind, there[0], folder)


def run(model: str, *, out: Path, force: bool = False, **options: Any) -> Iterator[Link]:
    """Run every stage whose parents or options aren't those on record; yields each link, made or fresh.

    What comes after a stage that was run is run, too, even if the same bytes came out: on a fresh clone, records of
    another machine are no measurement of this one.
    `options` are those of all stages, by name. A check that fails but leaves something to look at (a verification)
    is raised when every stage has had its turn.
    """
    failure: CheckFailed | None = None
    made: dict[str, Artifact] = {}
    done: set[str] = set()
    check_writable(out)
    for name in stages.names():
        stage = stages.get(name)
        asked = {name: {**options, "out": out}.get(name, default) for name, default in stages.options(stage).items()}
        if hasattr(stage, "absent") and (reason := stage.absent(**asked)):
            console.say(f"{name:<8}left out: {reason}")
            continue
        given = [form for kind in inputs(stage) for form in _given(kind, model, made)]
        state = FRESH
        again = force or any(parent.kind in done for parent in given if isinstance(parent, Artifact))
        found = None if again else _on_record(stage, out / stage.FILE.format(model=model), given, asked)
        if found is None:
            state = MADE
            try:
                found = stage.run(*given, **asked)
            except CheckFailed as error:
                if error.artifact is None:
                    raise
                found, failure = error.artifact, failure or error
            done.add(stage.KIND)
        made[stage.KIND] = found
        yield Link(name, found.path, state, artifact=found)
    if failure:
        raise failure


def _given(kind: str, model: str, made: Mapping[str, Artifact]) -> list[Any]:
    if kind == FORMS:
        return [form for kind, form in made.items() if kind in runtimes.kinds()]
    return [model if kind == "model" else made[kind]]


def _on_record(stage: ModuleType, path: Path, given: list[Any], asked: dict[str, Any]) -> Artifact | None:
    """The artifact of an earlier run, if it is unaltered, passed, and was made from these parents and options."""
    try:
        found = artifact.read(path)
    except PipelineError:
        return None
    parents = {a.name: a.sha256 for a in given if isinstance(a, Artifact)}
    wanted = stage.options(*given, **asked) if hasattr(stage, "options") else asked
    wanted = json.loads(json.dumps(wanted, default=str))
    options = found.options == wanted if hasattr(stage, "options") else found.options.items() <= wanted.items()
    same = parents.items() <= found.parents.items() and options
    return found if same and not found.facts.get("failures") else None
