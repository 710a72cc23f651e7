"""What the executions of a graph may round, and how far that moves an operator's result.

The standard model of floating-point arithmetic: N. Higham, Accuracy and Stability of Numerical Algorithms, ch. 3 and 4.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pipeline.graph.float16 import LARGEST, SMALLEST_NORMAL
from pipeline.graph.operators import Linear

ROUNDING = 2.0**-11  # float16's unit roundoff, IEEE 754 binary16
TRUNCATION = 2.0**-23  # the most that a float32 sum loses at a node, relative, if it truncates
PER_TERM = 3  # losses a term: its alignment as an operand, twice, and the node's result
OWN = 1e-9  # this program's rounding in float64, relative; sums of a million terms stay under a tenth of it


@dataclass(frozen=True)
class Execution:
    """What a program may do that runs the graph; the names are those of docs/guarantees.md."""

    bias_apart: bool = False  # a sum may be rounded to float16 before its constant is added
    flushes: bool = False  # numbers under float16's smallest normal one may be taken for zero
    float16_averages: bool = False  # averages may be summed in float16


EXECUTIONS = {
    "A1": Execution(),
    "A": Execution(bias_apart=True, flushes=True),
    "A1-float16-averages": Execution(float16_averages=True),
}


def own_error(
    each: Linear, execution: Execution, xs: list[torch.Tensor], es: list[torch.Tensor], size: torch.Tensor
) -> torch.Tensor:
    """Bound what an operator adds to its exact result on any inputs within `es` of `xs`; infinite where it overflows.

    `size` bounds the magnitude of that exact result.

    A sum of n + 1 terms, in any order, loses at most 3 (n + 1) 2^-23 M / (1 - that), where every partial sum lies
    within M = (sum of magnitudes + |result|) / 2; two terms more pay for products and averages that are rounded.
    """
    if not each.terms:
        return torch.zeros_like(size)
    eta = SMALLEST_NORMAL if execution.flushes else SMALLEST_NORMAL * ROUNDING
    reach = [x.abs() + e for x, e in zip(xs, es, strict=True)]
    products, constant = each.apply(each.weight.abs(), *reach), each.constant.abs()
    partial = (products + constant + size) / 2
    loss = PER_TERM * (each.terms + 3) * TRUNCATION
    if loss >= 0.5:
        return torch.full_like(size, torch.inf)
    error = partial * loss / (1 - loss)
    if each.averages and execution.float16_averages:
        loss = ROUNDING * (each.terms + 2)
        error = (products * loss + eta * (each.terms + 2)) / (1 - loss) if loss < 0.5 else products + torch.inf
    flushed = constant * (constant < SMALLEST_NORMAL) * execution.flushes
    if execution.flushes and not each.averages:
        flushed = flushed + each.apply(each.weight.abs() * (each.weight.abs() < SMALLEST_NORMAL), *reach)
    error = error + flushed
    largest = size + error
    if execution.bias_apart and each.constant.any():
        error = error + ROUNDING * (size + constant + error) + eta
        largest = size + constant + error
    if each.averages and execution.float16_averages:
        largest = products * each.terms + error
    error = error + ROUNDING * (size + error) + eta
    error = torch.where(products == 0, flushed, error)  # nothing but zeros: the constant as it is
    return torch.where(largest + error > LARGEST, torch.inf, error + OWN * (products + constant))
