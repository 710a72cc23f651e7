"""What can run a form of the model: one file a runtime, found by listing this folder.

A runtime file offers the same verbs as the others:

    READS: dict[str, tuple[str, ...]]     which kinds of artifact, and in which modes each ("" if there is one way)
    load(artifact, *, mode="", threads=None) -> Session, a context manager
    Session(images: uint8 [n, 1, 28, 28]) -> float32 logits [n, 10], host in, host out
    Session.step(batch) -> a function of no arguments that runs one prepared request; without it, bench leaves it out
    Session.arithmetic: str               what it really computes in, for a person
    PACKAGES: tuple[str, ...]             distributions whose versions go on record
    PROVIDERS                             modes that are asked for by `--provider`, where it has such
    unable(artifact) -> str | None        why this machine can't run it, where that depends on the machine
    NEEDS: tuple[str, ...]                modules to be installed beside the base; `missing() -> str | None`: what else

Nothing heavy is imported before `load`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable
from types import ModuleType

from pipeline.artifact import Artifact
from pipeline.errors import UsageError


def names() -> list[str]:
    """Names of the runtimes there are, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def get(name: str) -> ModuleType:
    """The runtime file called `name`, imported."""
    return importlib.import_module(f"{__name__}.{name}")


def readers(kind: str, provider: str | None = None) -> list[tuple[ModuleType, str]]:
    """Every (runtime, mode) that runs artifacts of this kind; `provider` in place of the modes of a runtime that has
    providers. UsageError if none does.
    """
    found = []
    for runtime in map(get, names()):
        modes = runtime.READS.get(kind, ())
        if modes and provider in getattr(runtime, "PROVIDERS", ()):
            modes = (provider,)
        found += [(runtime, mode) for mode in modes]
    if not found:
        raise UsageError(f"no runtime runs artifacts of kind {kind!r}: expected one of {', '.join(sorted(kinds()))}")
    return found


def unable(artifact: Artifact) -> str | None:
    """Why no runtime on this machine can run a form, if none can."""
    checks = [getattr(runtime, "unable", None) for runtime, _ in readers(artifact.kind)]
    reasons = [check(artifact) if check else None for check in checks]
    return reasons[0] if all(reasons) else None


def kinds() -> set[str]:
    """The kinds of artifact that some runtime runs: the forms of a model."""
    return {kind for runtime in map(get, names()) for kind in runtime.READS}


def packages(some: Iterable[tuple[ModuleType, str]]) -> list[str]:
    """The distributions whose versions go on record for these (runtime, mode) pairs, sorted."""
    return sorted({package for runtime, _ in some for package in runtime.PACKAGES})


def title(runtime: ModuleType) -> str:
    """The runtime's name without its package."""
    return runtime.__name__.rpartition(".")[2]
