"""What can run a form of the model: one file a runtime, found by listing this folder.

A runtime file offers the same verbs as the others:

    READS: dict[str, tuple[str, ...]]     which kinds of artifact, and in which modes each ("" if there is one way)
    load(artifact, *, mode="", threads=None) -> Session, a context manager
    Session(images: uint8 [n, 1, 28, 28]) -> float32 logits [n, 10], host in, host out
    Session.step(batch) -> a function of no arguments that runs one prepared request; without it, bench leaves it out
    Session.arithmetic: str               what it really computes in, for a person
    PACKAGES: tuple[str, ...]             distributions whose versions go on record

Nothing heavy is imported before `load`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable
from types import ModuleType

from pipeline.errors import UsageError


def names() -> list[str]:
    """Names of the runtimes there are, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def get(name: str) -> ModuleType:
    """The runtime file called `name`, imported."""
    return importlib.import_module(f"{__name__}.{name}")


def readers(kind: str) -> list[tuple[ModuleType, str]]:
    """Every (runtime, mode) that runs artifacts of this kind. UsageError if none does."""
    found = [(runtime, mode) for runtime in map(get, names()) for mode in runtime.READS.get(kind, ())]
    if not found:
        raise UsageError(f"no runtime runs artifacts of kind {kind!r}: expected one of {', '.join(sorted(kinds()))}")
    return found


def kinds() -> set[str]:
    """The kinds of artifact that some runtime runs: the forms of a model."""
    return {kind for runtime in map(get, names()) for kind in runtime.READS}


def packages(some: Iterable[tuple[ModuleType, str]]) -> list[str]:
    """The distributions whose versions go on record for these (runtime, mode) pairs, sorted."""
    return sorted({package for runtime, _ in some for package in runtime.PACKAGES})


def title(runtime: ModuleType) -> str:
    """The runtime's name without its package."""
    return runtime.__name__.rpartition(".")[2]
