"""ONNX file in, float16 ONNX file out: float16 weights and arithmetic in the graph itself, clear of its limits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline import artifact, console, dataset, onnx_file
from pipeline.artifact import Artifact
from pipeline.errors import CheckFailed
from pipeline.stages import Data, Out, card, output

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

ORDER = 40
KIND, FILE = "fp16", "{model}.fp16.onnx"
NEEDS = ("onnxruntime",)
LARGEST, SMALLEST_NORMAL = 65504.0, 2.0**-14  # float16's; IEEE 754 binary16
TO_ZERO = 2.0**-25  # what is smaller is rounded to zero
HEADROOM = 8.0  # how far the largest activation must stay below LARGEST
RARE = 1e-6  # the share of activations that may round to zero: those next to zero anyway
SCALE_PASSES = ("Relu", "MaxPool", "AveragePool", "Reshape", "Cast")  # operators f with f(2^k x) = 2^k f(x), exactly
BATCH = 500


def run(onnx: Artifact, *, out: Out, data: Data) -> Artifact:
    """Convert the ONNX file to float16, weights and arithmetic, with a cast after the input and one before the output.

    Weights are first scaled between layers by powers of two, which changes no result, to keep clear of float16's ends.
    No weight and, over all training images, no activation may overflow or come near it; no weight and at most one
    activation in a million may round to zero, which only those next to zero do. The margins go on record.

    Raises CheckFailed where that doesn't hold.
    """
    model = _load(onnx)
    images = dataset.train(data).images
    scales = _equalise(model, _ranges(model, images[:BATCH]))
    margins = _margins(onnx, model, _ranges(model, images))
    _convert(model)
    _check(onnx, model)
    return artifact.write(
        output(out, FILE, onnx),
        model.SerializeToString(deterministic=True),
        kind=KIND,
        parents=[onnx],
        versions=artifact.versions("onnx", "onnxruntime", "onnxruntime-gpu", "numpy"),
        facts={**card(onnx), "opset": onnx.facts["opset"], "scales": scales, "margins": margins},
    )


def _load(source: Artifact) -> ModelProto:
    model = onnx_file.load(source)
    for entry in model.metadata_props:
        if entry.key == "parent_sha256":
            entry.value = source.sha256
    return model


def _weights(model: ModelProto) -> dict[str, np.ndarray]:
    from onnx import numpy_helper

    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    return {name: value for name, value in found.items() if value.dtype == np.float32}


def _store(model: ModelProto, values: dict[str, np.ndarray]) -> None:
    from onnx import numpy_helper

    for tensor in model.graph.initializer:
        if tensor.name in values:
            tensor.CopyFrom(numpy_helper.from_array(values[tensor.name], tensor.name))


def _convolutions(model: ModelProto) -> list[NodeProto]:
    return [node for node in model.graph.node if node.op_type == "Conv"]


def _equalise(model: ModelProto, ranges: dict[str, dict[str, float]]) -> list[int]:
    """Scale each convolution's output by 2^s, undone in the next one's weights; gives the s, the last of them 0.

    Chosen so that every layer's largest weight is about the same, as far as activations keep their headroom (twice,
    since the ranges were seen on few images). With padding-free convolutions in a chain of operators that hand a
    scale on, all of it is exact in binary floating point.
    """
    convolutions, weights = _convolutions(model), _weights(model)
    others = {node.op_type for node in model.graph.node} - {"Conv", *SCALE_PASSES}
    if others:
        raise CheckFailed(
            f"weights can't be scaled past {', '.join(sorted(others))}: expected {', '.join(SCALE_PASSES)}"
        )
    largest = np.log2([np.abs(weights[node.input[1]]).max() for node in convolutions])
    wanted = np.cumsum(largest.mean() - largest)
    room = [np.log2(LARGEST / HEADROOM**2 / ranges[node.output[0]]["largest"]) for node in convolutions]
    scales = [0, *(int(np.floor(min(pair))) for pair in zip(np.round(wanted), room, strict=True))]
    scales[-1] = 0
    for before, after, node in zip(scales, scales[1:], convolutions, strict=False):
        names = list(node.input[1:])
        for name, scale in zip(names, (after - before, after), strict=False):
            weights[name] = np.ldexp(weights[name], scale).astype(np.float32)
    _store(model, weights)
    return scales[1:]


def _ranges(model: ModelProto, images: np.ndarray) -> dict[str, dict[str, float]]:
    """Over uint8 images, of what each compute operator gives: the largest magnitude, how many there are, how many are
    not zero but round to it. Pooled sums count before their division. Computed in float32 by ONNX Runtime.
    """
    import onnx
    import onnxruntime

    seen = onnx.ModelProto()
    seen.CopyFrom(model)
    pooled = {node.output[0]: _window(node) for node in model.graph.node if node.op_type == "AveragePool"}
    watched = [node.output[0] for node in _convolutions(model)] + list(pooled)
    del seen.graph.output[:]
    seen.graph.output.extend(onnx.ValueInfoProto(name=name) for name in watched)
    session = onnxruntime.InferenceSession(seen.SerializeToString(), providers=["CPUExecutionProvider"])
    found = {name: {"largest": 0.0, "values": 0, "to_zero": 0} for name in watched}
    with console.progress(len(images), "image", "activations") as bar:
        for start in range(0, len(images), BATCH):
            batch = images[start : start + BATCH]
            for name, values in zip(watched, session.run(None, {model.graph.input[0].name: batch}), strict=True):
                size = np.abs(values)
                range_ = found[name]
                range_["largest"] = float(np.maximum(range_["largest"], size.max() * pooled.get(name, 1)))  # keeps NaN
                range_["values"] += size.size
                range_["to_zero"] += int(np.count_nonzero(size < TO_ZERO) - np.count_nonzero(size == 0))
            bar.update(len(batch))
    return found


def _window(node: NodeProto) -> int:
    return next(int(np.prod(a.ints)) for a in node.attribute if a.name == "kernel_shape")


def _margins(source: Artifact, model: ModelProto, ranges: dict[str, dict[str, float]]) -> dict[str, float]:
    """How far weights and activations stay from float16's limits. CheckFailed, by name, for what doesn't."""
    wrong = [name for name, value in _weights(model).items() if not np.isfinite(value).all()]
    sizes = {name: np.abs(value[value != 0]) for name, value in _weights(model).items()}
    gone = [name for name, size in sizes.items() if size.size and size.min() <= TO_ZERO]
    huge = [name for name, size in sizes.items() if size.size and size.max() > LARGEST]
    near = [name for name, seen in ranges.items() if not seen["largest"] * HEADROOM <= LARGEST]
    shares = {name: seen["to_zero"] / seen["values"] for name, seen in ranges.items()}
    lost = [f"{name} ({share:.2g})" for name, share in shares.items() if share > RARE]
    problems = {
        "weights that are no finite numbers": wrong,
        "weights that round to zero": gone,
        "weights over 65504": huge,
        f"activations over 65504 / {HEADROOM:g}": near,
        f"more than {RARE:g} of the activations rounding to zero": lost,
    }
    for problem, names in problems.items():
        if names:
            raise CheckFailed(f"{source.path}: in float16 it would have {problem}: {', '.join(names)}; expected none")
    every = np.concatenate(list(sizes.values()))
    largest = max(seen["largest"] for seen in ranges.values())
    return {
        "largest_activation": largest,
        "overflow_margin": LARGEST / largest,
        "smallest_weight": float(every.min()),
        "underflow_margin": float(every.min() / TO_ZERO),
        "weights_below_smallest_normal": int((every < SMALLEST_NORMAL).sum()),
        "activations": sum(seen["values"] for seen in ranges.values()),
        "activations_to_zero": sum(seen["to_zero"] for seen in ranges.values()),
    }


def _convert(model: ModelProto) -> None:
    """float16 weights; what was cast to float32 is cast to float16; one cast back to float32 before the output."""
    from onnx import TensorProto, helper

    _store(model, {name: value.astype(np.float16) for name, value in _weights(model).items()})
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.FLOAT16
    output, last = model.graph.output[0].name, model.graph.node[-1]
    last.output[0] = f"{output}_float16"
    model.graph.node.append(helper.make_node("Cast", [last.output[0]], [output], "cast_out", to=TensorProto.FLOAT))


def _check(source: Artifact, model: ModelProto) -> None:
    """Every operator between the two casts is float16 on both sides, by ONNX's own strict type inference."""
    import onnx

    try:
        onnx.checker.check_model(model, full_check=True)
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        line = " ".join(str(error).split())
        raise CheckFailed(f"{source.path}: converted to float16, it isn't valid any more: {line}") from error
    types = {value.name: value.type.tensor_type.elem_type for value in inferred.graph.value_info}
    types |= {tensor.name: tensor.data_type for tensor in inferred.graph.initializer}
    wide = [
        node.name
        for node in inferred.graph.node
        if node.op_type != "Cast" and types.get(node.output[0]) != onnx.TensorProto.FLOAT16
    ]
    if wide:
        raise CheckFailed(f"{source.path}: converted, {', '.join(wide)} would not be float16")


def show(half: Artifact) -> None:
    """The margins in a line."""
    margins = half.facts["margins"]
    console.result(
        f"float16 margins: largest activation {margins['overflow_margin']:.0f} times under overflow, smallest weight "
        f"{margins['underflow_margin']:.0f} times over what rounds to zero; {margins['activations_to_zero']} of "
        f"{margins['activations']:,} activations round to zero"
    )
