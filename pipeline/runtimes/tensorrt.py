"""TensorRT: runs an engine on the GPU that it was built for, without torch, as a CUDA graph or enqueued anew.

Where the GPU shares the host's memory, as on a Jetson, it reads the images and writes the logits in place.

An engine is executable code: it is deserialised only if its bytes match its record and that record fits this GPU and
this version. A record is a digest, not a signature: it does not show who made the engine.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.errors import CheckFailed, UsageError
from pipeline.graph import run as graphs
from pipeline.machine import extras
from pipeline.records import manifest
from pipeline.records.devices import Gpu
from pipeline.records.forms import SecondBuild
from pipeline.records.manifest import Artifact
from pipeline.runtimes import session as base
from pipeline.tensorrt import bindings as library
from pipeline.tensorrt import cuda

if TYPE_CHECKING:
    import numpy as np
    import tensorrt as trt

ZERO_COPY, GRAPH, STREAM = "CUDA graph, zero copy", "CUDA graph", "no CUDA graph"
READS = {"engine": (ZERO_COPY, GRAPH, STREAM)}
PACKAGES = (*library.MODULES, *cuda.PACKAGES)


def unable(artifact: Artifact) -> str | None:
    """Return why this machine can't run an engine, from its record alone; None if it can."""
    return extras.problem(_refuse, artifact)


def missing() -> str | None:
    """Return what this machine lacks to run any engine, and how to get it; None if nothing."""
    return extras.problem(library.load, library.chosen("auto")) or extras.problem(cuda.gpu)


def has(mode: str) -> bool:
    """Whether the GPU shares the host's memory, for the mode that asks for it."""
    return mode != ZERO_COPY or (not extras.problem(cuda.gpu) and cuda.gpu().integrated)


def _refuse(artifact: Artifact) -> None:
    """Raise CheckFailed if an engine is for another version or GPU, UsageError if this machine has none.

    Its record decides: the engine itself isn't opened.
    """
    options, again = artifact.options, "`pipeline build` on this device makes one for it"
    runtime, version = options["runtime"], options["version"]
    here = library.version(runtime)
    if here is None:
        raise UsageError(f"{artifact.path}: needs {runtime}, which isn't installed: {library.INSTALL[runtime]}")
    if here != version and not (options["version_compatible"] and _later_minor(here, version)):
        raise CheckFailed(f"{artifact.path}: built by {runtime} {version}, this machine has {here}; {again}")
    target = artifact.facts.gpu or ", ".join(options["targets"] or ["an unknown GPU"])
    try:
        gpu = cuda.gpu()
    except UsageError as error:
        raise UsageError(f"{artifact.path}: built for {target}; {error}") from error
    if not _fits(artifact, gpu):
        raise CheckFailed(f"{artifact.path}: built for {target}, this machine has {gpu}; {again}")


def _later_minor(here: str, built: str) -> bool:
    """Whether a version is one that loads a version-compatible engine: the same major, no older minor."""
    new, old = ([int(number) for number in re.findall(r"\d+", version)[:2]] for version in (here, built))
    return new[0] == old[0] and new >= old


def _fits(artifact: Artifact, gpu: Gpu) -> bool:
    if artifact.options["targets"]:
        return gpu.target in artifact.options["targets"]
    if artifact.options["hardware_compatible"]:
        return int(gpu.capability.partition(".")[0]) >= 8  # Ampere
    built = artifact.facts.gpu
    return built is not None and (built.name, built.capability) == (gpu.name, gpu.capability)


@dataclass(frozen=True)
class _Request:
    """The pinned arrays of a batch size, and functions that put the request, or its computing alone, on the stream."""

    images: np.ndarray
    logits: np.ndarray
    enqueue: Callable[[], None]
    compute: Callable[[], None]


class Session(base.Session):
    """An engine on the GPU. Each batch size gets buffers and an execution context of its own, kept for the next time.

    `arithmetic` is what the layers were asserted to compute in before the build.
    """

    def __init__(self, artifact: Artifact, mode: str) -> None:
        _refuse(artifact)
        options, content = artifact.options, manifest.content(artifact)
        bindings = library.load(options["runtime"])
        self._log, self._graph, self._path = library.logger(bindings), mode != STREAM, artifact.path
        self._engine = library.engine(self._path, content, bindings, self._log, options)
        self._largest = options["max_batch"]
        self._least = 1 if options.get("dla") is None else self._largest  # an accelerator takes one size
        self._input = _only(self._engine, bindings.TensorIOMode.INPUT, "UINT8", artifact)
        self._output = _only(self._engine, bindings.TensorIOMode.OUTPUT, "FLOAT", artifact)
        self.arithmetic = f"{artifact.facts.element}, {mode}"
        self._stream, self._zero_copy = cuda.Stream(), mode == ZERO_COPY
        self._requests: dict[int, _Request] = {}

    def __exit__(self, *_: object) -> None:
        self._requests.clear()
        self._stream.close()
        del self._engine

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """uint8 images `[n, c, h, w]` to float32 logits `[n, classes]`, at most the largest batch at a time."""
        import numpy as np

        logits = [np.empty((0, *self._output[1]), np.float32)]
        for start in range(0, len(images), self._largest):
            part = images[start : start + self._largest]
            request = self._request(max(len(part), self._least))
            request.images[: len(part)] = part
            request.enqueue()
            self._stream.synchronize()
            logits.append(request.logits[: len(part)].copy())
        return np.concatenate(logits)

    def step(self, batch: int) -> Callable[[], None]:
        """Return a function that runs the engine once on `batch` images, the wait and the copies, if any, included."""
        if not self._least <= batch <= self._largest:
            raise UsageError(
                f"{self._path}: takes batches of {self._least} to {self._largest}, received {batch}; build it with "
                "another --max-batch"
            )
        enqueue, synchronize = self._request(batch).enqueue, self._stream.synchronize

        def once() -> None:
            enqueue()
            synchronize()

        return once

    def shape(self, batch: int) -> str:
        """Return the input of a batch size as `trtexec --shapes` takes it."""
        return f"{self._input[0]}:{'x'.join(map(str, (batch, *self._input[1])))}"

    def gpu_step(self, batch: int) -> Callable[[], float]:
        """Return a function that computes once on what is on the GPU and returns the seconds that took there."""
        compute = self._request(batch).compute
        return lambda: self._stream.seconds(compute)

    def _request(self, batch: int) -> _Request:
        """Return the request of a batch size; the first time, give it memory, run it once, and capture its graphs."""
        import numpy as np

        if batch in self._requests:
            return self._requests[batch]
        stream, context = self._stream, self._engine.create_execution_context()
        if context is None:
            raise self._failed("got no execution context")
        ends = ((batch, *self._input[1]), np.uint8), ((batch, *self._output[1]), np.float32)
        if self._zero_copy:
            (images, source), (logits, target) = (stream.mapped(*end) for end in ends)
        else:
            images, logits = (stream.pinned(*end) for end in ends)
            source, target = stream.device(images.nbytes), stream.device(logits.nbytes)
        accepted = [
            context.set_input_shape(self._input[0], images.shape),
            context.set_tensor_address(self._input[0], source),
            context.set_tensor_address(self._output[0], target),
        ]
        if not all(accepted):
            raise self._failed(f"refused a batch of {batch}")

        def compute() -> None:
            if not context.execute_async_v3(stream.handle):
                raise self._failed(f"failed on a batch of {batch}")

        def enqueue() -> None:
            stream.upload(source, images)
            compute()
            stream.download(logits, target)

        parts = [compute] if self._zero_copy else [compute, enqueue]
        parts[-1]()  # the first run also does what can't be in a graph, such as loading kernels
        stream.synchronize()
        parts = [stream.captured(part) if self._graph else part for part in parts]
        self._requests[batch] = _Request(images, logits, enqueue=parts[-1], compute=parts[0])
        return self._requests[batch]

    def _failed(self, what: str) -> CheckFailed:
        return CheckFailed(f"{self._path}: {what}: {self._log.reason()}")


def _only(engine: trt.ICudaEngine, mode: Any, dtype: str, artifact: Artifact) -> tuple[str, tuple[int, ...]]:
    """Return the name, and the shape without the batch, of the one input or output. CheckFailed if it isn't the one."""
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    names = [name for name in names if engine.get_tensor_mode(name) == mode]
    types = [engine.get_tensor_dtype(name).name for name in names]
    if types != [dtype]:
        raise CheckFailed(f"{artifact.path}: expected one {mode.name.lower()} of type {dtype}, received {types}")
    return names[0], tuple(engine.get_tensor_shape(names[0]))[1:]


def compare(first: Artifact, second: Artifact, images: np.ndarray) -> SecondBuild:
    """Put images through two engines of one file, and compare their answers."""
    logits = []
    for engine in (first, second):
        with load(engine) as session:
            logits.append(session(images))
    difference = graphs.difference(*logits)
    return SecondBuild(
        images=len(images),
        differ=int((logits[0].argmax(1) != logits[1].argmax(1)).sum()),
        difference=difference if math.isfinite(difference) else None,
        same_bytes=first.sha256 == second.sha256,
    )


def load(artifact: Artifact, *, mode: str | None = None, threads: int | None = None) -> Session:
    """A session of an engine on the GPU; `mode` is the first of READS that this machine has. Threads mean nothing here.

    Raises, before the engine is deserialised, CheckFailed if it was altered or is for another GPU or version, and
    UsageError if TensorRT, cuda.bindings or a GPU is missing.
    """
    return Session(artifact, mode or next(filter(has, READS["engine"])))
