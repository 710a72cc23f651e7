"""The stages, one file each, found by listing this folder; here is what their signatures share.

A stage file has `ORDER` (its place in the chain), `KIND` and `FILE` (what it makes) and one public function `run`:
positional parameters are artifacts, named by kind (`*forms` takes any that a runtime runs), keyword-only ones are
options, each with its help text. `pipeline.cli` makes the command from that signature, `pipeline.chain` the chain.
A stage may also define `options(...)`, what goes on record for given options, `show(artifact)`, tables for people, and
`absent(...)`, for given options the reason why this machine can't do it, for which the chain leaves it out. `NEEDS`
are the modules it imports besides those of the base install, and `missing()` tells what it needs that isn't a module.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

from pipeline.artifact import Artifact

Out = Annotated[Path, "Folder that artifacts are written to."]
OptionalOut = Annotated[Path | None, "Folder that the result is written to; by default the one that was looked at."]
Data = Annotated[Path, "Folder with MNIST in it, or to fetch it into."]
TestData = Annotated[Path, "Folder with MNIST, or a labelled set: an .npz, or an IDX image file beside its labels."]

Provider = Annotated[
    Literal["cpu", "cuda", "tensorrt"], "ONNX Runtime's execution provider; one that doesn't load is an error."
]

DEFAULTS = {"out": Path("artifacts"), "data": Path("data")}  # for the command line; Python callers give them


def names() -> list[str]:
    """Names of the stages there are, in the order of the chain; none of them is imported."""
    return sorted((module.name for module in pkgutil.iter_modules(__path__)), key=_order)


def get(name: str) -> ModuleType:
    """The stage file called `name`, imported."""
    return importlib.import_module(f"{__name__}.{name}")


def summary(name: str, package: ModuleType | None = None) -> str:
    """The sentence that a stage's file (or another package's) opens with, read without importing it."""
    return (ast.get_docstring(_source(name, package)) or "").partition("\n")[0]


def title(stage: ModuleType) -> str:
    """The stage's name without its package."""
    return stage.__name__.rpartition(".")[2]


def options(stage: ModuleType) -> dict[str, Any]:
    """A stage's options by name, each with its default on the command line."""
    parameters = inspect.signature(stage.run).parameters.values()
    keywords = [parameter for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    return {p.name: DEFAULTS[p.name] if p.default is p.empty else p.default for p in keywords}


def card(parent: Artifact) -> dict[str, Any]:
    """The facts that travel down the chain: the model's card, and the answers that every later form is held against."""
    return {name: parent.facts[name] for name in ("model", "reference")}


def output(out: Path, file: str, parent: Artifact) -> Path:
    """Where a stage's artifact goes."""
    return out / file.format(model=parent.facts["model"]["name"])


def _source(name: str, package: ModuleType | None = None) -> ast.Module:
    folder = Path((package.__path__ if package else __path__)[0])
    return ast.parse((folder / f"{name}.py").read_text(encoding="utf-8"))


def _order(name: str) -> int:
    for statement in _source(name).body:
        if isinstance(statement, ast.Assign) and getattr(statement.targets[0], "id", None) == "ORDER":
            return ast.literal_eval(statement.value)
    raise AttributeError(f"pipeline/stages/{name}.py has no ORDER")
