"""True float16 arithmetic in numpy: runs the `.fp16.onnx` graph and rounds to float16 after every operator.

ONNX Runtime's CPU provider computes such a graph in float32, so its agreement proves the weights' rounding only.
Here every value that an operator hands on is a float16, as on a GPU. Two modes bound what a GPU does in between:
float32 sums, as tensor cores accumulate, have one rounding an operator; float16 sums, the worst case, are rounded
after each addition, in order.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from pipeline import onnx_file
from pipeline.artifact import Artifact
from pipeline.errors import CheckFailed

MODES = ("float32 sums, as tensor cores", "float16 sums, worst case")
READS = {"fp16": MODES}
PACKAGES = ("numpy", "onnx")
CHUNK = 64  # images at once: their columns still fit the processor's caches
TILE = 8192  # columns summed at once: enough to be worth a call of numpy, few enough to stay in the cache
LARGEST = float(np.finfo(np.float16).max)


def to_float16(values: np.ndarray) -> np.ndarray:
    """float32 rounded to the nearest float16, ties to even, still stored as float32; beyond 65504, infinite."""
    with np.errstate(over="ignore"):
        return values.astype(np.float16).astype(np.float32)


class Session:
    """The graph of a `.fp16.onnx`, run node by node. Values lie as float32 `[c, n, h, w]`, all float16 numbers."""

    def __init__(self, artifact: Artifact, mode: str, threads: int | None) -> None:
        import onnx
        from onnx import numpy_helper

        self._path, self.arithmetic = artifact.path, mode
        self._dot = dict(zip(MODES, (_dot_float32, _dot_float16), strict=True))[mode]
        graph = onnx_file.load(artifact).graph
        self._nodes = [
            (node, {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}) for node in graph.node
        ]
        weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        wide = [name for name, value in weights.items() if value.dtype == np.float32]
        if wide:
            raise CheckFailed(f"{artifact.path}: expected float16 weights only, received float32 in {', '.join(wide)}")
        self._weights = {name: v.astype(np.float32) if v.dtype == np.float16 else v for name, v in weights.items()}
        self._image, self._logits = graph.input[0].name, graph.output[0].name
        self._pool = ThreadPoolExecutor(threads or os.cpu_count())

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """uint8 images `[n, c, h, w]` to float32 logits `[n, classes]`."""
        chunks = [images[start : start + CHUNK] for start in range(0, len(images), CHUNK)]
        return np.concatenate(list(self._pool.map(lambda chunk: dict(self.values(chunk))[self._logits], chunks)))

    def values(self, images: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """Every operator's output by name, for uint8 images `[n, c, h, w]`, in the order of the graph."""
        found = {**self._weights, self._image: images.transpose(1, 0, 2, 3)}
        for node, options in self._nodes:
            operator = _OPERATORS.get(node.op_type)
            if operator is None:
                known = ", ".join(_OPERATORS)
                raise CheckFailed(f"{self._path}: operator {node.op_type} is not one of those rounded here: {known}")
            result = operator([found[name] for name in node.input], options, self._dot)
            found[node.output[0]] = result
            yield node.output[0], result


def load(artifact: Artifact, *, mode: str = MODES[0], threads: int | None = None) -> Session:
    """A session of a `.fp16.onnx` in one of MODES."""
    return Session(artifact, mode, threads)


def _dot_float32(weights: np.ndarray, columns: np.ndarray, finish: Callable) -> np.ndarray:
    """`finish([m, k] @ [k, n])`: exact products, float32 sums, one rounding at the end."""
    return to_float16(finish(weights @ columns))


def _dot_float16(weights: np.ndarray, columns: np.ndarray, finish: Callable) -> np.ndarray:
    """The same: exact products, each added to a float16 sum and rounded (a fused multiply-add), in order."""
    total = np.empty((len(weights), columns.shape[1]), np.float32)
    for start in range(0, columns.shape[1], TILE):
        part = np.ascontiguousarray(columns[:, start : start + TILE])
        sums = np.zeros((len(weights), part.shape[1]), np.float32)
        work = np.empty_like(sums)
        limit = 1.1 * np.abs(weights).sum(1).max() * np.abs(part).max()  # of any sum, its roundings included
        for k in range(len(part)):
            np.multiply(weights[:, k, None], part[k], out=work)
            np.add(sums, work, out=sums)
            round_in_place(sums, work, may_overflow=not limit <= LARGEST)
        total[:, start : start + TILE] = sums
    return to_float16(finish(total))


def round_in_place(values: np.ndarray, work: np.ndarray, *, may_overflow: bool = True) -> None:
    """`to_float16`, several times faster than numpy's casts: adding and subtracting 1.5 * 2^13 times the value's
    power of two leaves float32's own rounding (to nearest, ties to even) just float16's ten bits behind the first.
    """
    bits = work.view(np.uint32)
    np.bitwise_and(values.view(np.uint32), np.uint32(0x7F800000), out=bits)  # the value's power of two
    np.maximum(work, np.float32(2.0**-14), out=work)  # below its smallest normal number float16 is evenly spaced
    if may_overflow:
        np.minimum(work, np.float32(2.0**17), out=work)  # so that an infinity stays one
    np.multiply(work, np.float32(1.5 * 2**13), out=work)
    np.add(values, work, out=values)
    np.subtract(values, work, out=values)
    if may_overflow and np.abs(values, out=work).max() > LARGEST:
        values[work > LARGEST] *= np.float32(np.inf)


def _conv(inputs: list[np.ndarray], options: dict, dot: Callable) -> np.ndarray:
    x, weights, *bias = inputs
    _expect(options, pads=[0, 0, 0, 0], strides=[1, 1], dilations=[1, 1], group=1, auto_pad=b"NOTSET")
    m, _, kh, kw = weights.shape
    c, n, height, width = x.shape
    h, w = height - kh + 1, width - kw + 1
    columns = np.empty((c, kh * kw, n, h, w), np.float32)
    for number, (i, j) in enumerate(itertools.product(range(kh), range(kw))):
        columns[:, number] = x[:, :, i : i + h, j : j + w]
    shift = bias[0][:, None] if bias else np.float32(0)
    columns = columns.reshape(c * kh * kw, -1)
    return dot(weights.reshape(m, -1), columns, lambda sums: sums + shift).reshape(m, n, h, w)


def _windows(x: np.ndarray, options: dict) -> np.ndarray:
    """Non-overlapping pooling windows: `[c, n, h, w, kh * kw]`."""
    kh, kw = options["kernel_shape"]
    _expect(options, pads=[0, 0, 0, 0], strides=[kh, kw], dilations=[1, 1], auto_pad=b"NOTSET", ceil_mode=0)
    c, n, height, width = x.shape
    h, w = height // kh, width // kw
    tiles = x[:, :, : h * kh, : w * kw].reshape(c, n, h, kh, w, kw).transpose(0, 1, 2, 4, 3, 5)
    return tiles.reshape(c, n, h, w, kh * kw)


def _average(inputs: list[np.ndarray], options: dict, dot: Callable) -> np.ndarray:
    windows = _windows(inputs[0], options)
    size = windows.shape[-1]
    ones, columns = np.ones((1, size), np.float32), windows.reshape(-1, size).T
    return dot(ones, columns, lambda sums: sums / np.float32(size)).reshape(windows.shape[:-1])


def _cast(inputs: list[np.ndarray], options: dict, dot: Callable) -> np.ndarray:
    return to_float16(inputs[0].astype(np.float32)) if options["to"] == 10 else inputs[0].astype(np.float32)


def _reshape(inputs: list[np.ndarray], options: dict, dot: Callable) -> np.ndarray:
    x, shape = inputs
    return x.transpose(1, 0, *range(2, x.ndim)).reshape(shape)


def _expect(options: dict, **values: object) -> None:
    for name, value in values.items():
        if name in options and options[name] != value:
            raise CheckFailed(f"float16 arithmetic knows {name}={value} only, received {options[name]}")


_OPERATORS: dict[str, Callable] = {
    "Cast": _cast,
    "Conv": _conv,
    "Relu": lambda inputs, options, dot: np.maximum(inputs[0], 0),
    "MaxPool": lambda inputs, options, dot: _windows(inputs[0], options).max(-1),
    "AveragePool": _average,
    "Reshape": _reshape,
}
