"""The stages, one file each, in the order of STAGES; here is what their signatures share.

A stage file has one public function `run`: positional parameters are artifacts, named by kind (`*forms` takes any that
a runtime runs), keyword-only ones are options, each with its help text. `pipeline.cli` makes the command from that
signature, `pipeline.chain` the chain.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

from pipeline.commands import Module, with_defaults
from pipeline.errors import UsageError
from pipeline.graph import load, metadata
from pipeline.records import code, manifest
from pipeline.records.forms import Graph
from pipeline.records.manifest import Artifact

if TYPE_CHECKING:
    from onnx import ModelProto

    from pipeline.data.imagesets import ImageSet

Out = Annotated[Path, "Folder that artifacts are written to."]
OptionalOut = Annotated[Path | None, "Folder that the result is written to; by default the one that was looked at."]
Data = Annotated[
    str | None,
    "Image set: mnist, torchvision:NAME, a folder (IDX files, or class folders), an .npz, or an IDX file beside its "
    "labels; by default the model's own.",
]

Provider = Annotated[
    Literal["cpu", "cuda", "tensorrt"], "ONNX Runtime's execution provider; one that doesn't load is an error."
]

STAGES = ("train", "export", "fold", "half", "quantize", "certify", "build", "verify", "bench")
REQUIRED = inspect.Parameter.empty  # the default of an option that must be given
DEFAULTS = {"out": Path("out")}  # for the command line; Python callers give it


class Stage(Module, Protocol):
    """What a stage's file defines; what has a default here may be left out."""

    KIND: str  # what it makes
    FILE: str  # and the name of its file; {model} stands for the model's

    @staticmethod
    def expect(**options: Any) -> None:
        """Raise UsageError for options that make no sense, CheckFailed for what this machine can't do with them.

        It is asked by `run`, and by the chain before its first stage.
        """

    @staticmethod
    def options(*given: Any, **options: Any) -> dict[str, Any]:
        """What goes on record for given options: those that have a say in the bytes."""
        return {name: value for name, value in options.items() if name not in ("out", "data")}

    @staticmethod
    def absent(**options: Any) -> str | None:
        """Why the chain leaves the stage out on this machine, with these options."""
        return None

    @staticmethod
    def sources(model: str) -> tuple[Path, ...]:
        """Files besides the stage's imports that belong to the code on record."""
        return ()


def names() -> tuple[str, ...]:
    """Names of the stages in the order of the chain; none of them is imported."""
    return STAGES


def get(name: str) -> ModuleType:
    """The stage called `name`, imported: a `Stage`."""
    return with_defaults(importlib.import_module(f"{__name__}.{name}"), Stage)


def title(stage: ModuleType) -> str:
    """The stage's name without its package."""
    return stage.__name__.rpartition(".")[2]


def options(stage: ModuleType) -> dict[str, Any]:
    """A stage's options by name, each with its default on the command line."""
    parameters = inspect.signature(stage.run).parameters.values()
    keywords = [parameter for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    return {p.name: DEFAULTS.get(p.name, REQUIRED) if p.default is p.empty else p.default for p in keywords}


def card(parent: Artifact) -> dict[str, Any]:
    """The facts that travel down the chain: the model's card, and the answers that every later form is held against."""
    return {"model": parent.facts.model, "reference": parent.facts.reference}


def images(parent: Artifact, data: str | None, part: str = "test") -> ImageSet:
    """The "train" or "test" images for a form of a model: of `data`, or of the image set that its card names."""
    from pipeline.data import imagesets

    card = parent.facts.model
    try:
        return imagesets.load(data or card.data, part, card.input, card.classes)
    except UsageError as error:
        if data:
            raise
        raise UsageError(f"{error}; {parent.path} names that set: give --data to say where it is") from error


def recorded(*measured: ImageSet, **options: Any) -> dict[str, Any]:
    """Return options to put on record, with the digests of the images that the artifact's facts were measured on."""
    return {**options, "images": {name: sha256 for each in measured for name, sha256 in each.digests.items()}}


def output(out: Path, file: str, parent: Artifact) -> Path:
    """Where a stage's artifact goes."""
    return out / file.format(model=parent.facts.model.name)


def describe(model: ModelProto, parent: Artifact, name: str) -> ModelProto:
    """Write the metadata of a graph made from `parent`. CheckFailed, beginning with `name`, if it isn't a valid one."""
    metadata.describe(model, parent.facts.model, parent.facts.reference, parent.sha256)
    load.parse(model.SerializeToString(), name)
    return model


def write_graph(
    path: Path,
    model: ModelProto,
    parent: Artifact,
    kind: type[Graph],
    *,
    stage: str,
    packages: tuple[str, ...],
    options: Mapping[str, Any] | None = None,
    **facts: Any,
) -> Artifact:
    """Write an ONNX file made from `parent` by a stage, its module's name; `facts` are those of its kind alone."""
    return manifest.write(
        path,
        model.SerializeToString(deterministic=True),
        facts=kind(**card(parent), **metadata.facts(model), **facts),
        parents=[parent],
        options=options,
        versions=manifest.versions(*packages),
        code=code.digest(stage),
    )
