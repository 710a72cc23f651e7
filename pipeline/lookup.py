"""What a command was given in, a stage's arguments out: artifacts by name, by kind from a folder, or all forms."""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from pipeline import artifact, console, runtimes, stages
from pipeline.artifact import Artifact
from pipeline.errors import UsageError


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
        if parameter.kind is parameter.KEYWORD_ONLY:
            continue
        if name == "model":
            found.append(given[name])
        elif parameter.annotation == "Path":
            found += given[name] if parameter.kind is parameter.VAR_POSITIONAL else [given[name]]
        elif parameter.kind is parameter.VAR_POSITIONAL:
            paths = given[name] or (options["out"] or stages.DEFAULTS["out"],)
            if options["out"] is None and len(paths) == 1 and paths[0].is_dir():
                options["out"] = _proof_folder(stage, options, paths[0])
            for path in paths:
                found += runnable(forms(path)) if path.is_dir() else [artifact.read(path)]
        else:
            found.append(_of_kind({name, *getattr(stage, "ALSO", ())}, given[name], options["out"], name))
    if options.get("out"):
        check_writable(options["out"])
    return found, options


def runnable(some: list[Artifact]) -> list[Artifact]:
    """Those that this machine can run; says why it leaves out the others."""
    reasons = [runtimes.unable(form) for form in some]
    for reason in filter(None, reasons):
        console.say(f"left out: {reason}")
    return [form for form, reason in zip(some, reasons, strict=True) if not reason]


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
    try:
        tempfile.TemporaryDirectory(dir=there).cleanup()  # permissions don't tell: root has them where nothing can be
    except OSError:
        raise UsageError(f"--out {folder}: expected a folder that can be written to; {there} is none") from None


def _of_kind(kinds: set[str], path: Path | None, folder: Path, kind: str) -> Artifact:
    """The named artifact, of one of these kinds; else the one of this kind in the folder."""
    if path is not None:
        found = artifact.read(path)
        if found.kind not in kinds:
            raise UsageError(f"{path}: is of kind {found.kind!r}: expected {' or '.join(map(repr, sorted(kinds)))}")
        return found
    there = [path for path in artifact.recorded(folder) if artifact.claimed_kind(path) == kind]
    if len(there) != 1:
        names = ", ".join(map(str, there)) or "none"
        raise UsageError(f"{folder}: expected one artifact of kind {kind!r}, received {names}; name the one to use")
    return artifact.read(there[0])
