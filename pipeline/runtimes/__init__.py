"""Runtimes, which run forms of a model: one file each, listed in `every`; `session` has their protocol."""

from __future__ import annotations

from collections.abc import Iterable
from types import ModuleType

from pipeline.commands import with_defaults
from pipeline.errors import UsageError
from pipeline.machine import extras
from pipeline.records.manifest import Artifact
from pipeline.runtimes.session import Runtime


def every() -> list[ModuleType]:
    """Every runtime; a new one is a file and a name here."""
    from pipeline.runtimes import float16, onnxruntime, pytorch, tensorrt

    return [with_defaults(module, Runtime) for module in (float16, onnxruntime, pytorch, tensorrt)]


def readers(kind: str, provider: str | None = None) -> list[tuple[ModuleType, str]]:
    """Every (runtime, mode) that runs artifacts of this kind. UsageError if none does.

    A `provider` replaces the modes of a runtime that has it.
    """
    pairs = []
    for runtime in every():
        modes = runtime.READS.get(kind, ())
        if modes and provider in runtime.PROVIDERS:
            modes = (provider,)
        pairs += [(runtime, mode) for mode in modes if runtime.has(mode)]
    if not pairs:
        raise UsageError(f"no runtime runs artifacts of kind {kind!r}: expected one of {', '.join(sorted(kinds()))}")
    return pairs


def unable(artifact: Artifact) -> str | None:
    """Why no runtime on this machine can run a form, if none can."""
    reasons = []
    for runtime, _ in readers(artifact.kind):
        absent = extras.missing(runtime.NEEDS)
        reasons.append(f"{artifact.path}: {absent[0]} isn't installed" if absent else runtime.unable(artifact))
    return reasons[0] if all(reasons) else None


def kinds() -> set[str]:
    """The kinds of artifact that some runtime runs: the forms of a model."""
    return {kind for runtime in every() for kind in runtime.READS}


def packages(pairs: Iterable[tuple[ModuleType, str]]) -> list[str]:
    """The distributions whose versions go on record for these (runtime, mode) pairs, sorted."""
    return sorted({package for runtime, _ in pairs for package in runtime.PACKAGES})


def title(runtime: ModuleType) -> str:
    """The runtime's name without its package."""
    return runtime.__name__.rpartition(".")[2]
