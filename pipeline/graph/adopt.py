"""Passes that make somebody else's image classifier a graph of the chain, one that maps uint8 images to logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pipeline.errors import CheckFailed, UsageError, reason
from pipeline.graph import edit, load, metadata, passes, run

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

OLDEST = 7  # the oldest operator set that is taken
OPSET, IR_VERSION = 18, 8  # what an older file is converted to
SHAPE_ONLY = {"Reshape", "Flatten", "Squeeze", "Identity"}  # what may stand behind a Softmax
OWN = (passes.IMAGES, passes.LOGITS, passes.SCALE, passes.SHIFT, "pixels", "scaled_pixels", "normalised")


def parse(content: bytes, name: str) -> ModelProto:
    """Parse a file from elsewhere and convert it to operator set 18, or leave a newer one.

    Raises CheckFailed for what can't be taken: operator sets before 7, files that are float16 or quantised already, and
    all that `load.refuse` names.
    """
    import onnx

    model = load.parse(content, name)
    version = metadata.opset(model)
    if version < OLDEST:
        raise CheckFailed(f"{name}: has operator set {version}: expected {OLDEST} or later")
    kinds = {tensor.data_type for tensor in model.graph.initializer}
    if onnx.TensorProto.FLOAT16 in kinds or onnx.TensorProto.BFLOAT16 in kinds:
        raise CheckFailed(f"{name}: has float16 weights already: expected the float32 file that it was made from")
    if quantised := {n.op_type for n in model.graph.node if "Quantize" in n.op_type or "Integer" in n.op_type}:
        names = ", ".join(sorted(quantised))
        raise CheckFailed(f"{name}: is quantised already ({names}): expected the float32 file that it was made from")
    weights = {tensor.name for tensor in model.graph.initializer}  # before IR version 4 they are inputs, too
    inputs = [value for value in model.graph.input if value.name not in weights]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    model.ir_version = max(model.ir_version, IR_VERSION)
    if version < OPSET:
        try:
            model = onnx.version_converter.convert_version(model, OPSET)
        except Exception as error:  # what C++ throws has no narrower public base
            raise CheckFailed(f"{name}: can't be converted to operator set {OPSET}: {reason(error)}") from error
    return model


def image_input(model: ModelProto, name: str) -> tuple[list[int], bool, int]:
    """The image that a graph takes: [channels, height, width], whether the channels come last, and its batch (0: free).

    Raises CheckFailed for anything but one float32 image input of a fixed size.
    """
    import onnx

    received = ", ".join(load.signature(value) for value in model.graph.input)
    if len(model.graph.input) != 1:
        raise CheckFailed(f"{name}: has {len(model.graph.input)} inputs ({received}): expected one, the image")
    image = model.graph.input[0]
    batch, *sizes = load.shape(image) or [0]
    last = len(sizes) == 3 and sizes[0] not in (1, 3) and sizes[2] in (1, 3)
    if last:
        sizes = [sizes[2], sizes[0], sizes[1]]
    is_float = image.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    if len(sizes) != 3 or not is_float or not all(sizes) or sizes[0] not in (1, 3):
        raise CheckFailed(
            f"{name}: takes {received}: expected a float32 image of a fixed size, [batch, channels, height, width] or "
            "[batch, height, width, channels] with 1 or 3 channels"
        )
    return sizes, last, batch


def last_activation(model: ModelProto) -> str | None:
    """The Softmax or LogSoftmax that a graph ends with, possibly before operators that only change the shape."""
    node = _last_activation(model)
    return node.op_type if node is not None else None


def _last_activation(model: ModelProto) -> NodeProto | None:
    producers = {name: node for node in model.graph.node for name in node.output}
    node = producers.get(model.graph.output[0].name)
    while node is not None and node.op_type in SHAPE_ONLY:
        node = producers.get(node.input[0])
    return node if node is not None and node.op_type in ("Softmax", "LogSoftmax") else None


def adopt(model: ModelProto, mean: Sequence[float], std: Sequence[float], classes: int, name: str) -> ModelProto:
    """Give a graph the chain's input, uint8 `images` [batch, c, h, w], and output, float32 `logits` [batch, classes].

    The pixels are normalised in front, a Softmax at the end is dropped, and a fixed batch is freed. Raises UsageError
    if the graph does not classify into so many classes.
    """
    from onnx import TensorProto, helper

    (channels, height, width), channels_last, batch = image_input(model, name)
    graph = model.graph
    if len(graph.output) != 1:
        raise CheckFailed(f"{name}: has {len(graph.output)} outputs: expected one, the class scores")
    names = {each: f"network_{each}" for each in OWN}
    edit.rename(graph.node, names)
    for value in (*graph.input, *graph.output, *graph.initializer):
        value.name = names.get(value.name, value.name)
    if batch:
        _free_batch(model, batch)
    image, output = graph.input[0].name, graph.output[0].name
    scale, shift = (each.astype(np.float32).reshape(1, -1, 1, 1) for each in passes.normalisation(mean, std))
    front = [
        helper.make_node("Cast", [passes.IMAGES], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["pixels", passes.SCALE], ["scaled_pixels"]),
        helper.make_node("Add", ["scaled_pixels", passes.SHIFT], ["normalised" if channels_last else image]),
    ]
    if channels_last:
        front.append(helper.make_node("Transpose", ["normalised"], [image], perm=[0, 2, 3, 1]))
    edit.store(model, {passes.SCALE: scale, passes.SHIFT: shift})
    nodes = [*front, *_without_activation(model), helper.make_node("Flatten", [output], [passes.LOGITS], axis=1)]
    shape = [passes.BATCH, channels, height, width]
    graph.input[0].CopyFrom(helper.make_tensor_value_info(passes.IMAGES, TensorProto.UINT8, shape))
    graph.output[0].CopyFrom(helper.make_tensor_value_info(passes.LOGITS, TensorProto.FLOAT, None))
    edit.replace_nodes(model, nodes)
    # What the file gives for another batch than its own is known once it has run.
    logits = run.outputs(model, np.zeros([3, channels, height, width], np.uint8), name)
    if len(logits) != 3:
        raise CheckFailed(f"{name}: gives {len(logits)} rows of scores for 3 images, as of a fixed batch: expected 3")
    if logits.shape[1] != classes:
        n = logits.shape[1]
        raise UsageError(f"{name}: gives {n} scores an image: expected {n} names by --classes, received {classes}")
    shape = [passes.BATCH, classes]
    graph.output[0].CopyFrom(helper.make_tensor_value_info(passes.LOGITS, TensorProto.FLOAT, shape))
    return model


def _without_activation(model: ModelProto) -> list[NodeProto]:
    """The nodes without a last Softmax or LogSoftmax; what read its result reads its input."""
    nodes, activation, output = list(model.graph.node), _last_activation(model), model.graph.output[0].name
    if activation is not None:
        nodes.remove(activation)
        before, after = activation.input[0], activation.output[0]
        edit.rename(nodes, {before: after} if after == output else {after: before})  # the output keeps its name
    return nodes


def _free_batch(model: ModelProto, batch: int) -> None:
    """Let Reshape keep the batch as it comes, where its target begins with the batch that the file was made for."""
    weights, new, freed = edit.weights(model), edit.namer(model), {}
    for node in model.graph.node:
        target = weights.get(node.input[1]) if node.op_type == "Reshape" and node.input[0] not in weights else None
        if target is not None and target.ndim == 1 and target[:1].tolist() == [batch]:
            node.input[1] = new(f"{node.input[1]}_freed")  # others may read the target, too
            freed[node.input[1]] = np.array([0, *target[1:]])
            kept = [each for each in node.attribute if each.name != "allowzero"]  # 0 is to mean "as it comes"
            del node.attribute[:]
            node.attribute.extend(kept)
    edit.store(model, freed)
