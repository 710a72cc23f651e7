"""Resolve what a command was given: artifacts by name, by kind from a folder, or all forms of a folder."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from pipeline import chain, console, stages
from pipeline.errors import PipelineError, UsageError
from pipeline.records import disk, manifest
from pipeline.records.manifest import Artifact


def gather(stage: ModuleType, given: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """A stage's positional and keyword arguments from a command's. Artifacts that aren't named are looked for in the
    folder that is written to; where forms come from one folder, that is the folder that is written to, unless options
    were given or a form of the last time isn't here: such a look doesn't take the place of the proof.
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
            for path in paths:
                found += chain.runnable(chain.forms(path)) if path.is_dir() else [manifest.read(path)]
            if options["out"] is None and len(paths) == 1 and paths[0].is_dir():
                options["out"] = _proof_folder(stage, options, paths[0], found)
        else:
            found.append(_of_kind({name, *stage.ALSO}, given[name], options["out"], name))
    if options.get("out"):
        disk.check_writable(options["out"])
    return found, options


def _proof_folder(stage: ModuleType, options: Mapping[str, Any], folder: Path, forms: list[Artifact]) -> Path | None:
    defaults = stages.options(stage)
    reasons = [f"with --{name}" for name, value in options.items() if name != "out" and value != defaults[name]]
    with contextlib.suppress(PipelineError):  # no earlier result, or none that counts
        missing = {row.form for row in manifest.read(folder / stage.FILE).facts.rows} - {form.name for form in forms}
        reasons += [f"without {name}" for name in sorted(missing)]
    if not reasons:
        return folder
    console.say(f"{', '.join(reasons)} the result is only shown; --out {folder} also writes it")
    return None


def _of_kind(kinds: set[str], path: Path | None, folder: Path, kind: str) -> Artifact:
    """The named artifact, of one of these kinds; else the one of this kind in the folder."""
    if path is not None:
        found = manifest.read(path)
        if found.kind not in kinds:
            raise UsageError(f"{path}: is of kind {found.kind!r}: expected {' or '.join(map(repr, sorted(kinds)))}")
        return found
    there = [path for path in manifest.recorded(folder) if manifest.claimed_kind(path) == kind]
    if len(there) != 1:
        names = ", ".join(map(str, there)) or "none"
        raise UsageError(f"{folder}: expected one artifact of kind {kind!r}, received {names}; name the one to use")
    return manifest.read(there[0])
