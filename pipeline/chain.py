"""The stages as one chain: what is fresh, what isn't and why, and a run that makes just the latter."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from pipeline import artifact, console, lock, lookup, runtimes, stages
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
        if wanted and parent.state == FRESH and FORMS in inputs(stage) and runtimes.unable(parent.artifact):
            continue  # what can't be run here can't be in a verification made here
        if wanted and parent.state != FRESH:
            return Link(name, path, STALE, f"{parent.path.name} is {parent.state}", found)
        if wanted and found.parents.get(parent.path.name) != parent.artifact.sha256:
            return Link(name, path, STALE, f"{parent.path.name} is another one now", found)
    return Link(name, path, FRESH, "; ".join(found.facts.get("failures", [])), found)


def refuse_altered(links: list[Link]) -> None:
    """CheckFailed if a link is altered, with what was expected and received."""
    if altered := [link.why for link in links if link.state == ALTERED]:
        raise CheckFailed("; ".join(altered))


def run(model: str, *, out: Path, force: bool = False, **options: Any) -> Iterator[Link]:
    """Run every stage whose parents or options aren't those on record; yields each link, made or fresh.

    What comes after a stage that was run is run, too, even if the same bytes came out: on a fresh clone, records of
    another machine are no measurement of this one.
    `options` are those of all stages, by name. A check that fails but leaves something to look at (a verification)
    is raised when every stage has had its turn.
    """
    lookup.check_writable(out)
    with lock.held(out):
        yield from _run(model, out, force, options)


def _run(model: str, out: Path, force: bool, options: Mapping[str, Any]) -> Iterator[Link]:
    failure: CheckFailed | None = None
    made: dict[str, Artifact] = {}
    done: set[str] = set()
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
        return lookup.runnable([form for kind, form in made.items() if kind in runtimes.kinds()])
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
