"""The protocol of a runtime, and what all sessions share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np

    from pipeline.records.manifest import Artifact


class Session:
    """A form that is ready to run, as a context manager."""

    arithmetic: str  # the one it really computes in, for a person

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        """Give back what the runtime holds."""

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Return the float32 logits `[n, classes]` of uint8 images `[n, c, h, w]`, on the host."""
        raise NotImplementedError

    def step(self, batch: int) -> Callable[[], None]:
        """Return a function that runs one prepared request of `batch` images. Needed where the runtime is `TIMED`."""
        raise NotImplementedError

    def gpu_step(self, batch: int) -> Callable[[], float] | None:
        """Return a function that computes on the GPU's memory once, for the seconds it took; None without a GPU."""
        return None


class Runtime(Protocol):
    """What a runtime's file defines; what has a default here may be left out.

    Nothing heavy is imported before `load`, which may be the class of its sessions.
    """

    READS: Mapping[str, tuple[str, ...]]  # the kinds of artifact it runs, and the modes of each ("" for the only one)
    PACKAGES: tuple[str, ...]  # distributions whose versions go on record
    NEEDS: tuple[str, ...] = ()  # modules to be installed beside the base
    PROVIDERS: Mapping[str, str] = {}  # modes that `--provider` asks for
    TIMED: bool = True  # whether its latency means anything

    @staticmethod
    def load(artifact: Artifact, *, mode: str = "", threads: int | None = None) -> Session:
        """Open a form in one of the modes that its kind has."""
        raise NotImplementedError

    @staticmethod
    def has(mode: str) -> bool:
        """Whether this machine has a mode of those that a kind is read in."""
        return True

    @staticmethod
    def unable(artifact: Artifact) -> str | None:
        """Why this machine can't run a form, where that depends on the machine."""
        return None

    @staticmethod
    def missing() -> str | None:
        """What this machine lacks besides modules, and how to get it."""
        return None
