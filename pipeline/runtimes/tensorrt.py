"""TensorRT: runs an engine on the GPU that it was built for, without torch, as a CUDA graph or enqueued anew.

An engine is executable code: only one that `pipeline build` made on this GPU with this version, unaltered, is
ever deserialised.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pipeline.errors import CheckFailed, UsageError
from pipeline.records import manifest
from pipeline.records.manifest import Artifact
from pipeline.runtimes import session as base
from pipeline.tensorrt import bindings as library
from pipeline.tensorrt import cuda
from pipeline.tensorrt.compatibility import missing, refuse, unable

if TYPE_CHECKING:
    import numpy as np
    import tensorrt as trt

GRAPH, STREAM = "CUDA graph", "no CUDA graph"
READS = {"engine": (GRAPH, STREAM)}
PACKAGES = (*library.MODULES, *cuda.PACKAGES)
__all__ = ["PACKAGES", "READS", "Session", "load", "missing", "unable"]


class Session(base.Session):
    """An engine on the GPU. Each batch size gets buffers and an execution context of its own, kept for the next time.

    `arithmetic` is what the layers were asserted to compute in before the build; `threads` has no meaning here.
    """

    def __init__(self, artifact: Artifact, mode: str) -> None:
        refuse(artifact)
        content = manifest.content(artifact)
        bindings = library.load(artifact.options["runtime"])
        self._log, self._graph, self._path = library.logger(bindings), mode == GRAPH, artifact.path
        runtime = self._runtime = bindings.Runtime(self._log)
        runtime.engine_host_code_allowed = artifact.options["version_compatible"]  # such an engine brings its runtime
        self._engine = runtime.deserialize_cuda_engine(content)
        if self._engine is None:
            raise self._failed("can't be loaded")
        self._largest = artifact.options["max_batch"]
        self._input, self._output = _ends(self._engine, bindings, artifact)
        self.arithmetic = f"{artifact.facts.element}, {mode}"
        self._stream = cuda.Stream()
        self._requests: dict[tuple[int, bool], _Request] = {}

    def __exit__(self, *_: object) -> None:
        self._requests.clear()
        self._stream.close()
        self._engine = self._runtime = None

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """uint8 images `[n, c, h, w]` to float32 logits `[n, classes]`, at most the largest batch at a time."""
        import numpy as np

        logits = []
        for start in range(0, len(images), self._largest):
            part = images[start : start + self._largest]
            request = self._request(len(part))
            request.images[...] = part
            request.run()
            logits.append(request.logits.copy())
        return np.concatenate(logits)

    def step(self, batch: int) -> Callable[[], None]:
        """Return a function that runs the engine once on `batch` images, both copies and the wait included."""
        if batch > self._largest:
            raise UsageError(
                f"{self._path}: takes batches of at most {self._largest}, received {batch}; build it with --max-batch"
            )
        return self._request(batch).run

    def gpu_step(self, batch: int) -> Callable[[], float]:
        """A function that computes once on what is on the GPU and gives the seconds that took there, by events."""
        request = self._request(batch, copies=False)
        return lambda: self._stream.seconds(request.enqueue)

    def _request(self, batch: int, copies: bool = True) -> _Request:
        if (batch, copies) not in self._requests:
            context = self._engine.create_execution_context()
            if context is None:
                raise self._failed("got no execution context")
            made = _Request(self._stream, context, self._input, self._output, batch, copies)
            if not made.works():
                raise self._failed(f"failed on a batch of {batch}")
            if self._graph:
                made.enqueue = self._stream.captured(made.enqueue)
            self._requests[batch, copies] = made
        return self._requests[batch, copies]

    def _failed(self, what: str) -> CheckFailed:
        return CheckFailed(f"{self._path}: {what}: {'; '.join(self._log.lines) or 'TensorRT gave no reason'}")


class _Request:
    """One batch size's pinned arrays, device memory and context; `enqueue` puts it on the stream, `run` also waits."""

    def __init__(
        self,
        stream: cuda.Stream,
        context: trt.IExecutionContext,
        image: tuple[str, tuple[int, ...]],
        logits: tuple[str, tuple[int, ...]],
        batch: int,
        copies: bool,
    ) -> None:
        import numpy as np

        self._stream, self._context = stream, context
        self.images = stream.pinned((batch, *image[1]), np.uint8)
        self.logits = stream.pinned((batch, *logits[1]), np.float32)
        self._from, self._to = stream.device(self.images.nbytes), stream.device(self.logits.nbytes)
        self._ready = context.set_input_shape(image[0], self.images.shape)
        self._ready &= context.set_tensor_address(image[0], self._from)
        self._ready &= context.set_tensor_address(logits[0], self._to)
        self.enqueue: Callable[[], None] = self._whole if copies else self._compute

    def works(self) -> bool:
        """Whether TensorRT takes shapes, addresses and a first request, which also does what can't be in a graph."""
        self._stream.upload(self._from, self.images)
        done = self._ready and self._context.execute_async_v3(self._stream.handle)
        self._stream.synchronize()
        return done

    def run(self) -> None:
        self.enqueue()
        self._stream.synchronize()

    def _whole(self) -> None:
        self._stream.upload(self._from, self.images)
        self._compute()
        self._stream.download(self.logits, self._to)

    def _compute(self) -> None:
        if not self._context.execute_async_v3(self._stream.handle):
            raise CheckFailed("TensorRT refused a request that it had taken before")


def _ends(engine: trt.ICudaEngine, bindings: Any, artifact: Artifact) -> tuple[tuple, tuple]:
    """Name and shape without the batch of the one input and the one output. CheckFailed if it has others."""
    found: list[tuple[str, tuple[int, ...]]] = []
    for mode, dtype in ((bindings.TensorIOMode.INPUT, "UINT8"), (bindings.TensorIOMode.OUTPUT, "FLOAT")):
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        names = [name for name in names if engine.get_tensor_mode(name) == mode]
        types = [engine.get_tensor_dtype(name).name for name in names]
        if types != [dtype]:
            raise CheckFailed(f"{artifact.path}: expected one {mode.name.lower()} of type {dtype}, received {types}")
        found.append((names[0], tuple(engine.get_tensor_shape(names[0]))[1:]))
    return found[0], found[1]


def load(artifact: Artifact, *, mode: str = GRAPH, threads: int | None = None) -> Session:
    """A session of an engine on the GPU; `mode` is GRAPH or STREAM. Threads mean nothing to it.

    Raises, before the engine is deserialised, CheckFailed if it was altered or is for another GPU or version, and
    UsageError if TensorRT, cuda.bindings or a GPU is missing.
    """
    return Session(artifact, mode)
