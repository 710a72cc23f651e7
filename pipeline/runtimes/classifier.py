"""Use a file of the chain from Python, without torch: `load("mnist_cnn.onnx")(images)`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline import runtimes
from pipeline.errors import UsageError
from pipeline.graph import run
from pipeline.records import manifest

if TYPE_CHECKING:
    from numpy.typing import NDArray

BATCH = 500  # images at once; fewer where they are large


class Classifier:
    """A form of a model, ready to answer. `classes` are its labels, `record` is what is on record about the file.

    Close it, or use it in a `with` statement; calls from several threads at once are fine with ONNX Runtime.
    """

    def __init__(self, session: Any, record: manifest.Artifact) -> None:
        self._session, self.record = session, record
        self.classes: list[str] = record.facts.model.classes
        self.input: list[int] = record.facts.model.input
        self.arithmetic: str = session.arithmetic

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the logits, float32 `[n, classes]`, of raw pixels, uint8 `[n, c, h, w]` or one image `[c, h, w]`.

        Images of one channel may leave its axis out. Raises UsageError for another type or shape: pixels are 0 to 255,
        not normalised.
        """
        channels, height, width = self.input
        given = np.asarray(images)
        if given.dtype != np.uint8:
            raise UsageError(f"images are {given.dtype}: expected uint8, raw pixels 0 to 255, not normalised")
        shaped = given[None] if given.ndim == 2 or list(given.shape) == self.input else given
        if shaped.ndim == 3 and channels == 1:
            shaped = shaped[:, None]
        if shaped.ndim != 4 or list(shaped.shape[1:]) != self.input:
            wanted = f"[n, {channels}, {height}, {width}] or [{channels}, {height}, {width}]"
            wanted += f", [n, {height}, {width}] or [{height}, {width}]" * (channels == 1)
            raise UsageError(f"images are {list(given.shape)}: expected {wanted}")
        return in_batches(self._session, np.ascontiguousarray(shaped))

    def probabilities(self, images: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Return the softmax of the logits, float64 `[n, classes]`."""
        return softmax(self(images))

    def predict(self, images: NDArray[np.uint8]) -> list[str]:
        """Return the name of each image's likeliest class."""
        return [self.classes[index] for index in self(images).argmax(1)]

    def close(self) -> None:
        """Give back what the runtime holds."""
        self._session.__exit__(None, None, None)

    def __enter__(self) -> Classifier:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def load(path: str | Path, *, mode: str | None = None, threads: int | None = None) -> Classifier:
    """Open a file made here (`.onnx`, `.fp16.onnx`, an engine, a checkpoint) after its bytes were checked.

    `mode` is one of its runtime's, such as the provider "cuda"; threads: by default as many as there are cores.
    Raises UsageError where file, record or runtime is missing, CheckFailed if a byte was altered.
    """
    record = manifest.read(Path(path))
    # Of a `.fp16.onnx` the rounded twin comes first, which is for proofs, not for use.
    runtime, first = next(reader for reader in runtimes.readers(record.kind) if reader[0].TIMED)
    return Classifier(runtime.load(record, mode=first if mode is None else mode, threads=threads), record)


def in_batches(session: Callable[[Any], Any], images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return a session's logits `[n, classes]` for any number of images, also none, computed in batches."""
    return np.concatenate([session(batch) for batch in run.batches(images, BATCH)])


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the probabilities of logits `[n, classes]`; the largest is subtracted first, so nothing overflows."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    powers = np.exp(shifted)
    return powers / powers.sum(axis=1, keepdims=True)
