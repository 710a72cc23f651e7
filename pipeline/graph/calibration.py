"""The values that a graph's tensors take over many images, as ONNX Runtime computes them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline import console
from pipeline.graph import load, run

if TYPE_CHECKING:
    from onnx import ModelProto

BATCH = 20  # images at once, since every activation of a batch is in memory; fewer where an image has many
ACTIVATIONS = 20_000_000  # in memory at once
TO_ZERO = 2.0**-25  # float16 rounds this and what is smaller to zero; IEEE 754 binary16, ties to even
UNMEASURED = {"Cast", "Constant", "Pad", "Shape"}  # no activations, or, but for a constant, the input's


@dataclass
class Range:
    """The values of one tensor: the largest magnitude, how many there were, and how many float16 rounds to zero.

    A sum that AveragePool divides counts before the division, as float16 has to hold it; one over the
    whole image doesn't: its sum is taken to be float32's, as the twin's; in float16, many a network would overflow.
    """

    largest: float = 0.0
    values: int = 0
    to_zero: int = 0
    images: int = 0


def ranges(model: ModelProto, images: np.ndarray) -> dict[str, Range]:
    """Measure every float tensor of a float32 graph over uint8 images `[n, c, h, w]`, by the tensor's name.

    A tensor that was not finite has `largest` NaN or infinity.
    """
    from onnx import TensorProto

    floats = load.of_type(model, TensorProto.FLOAT)
    nodes = [n for n in model.graph.node if n.op_type not in UNMEASURED and n.output[0] in floats]
    measured = {node.output[0]: Range(images=len(images)) for node in nodes}
    session = run.watching(model, measured, "activations")
    image = session.get_inputs()[0].name
    with console.progress(len(images), "image", "activations") as bar:
        start, size = 0, 1
        while start < len(images):
            batch = images[start : start + size]
            for activation, values in zip(measured.values(), session.run(None, {image: batch}), strict=True):
                magnitudes = np.abs(values)
                activation.largest = float(np.maximum(activation.largest, magnitudes.max()))  # keeps NaN
                activation.to_zero += int(np.count_nonzero((magnitudes <= TO_ZERO) & (magnitudes > 0)))
                activation.values += magnitudes.size
            bar.update(len(batch))
            start += len(batch)
            size = max(1, min(BATCH, ACTIVATIONS * start // max(1, sum(each.values for each in measured.values()))))
    for node in nodes:
        if node.op_type == "AveragePool":
            measured[node.output[0]].largest *= math.prod(load.attribute(node, "kernel_shape", [1]))
    return measured
