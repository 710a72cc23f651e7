"""Faults of TensorRT that others have reported, told before a build that may run into one.

A fault has versions, element types and a graph that it needs. Only what its reference says stands here: a later version
in which it may be mended counts as mended only if somebody says so there.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import ModelProto


@dataclass(frozen=True)
class Fault:
    """A fault of the versions from `first` on, up to but without `fixed`, which is None where no version is known."""

    reference: str
    first: str
    fixed: str | None
    elements: tuple[str, ...]
    graph: str
    effect: str
    fits: Callable[[ModelProto], bool]

    def __str__(self) -> str:
        mended = f"right again in {self.fixed}" if self.fixed else "no version is known to mend it"
        return f"{self.effect} for {self.graph}, reported for TensorRT {self.first}, {mended}: {self.reference}"


def _grouped(model: ModelProto) -> bool:
    convolutions = [node for node in model.graph.node if node.op_type in ("Conv", "ConvTranspose")]
    return any(each.name == "group" and each.i > 1 for node in convolutions for each in node.attribute)


def _residual_in_concat(model: ModelProto) -> bool:
    """Tell whether what is added to a computed tensor goes into a Concat, too."""
    computed = {name for node in model.graph.node if node.op_type != "Constant" for name in node.output}
    joined = {name for node in model.graph.node if node.op_type == "Concat" for name in node.input}
    sums = [{*node.input} for node in model.graph.node if node.op_type == "Add"]
    return any(operands <= computed and operands & joined for operands in sums)


def _attention(model: ModelProto) -> bool:
    """Tell whether a Softmax's result goes into a product, whatever lies between the two but products and sums."""
    weighted: set[str] = set()
    for node in model.graph.node:  # which ONNX has in topological order
        if node.op_type == "Attention" or (node.op_type == "MatMul" and weighted & {*node.input}):
            return True
        if node.op_type == "Softmax" or (node.op_type not in ("MatMul", "Gemm", "Add") and weighted & {*node.input}):
            weighted |= {*node.output}
    return False


FAULTS = (
    Fault(
        reference="https://github.com/NVIDIA/TensorRT/issues/4838",
        first="11.2.1",
        fixed=None,
        elements=("HALF", "INT8"),
        graph="grouped convolutions in float16",
        effect="no kernel, so the build fails,",
        fits=_grouped,
    ),
    Fault(
        reference="https://github.com/NVIDIA/TensorRT/issues/4854",
        first="11.2.1",
        fixed=None,
        elements=("HALF", "INT8"),
        graph="float16 tensors that are both added to a residual branch and concatenated",
        effect="wrong answers (`pipeline verify` of the engine tells)",
        fits=_residual_in_concat,
    ),
    Fault(
        reference="https://github.com/NVIDIA/TensorRT/issues/4419",
        first="10.3",
        fixed="10.5",
        elements=("HALF", "FLOAT", "INT8"),
        graph="attention with dynamic sizes, such as a free batch",
        effect="wrong answers (`pipeline verify` of the engine tells)",
        fits=_attention,
    ),
)


def of_version(runtime: str, version: str) -> list[Fault]:
    """Return the faults of an installed TensorRT; tensorrt-rtx, whose versions are its own, has none here."""
    if runtime != "tensorrt":
        return []
    return [
        fault
        for fault in FAULTS
        if _numbers(fault.first) <= _numbers(version)
        and (fault.fixed is None or _numbers(version) < _numbers(fault.fixed))
    ]


def fitting(runtime: str, version: str, element: str, model: ModelProto) -> list[Fault]:
    """Return those faults of a version that a build of this graph in `element` may run into."""
    return [each for each in of_version(runtime, version) if element in each.elements and each.fits(model)]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])
