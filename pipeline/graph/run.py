"""Running a graph that is in memory, by ONNX Runtime on the CPU."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import CheckFailed, reason

if TYPE_CHECKING:
    from onnx import ModelProto

BATCH = 250  # images at once; fewer where they are large
PIXELS = 3_000_000  # at once, so that memory stays bounded
TOLERANCE = 1e-4  # of the largest logit: what the rounding of float32 explains


def session(model: ModelProto, name: str, threads: int | None = None) -> Any:
    """An ONNX Runtime session of a model; `name` is what errors call it. CheckFailed if ONNX Runtime refuses it."""
    try:
        return opened(model.SerializeToString(), options(threads))
    except Exception as error:  # the library's own exceptions share no narrower public base
        raise CheckFailed(f"{name}: ONNX Runtime can't load it: {reason(error)}") from error


def watching(model: ModelProto, tensors: Iterable[str], name: str) -> Any:
    """A session of a model that gives these tensors, by name, in place of its outputs."""
    from onnx import helper

    watched = copy.deepcopy(model)
    del watched.graph.output[:]
    watched.graph.output.extend(helper.make_empty_tensor_value_info(each) for each in tensors)
    return session(watched, name)


def opened(content: bytes, options: Any, providers: Sequence[Any] = ("CPUExecutionProvider",)) -> Any:
    """An ONNX Runtime session of a serialised model; of a quantised one if need be without the fusions.

    On aarch64, version 1.32 fuses float16 scales into QLinearConv and then refuses its own graph.
    """
    import onnxruntime

    try:
        return onnxruntime.InferenceSession(content, options, providers=providers)
    except Exception:
        if b"DequantizeLinear" not in content:
            raise
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        return onnxruntime.InferenceSession(content, options, providers=providers)


def options(threads: int | None) -> Any:
    """What every session of ONNX Runtime begins with. Threads: by default as many as there are cores."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # warnings tell of fallbacks that `arithmetic` states for every run
    options.intra_op_num_threads = threads or 0
    # Threads that spin while they wait gain microseconds a request, and cost other processes a core.
    spinning = threads is not None and threads > 1
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    return options


def batch_size(images: np.ndarray, most: int = BATCH) -> int:
    """How many of the images `[n, c, h, w]` to compute at once: `most`, or fewer where they are large."""
    return max(1, min(most, PIXELS // max(1, math.prod(images.shape[1:]))))


def batches(images: np.ndarray, most: int = BATCH) -> Iterator[np.ndarray]:
    """Yield the images `batch_size` at a time; of no images, one batch of none."""
    size = batch_size(images, most)
    for start in range(0, max(len(images), 1), size):
        yield images[start : start + size]


@contextlib.contextmanager
def running(name: object) -> Iterator[None]:
    """CheckFailed where ONNX Runtime loads a file and then can't run it, as one with sizes that don't fit."""
    try:
        yield
    except Exception as error:  # the library's own exceptions share no narrower public base
        raise CheckFailed(f"{name}: ONNX Runtime can't run it: {reason(error)}") from error


def outputs(model: ModelProto, inputs: np.ndarray, name: str) -> np.ndarray:
    """The first output for inputs `[n, ...]`, computed in batches. CheckFailed if ONNX Runtime can't run it."""
    ready = session(model, name)
    image = ready.get_inputs()[0].name
    with running(name):
        return np.concatenate([ready.run(None, {image: batch})[0] for batch in batches(inputs)])


def difference(before: np.ndarray, after: np.ndarray) -> float:
    """Largest difference of two forms' logits `[n, classes]`, relative to the first one's largest. NaN stays NaN."""
    if before.shape != after.shape:
        return float("nan")
    largest = float(np.abs(before).max()) or 1.0
    return float(np.abs(after.astype(np.float64) - before).max()) / largest


def check_same(before: np.ndarray, after: np.ndarray, differs: str) -> float:
    """The `difference` of two forms' logits. CheckFailed if it is more than rounding explains.

    `differs` begins the message, such as "mnist_cnn.onnx: a logit differs".
    """
    largest = difference(before, after)
    if not largest <= TOLERANCE:
        raise CheckFailed(f"{differs} by {largest:.3g} of the largest: expected {TOLERANCE:g} at most")
    return largest
