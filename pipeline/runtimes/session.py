"""The protocol of a runtime, and what all sessions share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from types import TracebackType

    import numpy as np

    from pipeline.records.manifest import Artifact


class Session:
    """A form that is ready to run, as a context manager.

    `arithmetic` is what it really computes in, for a person.
    """

    arithmetic: str

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        """Give back what the runtime holds."""

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """uint8 images `[n, c, h, w]` to float32 logits `[n, classes]`, on the host."""
        raise NotImplementedError

    def step(self, batch: int) -> Callable[[], None]:
        """A function that runs one prepared request of `batch` images. Needed where the runtime is `TIMED`."""
        raise NotImplementedError

    def gpu_step(self, batch: int) -> Callable[[], float] | None:
        """A function that computes once on what is on the GPU and gives the seconds it took; None without a GPU."""
        return None


class Runtime(Protocol):
    """What a runtime's file defines; what has a default here may be left out.

    Nothing heavy is imported before `load`.
    """

    READS: Mapping[str, tuple[str, ...]]  # the kinds of artifact it runs, and the modes of each ("" for the only one)
    PACKAGES: tuple[str, ...]  # distributions whose versions go on record
    NEEDS: tuple[str, ...] = ()  # modules to be installed beside the base
    PROVIDERS: Mapping[str, str] = {}  # modes that `--provider` asks for
    TIMED: bool = True  # whether its latency means anything

    @staticmethod
    def load(artifact: Artifact, *, mode: str = "", threads: int | None = None) -> Session:
        """A session of a form in one of the modes that its kind has."""
        raise NotImplementedError

    @staticmethod
    def unable(artifact: Artifact) -> str | None:
        """Why this machine can't run a form, where that depends on the machine."""
        return None

    @staticmethod
    def missing() -> str | None:
        """What this machine lacks besides modules, and how to get it."""
        return None
