"""ONNX's linear operators: how each multiplies and adds, and the transpose of that."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from pipeline.graph.load import attribute

if TYPE_CHECKING:
    from onnx import NodeProto

MOVES = ("Cast", "Identity", "Dropout", "Flatten", "Reshape", "Squeeze", "Unsqueeze")  # one image's values in order


def parts(node: NodeProto, values: Mapping[str, torch.Tensor], shapes: Mapping[str, list[int]]) -> dict[str, Any]:
    """The fields of `operators.Linear` for a node; `values` are constants, `shapes` tensors', without a batch."""
    shape = shapes[node.output[0]]
    zero = torch.zeros((), dtype=torch.float64)
    fields: dict[str, Any] = {"weight": zero + 1, "constant": zero, "terms": 0}
    if node.op_type in MOVES:
        fields |= {
            "apply": lambda w, x: x.reshape(len(x), *shape),
            "transpose": lambda g, s: [g.reshape(len(g), *s[0][1:])],
        }
    elif node.op_type == "Concat":
        fields |= _concat(attribute(node, "axis", 1), len(shape) + 1)
    elif node.op_type == "Conv":
        fields |= _conv(node, values)
    elif node.op_type == "Gemm":
        fields |= _gemm(node, values)
    elif node.op_type in ("Add", "Sub", "Mul"):
        fields |= _elementwise(node, values)
    else:
        fields |= _average(node, shapes[node.input[0]])
    return fields


def _concat(axis: int, dimensions: int) -> dict[str, Any]:
    axis %= dimensions
    return {
        "apply": lambda w, *xs: torch.cat(xs, axis),
        "transpose": lambda g, shapes: list(g.split([shape[axis] for shape in shapes], axis)),
    }


def _conv(node: NodeProto, values: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    weight, group = values[node.input[1]], attribute(node, "group", 1)
    _, stride, dilation = window(node)
    return _convolution(weight, stride, dilation, pads(node), group) | {
        "terms": weight[0].numel(),
        "constant": values[node.input[2]][:, None, None] if len(node.input) > 2 and node.input[2] else torch.zeros(()),
    }


def _convolution(
    weight: torch.Tensor, stride: list[int], dilation: list[int], pads: list[int], group: int
) -> dict[str, Any]:
    left, right, top, bottom = pads

    def apply(w: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return functional.conv2d(functional.pad(x, pads), w, None, stride, 0, dilation, group)

    def transpose(g: torch.Tensor, shapes: list[torch.Size]) -> list[torch.Tensor]:
        height, width = shapes[0][-2:]
        size = [len(g), shapes[0][1], height + top + bottom, width + left + right]
        padded = torch.nn.grad.conv2d_input(size, weight.to(g.dtype), g, stride, 0, dilation, group)
        return [padded[..., top : top + height, left : left + width]]

    return {"weight": weight, "apply": apply, "transpose": transpose}


def _gemm(node: NodeProto, values: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    weight = values[node.input[1]]
    weight = weight if attribute(node, "transB", 0) else weight.T
    bias = values[node.input[2]] if len(node.input) > 2 and node.input[2] else torch.zeros(())
    return {
        "weight": weight,
        "apply": lambda w, x: x @ w.T,
        "transpose": lambda g, shapes: [g @ weight.to(g.dtype)],
        "terms": weight.shape[1],
        "constant": bias,
    }


def _elementwise(node: NodeProto, values: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    first, second = node.input
    sign = -1 if node.op_type == "Sub" else 1
    if node.op_type == "Mul":
        factor = values[second] if second in values else values[first]
        return {
            "weight": factor,
            "apply": lambda w, x: x * w,
            "transpose": lambda g, _: [g * factor.to(g.dtype)],
            "terms": 1,
        }
    if first not in values and second not in values:
        weight = torch.tensor([1.0, sign], dtype=torch.float64)
        return {
            "weight": weight,
            "apply": lambda w, x, y: x * w[0] + y * w[1],
            "transpose": lambda g, _: [g, g * sign],
            "terms": 2,
        }
    constant = sign * values[second] if second in values else values[first]
    weight = torch.tensor(1.0 if second in values else sign, dtype=torch.float64)
    return {
        "weight": weight,
        "apply": lambda w, x: x * w,
        "transpose": lambda g, _: [g * weight.to(g.dtype)],
        "terms": 1,
        "constant": constant,
    }


def _average(node: NodeProto, shape: list[int]) -> dict[str, Any]:
    """An average as a convolution by its own share of each window, so that padding may count or not."""
    whole = node.op_type == "GlobalAveragePool"
    kernel, stride, dilation = (list(shape[1:]), [1, 1], [1, 1]) if whole else window(node)
    edges = [0, 0, 0, 0] if whole else pads(node)
    one = torch.ones(shape[0], 1, *kernel, dtype=torch.float64)
    sums = _convolution(one, stride, dilation, edges, shape[0])
    if attribute(node, "count_include_pad", 0):
        share = torch.tensor(1 / math.prod(kernel), dtype=torch.float64)
    else:
        share = 1 / sums["apply"](one, torch.ones(1, *shape, dtype=torch.float64))
    return {
        "weight": one,
        "apply": lambda w, x: sums["apply"](w, x) * share,
        "transpose": lambda g, shapes: sums["transpose"](g * share.to(g.dtype), shapes),
        "terms": math.prod(kernel),
        "averages": True,
    }


def window(node: NodeProto) -> tuple[list[int], list[int], list[int]]:
    """A window's edges, strides and dilations."""
    kernel = list(attribute(node, "kernel_shape", [1, 1]))
    return kernel, list(attribute(node, "strides", [1, 1])), list(attribute(node, "dilations", [1, 1]))


def pads(node: NodeProto) -> list[int]:
    """A window's padding as PyTorch has it: left, right, top, bottom."""
    top, left, bottom, right = attribute(node, "pads", [0, 0, 0, 0])
    return [left, right, top, bottom]
