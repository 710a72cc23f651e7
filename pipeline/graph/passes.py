"""Passes on float32 graphs: preprocessing in front, BatchNorm away, normalisation into the first convolution.

Every pass takes a model and returns the model it was given, changed. Constants are computed in float64 and stored in
float32. `pipeline.stages` measures each against the graph before it over the whole test set.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from pipeline.graph.load import attribute, shape

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

IMAGES, LOGITS, BATCH = "images", "logits", "batch"
SCALE, SHIFT = "pixel_scale", "pixel_shift"  # x * scale + shift = (x / 255 - mean) / std


def normalisation(mean: Iterable[float], std: Iterable[float]) -> tuple[np.ndarray, np.ndarray]:
    """Scale and shift, float64 `[c]`, with `pixel * scale + shift == (pixel / 255 - mean) / std`."""
    means, deviations = np.asarray(mean, np.float64), np.asarray(std, np.float64)
    return 1 / (255 * deviations), -means / deviations


def weights(model: ModelProto) -> dict[str, np.ndarray]:
    """Every constant of a graph by name: initialisers and the outputs of Constant nodes."""
    from onnx import numpy_helper

    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and (value := attribute(node, "value")) is not None:
            values[node.output[0]] = numpy_helper.to_array(value)
    return values


def store(model: ModelProto, values: Mapping[str, np.ndarray]) -> None:
    """Set initialisers by name; those that the graph does not have yet are added."""
    from onnx import numpy_helper

    known = {tensor.name: tensor for tensor in model.graph.initializer}
    for name, value in values.items():
        tensor = known[name] if name in known else model.graph.initializer.add()
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value), name))


def replace_nodes(model: ModelProto, nodes: Iterable[NodeProto]) -> None:
    """Make these the graph's nodes; initialisers that no node uses any more go."""
    kept = list(nodes)
    used = {name for node in kept for name in node.input} | {value.name for value in model.graph.output}
    tensors = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.node[:], model.graph.initializer[:], model.graph.value_info[:]
    model.graph.node.extend(kept)
    model.graph.initializer.extend(tensors)


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


def optimize(model: ModelProto) -> ModelProto:
    """Fold constants and BatchNormalization behind Conv, ConvTranspose and Gemm, and drop what does nothing."""
    import onnxscript.optimizer

    return onnxscript.optimizer.optimize(model)


def split_plainly(model: ModelProto) -> ModelProto:
    """Replace SplitToSequence, whose parts SequenceAt picks, by Split: runtimes on devices have no sequences.

    PyTorch exports `chunk` so. A split whose sizes or picks are not constant is left.
    """
    from onnx import helper, shape_inference

    inferred, values = shape_inference.infer_shapes(model, data_prop=True).graph, weights(model)
    shapes = {value.name: shape(value) for value in [*inferred.value_info, *inferred.input]}
    nodes, sizes, parts = [], {}, {}
    for node in model.graph.node:
        if node.op_type == "SplitToSequence" and (split := _sizes(node, shapes, values)):
            picks = [each for each in model.graph.node if node.output[0] in each.input]
            if all(each.op_type == "SequenceAt" and each.input[1] in values for each in picks):
                name = node.output[0]
                sizes[f"{name}_sizes"] = np.asarray(split, np.int64)
                outputs = [f"{name}_{index}" for index in range(len(split))]
                axis = attribute(node, "axis", 0)
                nodes.append(helper.make_node("Split", [node.input[0], f"{name}_sizes"], outputs, axis=axis))
                parts |= {each.output[0]: outputs[int(values[each.input[1]])] for each in picks}
                continue
        if node.op_type == "SequenceAt" and node.output[0] in parts:
            nodes.append(helper.make_node("Identity", [parts[node.output[0]]], [node.output[0]]))
            continue
        nodes.append(node)
    store(model, sizes)
    replace_nodes(model, nodes)
    return model


def _sizes(node: NodeProto, shapes: Mapping[str, list[int]], values: Mapping[str, np.ndarray]) -> list[int]:
    """The sizes that a SplitToSequence splits into; empty if they are not known or it drops the axis."""
    axis, dims = attribute(node, "axis", 0), shapes.get(node.input[0], [])
    whole = dims[axis] if -len(dims) <= axis < len(dims) else 0
    if len(node.input) < 2 or node.input[1] not in values or not whole:
        return []
    split = values[node.input[1]]
    each = int(split) if split.ndim == 0 else 0
    return [min(each, whole - start) for start in range(0, whole, each)] if each else [int(size) for size in split]


def batch_norms(model: ModelProto) -> int:
    """How many BatchNormalization nodes a graph has."""
    return sum(node.op_type == "BatchNormalization" for node in model.graph.node)


def expand_batch_norms(model: ModelProto) -> ModelProto:
    """Replace each BatchNormalization by Mul and Add.

    y = x * g + (beta - mean * g) with g = gamma / sqrt(var + epsilon). Source: the operator's definition in the ONNX
    specification. Ensures that no BatchNormalization is left.
    """
    from onnx import helper, shape_inference

    values, nodes, constants = weights(model), [], {}
    inferred = shape_inference.infer_shapes(model).graph
    ranks = {v.name: len(v.type.tensor_type.shape.dim) for v in [*inferred.value_info, *inferred.input]}
    for node in model.graph.node:
        if node.op_type != "BatchNormalization":
            nodes.append(node)
            continue
        gamma, beta, mean, variance = (values[name].astype(np.float64) for name in node.input[1:5])
        scale = gamma / np.sqrt(variance + attribute(node, "epsilon", 1e-5))
        shift = beta - mean * scale
        channels = (-1, *[1] * (ranks.get(node.input[0], 4) - 2))
        result = node.output[0]
        constants |= {f"{result}_scale": scale.reshape(channels), f"{result}_shift": shift.reshape(channels)}
        nodes.append(helper.make_node("Mul", [node.input[0], f"{result}_scale"], [f"{result}_scaled"]))
        nodes.append(helper.make_node("Add", [f"{result}_scaled", f"{result}_shift"], [result]))
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

    values, nodes = weights(model), list(model.graph.node)
    uses = Counter(name for node in nodes for name in node.input) + Counter(v.name for v in model.graph.output)
    cast = next(node for node in nodes if node.op_type == "Cast" and node.input[0] == model.graph.input[0].name)
    scale, shift, last, folded = 1.0, 0.0, cast.output[0], []
    while uses[last] == 1:
        node = next(each for each in nodes if last in each.input)
        step = _affine(node, last, values)
        if step is None:
            break
        scale, shift = scale * step[0], shift * step[0] + step[1]
        folded.append(node)
        last = node.output[0]
    if not folded or node.op_type != "Conv" or node.input[0] != last or node.input[1] not in values:
        return model
    weight = values[node.input[1]].astype(np.float64)
    inputs = weight.shape[1] * attribute(node, "group", 1)
    scale, shift = np.broadcast_to(scale, inputs), np.broadcast_to(shift, inputs)
    # Channels of each output's own group: [outputs, inputs of a group].
    group = np.arange(len(weight)) // (len(weight) // attribute(node, "group", 1))
    channels = group[:, None] * weight.shape[1] + np.arange(weight.shape[1])
    spatial = (..., *[None] * (weight.ndim - 2))
    changed = {f"{node.input[1]}_pixels": weight * scale[channels][spatial]}
    front = []
    if _pads(node):
        changed[SHIFT] = (-shift / scale).reshape(1, -1, *[1] * (weight.ndim - 2))
        front = [helper.make_node("Sub", [cast.output[0], SHIFT], ["centred_pixels"])]
        bias = list(node.input[2:])
    else:
        base = values[node.input[2]].astype(np.float64) if len(node.input) > 2 else 0
        changed[f"{node.output[0]}_bias"] = base + (weight * shift[channels][spatial]).sum(tuple(range(1, weight.ndim)))
        bias = [f"{node.output[0]}_bias"]
    node.input[:] = [front[0].output[0] if front else cast.output[0], f"{node.input[1]}_pixels", *bias]
    store(model, {name: value.astype(np.float32) for name, value in changed.items()})
    rest = [each for each in nodes if each not in folded]
    place = rest.index(cast) + 1
    replace_nodes(model, [*rest[:place], *front, *rest[place:]])
    return model


def _affine(node: NodeProto, name: str, values: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray] | None:
    """Scale and shift of a node that multiplies each channel of `name` by a constant or adds one; else None."""
    if node.op_type not in ("Mul", "Add", "Sub", "Div") or len(node.input) != 2:
        return None
    other = node.input[1] if node.input[0] == name else node.input[0]
    constant = values.get(other)
    swapped = node.input[0] != name and node.op_type in ("Sub", "Div")
    if constant is None or swapped or not _per_channel(constant):
        return None
    value = constant.astype(np.float64).reshape(-1)
    return {
        "Mul": (value, np.zeros(1)),
        "Div": (1 / value if value.all() else value, np.zeros(1)),
        "Add": (np.ones(1), value),
        "Sub": (np.ones(1), -value),
    }[node.op_type]


def _per_channel(constant: np.ndarray) -> bool:
    """Whether a constant of an NCHW graph has one value, or one a channel."""
    shape = constant.shape[-4:]
    return constant.size == 1 or (len(shape) >= 3 and constant.size == shape[-3])


def _pads(conv: NodeProto) -> bool:
    explicit = any(attribute(conv, "pads", ()))
    return explicit or attribute(conv, "auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID")
