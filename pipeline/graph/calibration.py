"""The values that a graph's tensors take over many images, measured in the graph itself by ONNX Runtime."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline import console
from pipeline.graph import run
from pipeline.graph.load import attribute

if TYPE_CHECKING:
    from onnx import ModelProto

BATCH = 100  # images at once: with the extra outputs, every activation of a batch is in memory
TO_ZERO = 2.0**-25  # float16 rounds what is smaller to zero; IEEE 754 binary16
CONSTANT_INPUTS = {"Cast", "Constant", "Shape"}  # operators whose results are not activations


@dataclass
class Range:
    """What one tensor's values were: the largest magnitude, how many there were, and how many float16 rounds to zero.

    A sum that an average pool divides counts before the division, as float16 has to hold it.
    """

    largest: float = 0.0
    values: int = 0
    to_zero: int = 0
    images: int = 0


def ranges(model: ModelProto, images: np.ndarray) -> dict[str, Range]:
    """Measure every float tensor of a float32 graph over uint8 images `[n, c, h, w]`, by the tensor's name.

    A tensor that was not finite has `largest` NaN or infinity.
    """
    watched, outputs = _watched(model)
    session = run.session(watched, "activations")
    image, found = session.get_inputs()[0].name, {name: Range() for name in outputs}
    with console.progress(len(images), "image", "activations") as bar:
        for start in range(0, len(images), BATCH):
            batch = images[start : start + BATCH]
            measured = session.run([each for name in outputs for each in _names(name)], {image: batch})
            for index, (name, factor) in enumerate(outputs.items()):
                largest, small, zero, size = (np.asarray(each) for each in measured[4 * index : 4 * index + 4])
                seen = found[name]
                seen.largest = float(np.maximum(seen.largest, largest.item() * factor))  # keeps NaN
                seen.to_zero += int(small.item() - zero.item())
                seen.values += int(size.item())
                seen.images += len(batch)
            bar.update(len(batch))
    return found


def _names(name: str) -> list[str]:
    return [f"{name}_largest", f"{name}_small", f"{name}_zero", f"{name}_size"]


def _watched(model: ModelProto) -> tuple[ModelProto, dict[str, int]]:
    """The graph with four numbers a float tensor as its outputs, and by what each tensor's largest is multiplied."""
    from onnx import TensorProto, helper, numpy_helper, shape_inference

    inferred = shape_inference.infer_shapes(model, strict_mode=True).graph
    values = [*inferred.value_info, *inferred.output]
    floats = {value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT}
    seen = copy.deepcopy(model)
    factors = {
        node.output[0]: _pooled(node)
        for node in model.graph.node
        if node.op_type not in CONSTANT_INPUTS and node.output[0] in floats
    }
    del seen.graph.output[:]
    seen.graph.initializer.append(numpy_helper.from_array(np.float32(TO_ZERO), "to_zero_limit"))
    for name in factors:
        largest, small, zero, size = _names(name)
        flags, nothing = f"{name}_is_small", f"{name}_is_zero"
        seen.graph.node.extend(
            [
                helper.make_node("Abs", [name], [f"{name}_magnitude"]),
                helper.make_node("ReduceMax", [f"{name}_magnitude"], [largest], keepdims=0),
                helper.make_node("Less", [f"{name}_magnitude", "to_zero_limit"], [flags]),
                helper.make_node("Cast", [flags], [f"{flags}_int"], to=TensorProto.INT64),
                helper.make_node("ReduceSum", [f"{flags}_int"], [small], keepdims=0),
                helper.make_node("Cast", [f"{name}_magnitude"], [f"{nothing}_not"], to=TensorProto.BOOL),
                helper.make_node("Not", [f"{nothing}_not"], [nothing]),
                helper.make_node("Cast", [nothing], [f"{nothing}_int"], to=TensorProto.INT64),
                helper.make_node("ReduceSum", [f"{nothing}_int"], [zero], keepdims=0),
                helper.make_node("Size", [name], [size]),
            ]
        )
        seen.graph.output.append(helper.make_tensor_value_info(largest, TensorProto.FLOAT, []))
        counts = (small, zero, size)
        seen.graph.output.extend(helper.make_tensor_value_info(each, TensorProto.INT64, []) for each in counts)
    return seen, factors


def _pooled(node: object) -> int:
    """How many values an average pool sums before it divides; 1 for every other operator."""
    return int(np.prod(attribute(node, "kernel_shape"))) if node.op_type == "AveragePool" else 1
