"""Passes on float32 graphs: BatchNorm away, normalisation into the first convolution.

Every pass takes a model and returns the model it was given, changed. Constants are computed in float64 and stored in
float32. `pipeline.stages` measures each against the graph before it over the whole test set.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from pipeline.errors import CheckFailed, reason
from pipeline.graph import load, plain
from pipeline.graph.edit import namer, replace_nodes, store, weights
from pipeline.graph.load import attribute

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

IMAGES, LOGITS, BATCH = "images", "logits", "batch"
SCALE, SHIFT = "pixel_scale", "pixel_shift"  # x * scale + shift = (x / 255 - mean) / std


def normalisation(mean: Iterable[float], std: Iterable[float]) -> tuple[np.ndarray, np.ndarray]:
    """Scale and shift, float64 `[c]`, with `pixel * scale + shift == (pixel / 255 - mean) / std`."""
    means, deviations = np.asarray(mean, np.float64), np.asarray(std, np.float64)
    return 1 / (255 * deviations), -means / deviations


def strip(model: ModelProto) -> ModelProto:
    """Remove what does not compute (stack traces with paths, inferable types) and name nodes by operator and number.

    An exporter's notes would double a small file.
    """
    graph = model.graph
    for message in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        message.ClearField("metadata_props")
        message.ClearField("doc_string")
    graph.ClearField("value_info")
    for index, node in enumerate(graph.node):
        node.name = f"{node.op_type.lower()}_{index}"
    return model


def fold(model: ModelProto) -> tuple[ModelProto, int]:
    """Fold constants, BatchNorm and the normalisation; also return how many BatchNorms were left as Mul and Add.

    The optimiser folds constants and each BatchNormalization behind a Conv, ConvTranspose or Gemm.
    """
    import onnxscript.optimizer

    for node in model.graph.node:
        while node.input[-1:] == [""]:  # an optional input that is left out; the optimiser takes it for a tensor
            node.input.pop()
    try:
        optimised = onnxscript.optimizer.optimize(model)
    except Exception as error:  # the library's own exceptions share no narrower public base
        raise CheckFailed(f"{model.graph.name}: onnxscript can't optimise it: {reason(error)}") from error
    model = plain.pool_globally(plain.fix_shapes(plain.split(optimised)))
    left = batch_norms(model)
    return strip(fold_normalisation(expand_batch_norms(model))), left


def batch_norms(model: ModelProto) -> int:
    """How many BatchNormalization nodes a graph has."""
    return load.operators(model).get("BatchNormalization", 0)


def expand_batch_norms(model: ModelProto) -> ModelProto:
    """Replace each BatchNormalization by Mul and Add.

    y = x * g + (beta - mean * g) with g = gamma / sqrt(var + epsilon). Source: the operator's definition in the ONNX
    specification. Ensures that no BatchNormalization is left.
    """
    from onnx import helper

    values, tensors, new = weights(model), load.values(model), namer(model)
    nodes: list[NodeProto] = []
    constants: dict[str, np.ndarray] = {}
    for node in model.graph.node:
        if node.op_type != "BatchNormalization":
            nodes.append(node)
            continue
        if computed := [name for name in node.input[1:5] if name not in values]:
            raise CheckFailed(
                f"{model.graph.name}: a BatchNormalization's {computed[0]} is computed: expected a constant"
            )
        gamma, beta, mean, variance = (values[name].astype(np.float64) for name in node.input[1:5])
        scale = gamma / np.sqrt(variance + attribute(node, "epsilon", 1e-5))
        shift = beta - mean * scale
        rank = len(load.shape(tensors[node.input[0]])) if node.input[0] in tensors else 4
        channels = (-1, *[1] * (rank - 2))
        result = node.output[0]
        factor, scaled, summand = (new(f"{result}_{end}") for end in ("scale", "scaled", "shift"))
        constants |= {factor: scale.reshape(channels), summand: shift.reshape(channels)}
        nodes.append(helper.make_node("Mul", [node.input[0], factor], [scaled]))
        nodes.append(helper.make_node("Add", [scaled, summand], [result]))
    store(model, {name: value.astype(np.float32) for name, value in constants.items()})
    replace_nodes(model, nodes)
    return model


def fold_normalisation(model: ModelProto) -> ModelProto:
    """Move the per-channel arithmetic on the pixels into the first convolution.

    Requires a Cast of the images. The Mul and Add that follow it become one scale and one shift a channel. The scale
    goes into the convolution's weights; so does the shift, into its bias, where the convolution does not pad. Where it
    pads, zeros stand for the mean, so the shift stays as one Sub of raw pixels: (x - 255 mean) scaled is exact with
    padding, too. A graph that starts with anything but a convolution keeps its Mul and Add.
    """
    from onnx import helper

    values, nodes, new = weights(model), list(model.graph.node), namer(model)
    readers = Counter(name for node in nodes for name in node.input)
    cast = next(node for node in nodes if node.op_type == "Cast" and node.input[0] == model.graph.input[0].name)
    scale, shift, last, folded = np.ones(1), np.zeros(1), cast.output[0], []
    while readers[last] == 1:
        node = next(each for each in nodes if last in each.input)
        step = _affine(node, last, values)
        if step is None:
            break
        scale, shift = scale * step[0], shift * step[0] + step[1]
        folded.append(node)
        last = node.output[0]
    if not folded or node.op_type != "Conv" or node.input[0] != last or node.input[1] not in values:
        return model
    weight, groups = values[node.input[1]].astype(np.float64), attribute(node, "group", 1)
    inputs = weight.shape[1] * groups
    if inputs != model.graph.input[0].type.tensor_type.shape.dim[1].dim_value:  # grey was repeated on the way
        return model
    if any(name and name not in values for name in node.input[2:]):
        return model
    scale, shift = np.broadcast_to(scale, inputs), np.broadcast_to(shift, inputs)
    if _pads(node) and not scale.all():  # no raw pixel stands for the mean of a channel that is multiplied by zero
        return model
    # Channels of each output's own group: [outputs, inputs of a group].
    group = np.arange(len(weight)) // (len(weight) // groups)
    channels = group[:, None] * weight.shape[1] + np.arange(weight.shape[1])
    spatial = (..., *[None] * (weight.ndim - 2))
    kernel = new(f"{node.input[1]}_pixels")
    changed = {kernel: weight * scale[channels][spatial]}
    pixels, bias, front = cast.output[0], list(node.input[2:]), []
    if _pads(node):
        changed[SHIFT] = (-shift / scale).reshape(1, -1, *[1] * (weight.ndim - 2))
        pixels = new("centred_pixels")
        front = [helper.make_node("Sub", [cast.output[0], SHIFT], [pixels])]
    else:
        base = values[bias[0]].astype(np.float64) if bias else 0
        bias = [new(f"{node.output[0]}_bias")]
        changed[bias[0]] = base + (weight * shift[channels][spatial]).sum(tuple(range(1, weight.ndim)))
    node.input[:] = [pixels, kernel, *bias]
    store(model, {name: value.astype(np.float32) for name, value in changed.items()})
    rest = [each for each in nodes if each not in folded]
    place = rest.index(cast) + 1
    replace_nodes(model, [*rest[:place], *front, *rest[place:]])
    return model


def _affine(node: NodeProto, tensor: str, values: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray] | None:
    """Scale and shift of a node that multiplies each channel of `tensor` by a constant or adds one; else None."""
    others = [name for name in node.input if name != tensor]
    if len(others) != 1 or others[0] not in values:
        return None
    constant, is_first = values[others[0]], node.input[0] == tensor
    if constant.size != 1 and (constant.ndim < 3 or constant.size != constant.shape[-3]):  # NCHW
        return None
    value, one, zero = constant.astype(np.float64).reshape(-1), np.ones(1), np.zeros(1)
    if node.op_type == "Mul":
        return value, zero
    if node.op_type == "Add":
        return one, value
    if node.op_type == "Sub" and is_first:
        return one, -value
    if node.op_type == "Div" and is_first and value.all():
        return 1 / value, zero
    return None


def _pads(conv: NodeProto) -> bool:
    explicit = any(attribute(conv, "pads", []))
    return explicit or attribute(conv, "auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID")
