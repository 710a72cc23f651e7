"""Passes that make somebody else's image classifier a graph of the chain, one that maps uint8 images to logits."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pipeline.errors import CheckFailed, reason
from pipeline.graph import load, metadata, passes

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

OLDEST, OPSET = 7, 18  # the oldest operator set that is taken, and what it is converted to
SHAPE_ONLY = {"Reshape", "Flatten", "Squeeze", "Identity"}  # what may stand behind a Softmax
ACTIVATIONS = ("Softmax", "LogSoftmax")


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
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]  # before IR version 4 they are both
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    model.ir_version = max(model.ir_version, metadata.IR_VERSIONS[OPSET])
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
    node = _producer(model, model.graph.output[0].name)
    while node is not None and node.op_type in SHAPE_ONLY:
        node = _producer(model, node.input[0])
    return node.op_type if node is not None and node.op_type in ACTIVATIONS else None


def adopt(model: ModelProto, mean: Sequence[float], std: Sequence[float], classes: int, name: str) -> ModelProto:
    """Give a graph the chain's input, uint8 `images` [batch, c, h, w], and output, float32 `logits` [batch, classes].

    The pixels are normalised in front, a Softmax at the end is dropped, and a fixed batch is freed. Raises CheckFailed
    if the graph does not classify into so many classes.
    """
    from onnx import TensorProto, helper

    (channels, height, width), channels_last, batch = image_input(model, name)
    if len(model.graph.output) != 1:
        raise CheckFailed(f"{name}: has {len(model.graph.output)} outputs: expected one, the class scores")
    _rename_own(model)
    if batch:
        _free_batch(model, batch)
    image, output = model.graph.input[0].name, model.graph.output[0].name
    scale, shift = (each.astype(np.float32).reshape(1, -1, 1, 1) for each in passes.normalisation(mean, std))
    front = [
        helper.make_node("Cast", [passes.IMAGES], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["pixels", passes.SCALE], ["scaled_pixels"]),
        helper.make_node("Add", ["scaled_pixels", passes.SHIFT], ["normalised" if channels_last else image]),
    ]
    if channels_last:
        front.append(helper.make_node("Transpose", ["normalised"], [image], perm=[0, 2, 3, 1]))
    passes.store(model, {passes.SCALE: scale, passes.SHIFT: shift})
    nodes = [*front, *_without_activation(model)]
    nodes.append(helper.make_node("Flatten", [output], [passes.LOGITS], axis=1))
    del model.graph.input[:], model.graph.output[:]
    shape = [passes.BATCH, channels, height, width]
    model.graph.input.append(helper.make_tensor_value_info(passes.IMAGES, TensorProto.UINT8, shape))
    model.graph.output.append(helper.make_tensor_value_info(passes.LOGITS, TensorProto.FLOAT, None))
    passes.replace_nodes(model, nodes)
    return _with_output(model, classes, name)


def _with_output(model: ModelProto, classes: int, name: str) -> ModelProto:
    """State the output's shape, after a run told what it is."""
    from onnx import TensorProto, helper

    from pipeline.graph import run

    image = model.graph.input[0].type.tensor_type.shape.dim
    pixels = np.zeros([3, *(dim.dim_value for dim in image[1:])], np.uint8)
    logits = run.outputs(model, pixels, name)
    if logits.shape != (3, classes):
        what = "scores for" if logits.shape[:1] == (3,) else "a fixed batch or"
        raise CheckFailed(
            f"{name}: gives {what} {list(logits.shape[1:])} numbers an image: expected {classes}, one for each class"
        )
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info(passes.LOGITS, TensorProto.FLOAT, [passes.BATCH, classes]))
    return model


def _without_activation(model: ModelProto) -> list[NodeProto]:
    """The nodes without a last Softmax or LogSoftmax; what read its result reads its input."""
    node, nodes = _producer(model, model.graph.output[0].name), list(model.graph.node)
    if last_activation(model) is None:
        return nodes
    while node.op_type not in ACTIVATIONS:
        node = _producer(model, node.input[0])
    before, result = node.input[0], node.output[0]
    nodes.remove(node)
    if result == model.graph.output[0].name:  # what gave the Softmax its input now gives the output
        old, new, both = before, result, True
    else:
        old, new, both = result, before, False
    for each in nodes:
        for names in (each.input, each.output) if both else (each.input,):
            names[:] = [new if name == old else name for name in names]
    return nodes


def _free_batch(model: ModelProto, batch: int) -> None:
    """Let Reshape keep the batch as it comes, where its target begins with the batch that the file was made for."""
    constants = passes.weights(model)
    targets = {node.input[1] for node in model.graph.node if node.op_type == "Reshape"} & constants.keys()
    freed = {
        name: np.concatenate([[0], constants[name][1:]]).astype(np.int64)
        for name in targets
        if constants[name].ndim == 1 and constants[name].size and constants[name][0] == batch
    }
    passes.store(model, freed)
    passes.replace_nodes(model, [node for node in model.graph.node if not freed.keys() & set(node.output)])


def _rename_own(model: ModelProto) -> None:
    """Give other names to tensors that have the chain's, so that its ends can be put on."""
    own = {passes.IMAGES, passes.LOGITS, passes.SCALE, passes.SHIFT, "pixels", "scaled_pixels", "normalised"}
    graph = model.graph
    for node in graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name in own:
                    names[index] = f"network_{name}"
    for value in itertools.chain(graph.input, graph.output, graph.initializer):
        if value.name in own:
            value.name = f"network_{value.name}"


def _producer(model: ModelProto, name: str) -> NodeProto | None:
    return next((node for node in model.graph.node if name in node.output), None)
