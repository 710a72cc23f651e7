"""The operators of a float16 graph as the certificate takes them: sums of products, sums of ReLUs, and largest values.

In float64, so that this program's own rounding is far below any that it bounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

from pipeline.graph import edit, linear, load
from pipeline.graph.float16 import LARGEST, SMALLEST_NORMAL
from pipeline.graph.load import attribute

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

LOWEST = -2 * LARGEST  # below what float16 holds: a value less than that overflows
FLOAT16, UINT8 = 10, 2  # TensorProto's numbers of element types
SUMS = ("Conv", "Gemm", "Add", "Sub", "Mul", "AveragePool", "GlobalAveragePool")
KNOWN = (*linear.MOVES, *SUMS, "Concat", "Relu", "Clip", "MaxPool")


@dataclass(frozen=True)
class Node:
    """A node, known by the names of its inputs that are not constants, and of its output."""

    inputs: list[str]
    output: str

    @property
    def fan_out(self) -> int:
        """Upper bound on how many results one input value has a part in."""
        return 1


@dataclass(frozen=True)
class Linear(Node):
    """Sums of products plus a constant.

    `apply(weight, *inputs)` gives the products' sums, `transpose(gradient, shapes)` what each input gets of a gradient.
    `terms` is how many products a sum has; 0 where values are moved only, and nothing is computed.
    """

    apply: Callable[..., torch.Tensor]
    transpose: Callable[[torch.Tensor, list[torch.Size]], list[torch.Tensor]]
    weight: torch.Tensor
    terms: int
    constant: torch.Tensor
    averages: bool = False

    @property
    def fan_out(self) -> int:
        """Upper bound on how many results one input value is a factor of."""
        depthwise = self.averages or self.weight.ndim < 2
        return self.terms if depthwise else self.weight[:, 0].numel()


@dataclass(frozen=True)
class ReluSum(Node):
    """The sum of `sign * relu(x - at)` for each (at, sign), plus a constant: Relu and Clip."""

    kinks: list[tuple[float, int]]
    function: Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class MaxPool(Node):
    """The largest value of each window of `[n, c, h, w]`."""

    kernel: list[int]
    stride: list[int]
    dilation: list[int]
    pads: list[int]  # left, right, top, bottom

    @property
    def fan_out(self) -> int:
        """Upper bound on how many windows one input value is in."""
        return math.prod(self.kernel)

    def windows(self, x: torch.Tensor) -> torch.Tensor:
        """Return the values of each window, `[n, c, values, windows]`; what is padding is minus infinity."""
        padded = functional.pad(x, self.pads, value=-math.inf)
        unfolded = functional.unfold(padded, self.kernel, self.dilation, 0, self.stride)
        return unfolded.unflatten(1, (x.shape[1], -1))

    def fold(self, values: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        """Return the sums `[n, c, h, w]` of windows' values, the transposed of `windows`."""
        left, right, top, bottom = self.pads
        size = (shape[-2] + top + bottom, shape[-1] + left + right)
        folded = functional.fold(values.flatten(1, 2), size, self.kernel, self.dilation, 0, self.stride)
        return folded[..., top : top + shape[-2], left : left + shape[-1]]

    def output_shape(self, x: torch.Tensor) -> torch.Size:
        """The shape of the pool of `x`, without its batch."""
        return functional.max_pool2d(
            functional.pad(x[:1], self.pads), self.kernel, self.stride, 0, self.dilation
        ).shape[1:]


Operator = Linear | ReluSum | MaxPool


def unknown(model: ModelProto) -> list[str]:
    """Return the names of operators, and of settings of known ones, that `read` does not take; sorted."""
    values, tensors, graph = edit.weights(model), load.values(model), model.graph
    shapes = {name: load.shape(value) for name, value in tensors.items()}
    types = {name: value.type.tensor_type.elem_type for name, value in tensors.items()}
    problems = set() if graph.node[-1].output[0] == graph.output[0].name else {"nodes behind the output"}
    for node in (node for node in graph.node if node.op_type != "Constant"):
        variable, end = [name for name in node.input if name and name not in values], node.output[0]
        if node.op_type not in KNOWN:
            problems.add(node.op_type)
        elif any(node.output[1:]):
            problems.add(f"{node.op_type} with several outputs")
        elif len(variable) != 1 and not (node.op_type in ("Add", "Sub", "Concat") and len(variable) == len(node.input)):
            problems.add(f"{node.op_type} of {len(variable)} computed values")
        elif problem := _problem(node, variable, values, shapes):
            problems.add(f"{node.op_type} {problem}")
        elif (
            types[end] != FLOAT16
            and end != graph.output[0].name
            and not (types[end] == UINT8 and node.op_type in (*linear.MOVES, "MaxPool"))
        ):
            problems.add(f"{node.op_type} in other than float16")
    return sorted(problems)


def _problem(
    node: NodeProto, variable: list[str], values: Mapping[str, np.ndarray], shapes: Mapping[str, list[int]]
) -> str | None:
    """What `read` does not take of a node whose operator it knows."""
    known, end = all(name in shapes for name in (*variable, node.output[0])), node.output[0]
    if not known or any(0 in shapes[name][1:] or shapes[name][:1] != [0] for name in (*variable, end)):
        return "of unknown shape, or of a batch that is not the first dimension"
    same = math.prod(shapes[end][1:]) == math.prod(shapes[variable[0]][1:])
    if attribute(node, "auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID") or attribute(node, "ceil_mode", 0):
        return "with auto_pad or ceil_mode"
    if ("Pool" in node.op_type or node.op_type == "Conv") and len(shapes[variable[0]]) != 4:
        return "in other than two dimensions"
    if node.op_type in ("Add", "Sub", "Mul") and any(shapes[name] != shapes[end] for name in variable):
        return "that repeats a computed value"
    if node.op_type not in ("Add", "Sub", "Mul") and node.input[0] != variable[0]:
        return "with a constant first"
    if node.op_type in linear.MOVES and not same:
        return "that moves values between images"
    if node.op_type == "Concat" and attribute(node, "axis", 1) % len(shapes[end]) == 0:
        return "of images"
    if node.op_type == "Clip":
        low, high = _bounds(node, values)
        if low > high or 0 < abs(low) < SMALLEST_NORMAL or 0 < abs(high) < SMALLEST_NORMAL:
            return "with min over max, or with a subnormal bound"
    if (attribute(node, "alpha", 1.0), attribute(node, "beta", 1.0)) != (1, 1) or attribute(node, "transA", 0):
        return "with alpha, beta or transA"
    return None


def read(model: ModelProto) -> list[Operator]:
    """Return a graph's operators in order. Requires a graph of which `unknown` says nothing."""
    values = {name: torch.from_numpy(np.array(value)) for name, value in edit.weights(model).items()}
    values = {name: value.double() if value.is_floating_point() else value for name, value in values.items()}
    shapes = {name: load.shape(value)[1:] for name, value in load.values(model).items()}
    return [_read(node, values, shapes) for node in model.graph.node if node.op_type != "Constant"]


def _read(node: NodeProto, values: Mapping[str, torch.Tensor], shapes: Mapping[str, list[int]]) -> Operator:
    names = {"inputs": [name for name in node.input if name and name not in values], "output": node.output[0]}
    if node.op_type == "Relu":
        return ReluSum(**names, kinks=[(0.0, 1)], function=torch.relu)
    if node.op_type == "Clip":
        low, high = _bounds(node, values)
        kinks = [(max(low, LOWEST), 1)] + ([(high, -1)] if math.isfinite(high) else [])
        return ReluSum(**names, kinks=kinks, function=lambda x: x.clamp(low, high))
    if node.op_type == "MaxPool":
        pads = linear.pads(node)
        kernel, stride, dilation = linear.window(node)
        return MaxPool(**names, kernel=kernel, stride=stride, dilation=dilation, pads=pads)
    return Linear(**names, **linear.parts(node, values, shapes))


def _bounds(node: NodeProto, values: Mapping[str, Any]) -> tuple[float, float]:
    """The limits of a Clip: attributes up to opset 10, then inputs."""
    given = [
        float(values[name]) if name else default
        for name, default in zip(
            [*node.input[1:], "", ""][:2],
            (attribute(node, "min", -math.inf), attribute(node, "max", math.inf)),
            strict=True,
        )
    ]
    return given[0], given[1]
