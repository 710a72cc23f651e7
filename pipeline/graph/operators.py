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
from pipeline.graph.load import attribute

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

SMALLEST_NORMAL = 2.0**-14  # float16's; IEEE 754 binary16
SUMS = ("Conv", "Gemm", "Add", "Sub", "Mul", "AveragePool", "GlobalAveragePool")
KNOWN = (*linear.MOVES, *SUMS, "Concat", "Relu", "Clip", "MaxPool")


@dataclass(frozen=True)
class Node:
    """A node, known by the names of its inputs that are not constants, and of its output."""

    inputs: list[str]
    output: str


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
        """At most how many results a value is a factor of; so many products a gradient's sum has."""
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
    values, problems = edit.weights(model), set()
    shapes = {name: load.shape(value)[1:] for name, value in load.values(model).items()}
    for node in model.graph.node:
        variable = [name for name in node.input if name and name not in values]
        if node.op_type not in (*KNOWN, "Constant"):
            problems.add(node.op_type)
        elif node.output[0] not in shapes:
            problems.add(f"{node.op_type} of unknown shape")
        elif attribute(node, "auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID") or attribute(node, "ceil_mode", 0):
            problems.add(f"{node.op_type} with auto_pad or ceil_mode")
        elif node.op_type in ("Conv", "AveragePool", "MaxPool") and len(_square(node, values)) != 2:
            problems.add(f"{node.op_type} in other than two dimensions")
        elif len(variable) != 1 and not (node.op_type in ("Add", "Sub", "Concat") and len(variable) == len(node.input)):
            problems.add(f"{node.op_type} of {len(variable)} computed values")
        elif node.op_type in ("Add", "Sub", "Mul") and any(shapes.get(x) != shapes[node.output[0]] for x in variable):
            problems.add(f"{node.op_type} that repeats a computed value")
        elif node.op_type == "Clip" and np.greater(*_bounds(node, values)):
            problems.add("Clip with min over max")
        elif (attribute(node, "alpha", 1.0), attribute(node, "beta", 1.0)) != (1, 1):
            problems.add(f"{node.op_type} with alpha or beta")
        elif node.op_type == "Gemm" and (node.input[0] != variable[0] or attribute(node, "transA", 0)):
            problems.add("Gemm with transA or a constant first")
    return sorted(problems)


def _square(node: NodeProto, values: Mapping[str, np.ndarray]) -> list[int]:
    """A window's edges."""
    weight = list(values[node.input[1]].shape[2:]) if node.op_type == "Conv" and node.input[1] in values else [1, 1]
    return list(attribute(node, "kernel_shape", weight))


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
        kinks = [(at, sign) for at, sign in ((low, 1), (high, -1)) if math.isfinite(at)]
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
