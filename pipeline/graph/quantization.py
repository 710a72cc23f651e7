"""INT8 graphs by explicit QuantizeLinear and DequantizeLinear: where they go, and the scales.

The scheme of TensorRT's explicit quantisation: symmetric, zero point 0, one scale a tensor of activations and one an
output channel of weights; q = clip(round(x / scale), -127, 127), ties to even. Sources: NVIDIA, TensorRT documentation,
"Working with Quantized Types"; Wu et al., Integer Quantization for Deep Learning Inference (arXiv 2004.09602), 3.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from pipeline import console
from pipeline.graph import edit, float16, metadata, run
from pipeline.graph.load import attribute

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

OPSET = 19  # the first whose QuantizeLinear takes float16
LEVELS, BINS, GROUPS = 127, 2048, 128  # of int8; of a histogram; candidate limits of its search for the least error
METHODS = ("min-max", "percentile", "mse")
PERCENTILE = 0.9999  # of the magnitudes
BESIDE = "_in_int8"  # ends the name of what a layer's copy gives


def layers(model: ModelProto) -> dict[str, NodeProto]:
    """The nodes that can compute in int8, by name: convolutions and matrix products with constant weights."""
    values, found = edit.weights(model), {}
    for node in model.graph.node:
        plain = node.op_type in ("Conv", "MatMul") or (node.op_type == "Gemm" and not attribute(node, "transA", 0))
        rank = values[node.input[1]].ndim if plain and node.input[1] in values else 0
        if node.input[:1] and node.input[0] not in values and rank >= 2 and (node.op_type == "Conv" or rank == 2):
            found[node.name] = node
    return found


def histograms(model: ModelProto, images: np.ndarray) -> dict[str, tuple[np.ndarray, float]]:
    """Counts of the magnitudes of every layer's input over uint8 images, in BINS equal bins from 0 to their largest."""
    names = list(dict.fromkeys(node.input[0] for node in layers(model).values()))
    session = run.watching(model, names, "calibration")
    image, largest = session.get_inputs()[0].name, dict.fromkeys(names, 0.0)
    counts = {name: np.zeros(BINS, np.int64) for name in names}
    with console.progress(2 * len(images), "image", "calibration") as bar:
        for second in (False, True):  # the largest magnitudes first, then the counts
            for batch in run.batches(images, 50):
                for name, values in zip(names, session.run(None, {image: batch}), strict=True):
                    size = np.abs(values).ravel()
                    if second:
                        bins = np.minimum(size * np.float32(BINS / (largest[name] or 1)), BINS - 1).astype(np.int64)
                        counts[name] += np.bincount(bins, minlength=BINS)
                    else:
                        largest[name] = max(largest[name], float(size.max(initial=0)))
                bar.update(len(batch))
    return {name: (counts[name], largest[name]) for name in names}


def limit(counts: np.ndarray, largest: float, method: str) -> float:
    """The magnitude that becomes 127: the largest, its percentile, or that of the least mean squared error."""
    edges = np.linspace(0, largest, BINS + 1)
    if method == "percentile":
        return float(edges[1 + np.searchsorted(np.cumsum(counts), PERCENTILE * counts.sum())])
    if method == "min-max":
        return largest
    middles = (edges[1:] + edges[:-1]) / 2
    tried = edges[BINS // GROUPS :: BINS // GROUPS]
    errors = [(counts * (_rounded(middles, each / LEVELS) - middles) ** 2).sum() for each in tried]
    return float(tried[int(np.argmin(errors))])


def _rounded(values: np.ndarray, scale: np.ndarray | float) -> np.ndarray:
    return np.clip(np.rint(values / (scale or 1)), -LEVELS, LEVELS) * scale


def _scale(largest: np.ndarray | float) -> np.ndarray:
    """Scales that float16 holds, as float32; 1 where everything is zero."""
    scale = np.maximum(np.asarray(largest, np.float64) / LEVELS, 2.0**-24).astype(np.float16).astype(np.float32)
    return np.where(np.asarray(largest) > 0, scale, np.float32(1))


def quantize(
    model: ModelProto,
    limits: Mapping[str, float],
    kept: Collection[str] = (),
    errors: Mapping[str, np.ndarray] = MappingProxyType({}),
) -> ModelProto:
    """Let every layer but those `kept` read int8 activations and int8 weights; the rest becomes float16.

    `limits` are the magnitudes that become 127, by tensor. A tensor that several layers read is quantised once. Biases
    stay float16, as TensorRT adds them to what the integer sums are scaled to; `errors`, by layer, are taken from them.
    Returns a new model.
    """
    return float16.half(_in_int8(model, limits, kept, errors))


def bias_errors(model: ModelProto, limits: Mapping[str, float], images: np.ndarray) -> dict[str, np.ndarray]:
    """Mean error of every output channel over uint8 images, by layer: int8 less float32 on the same float32 input.

    Bias correction takes it from the bias. Nagel et al., Data-Free Quantization Through Weight Equalization and Bias
    Correction (arXiv 1906.04721), 4.2; here the means are measured. Layers without a bias of their own are left out.
    """
    values = edit.weights(model)
    names = {name: node.output[0] for name, node in layers(model).items() if _bias(node, values) is not None}
    if not names:
        return {}
    both = _in_int8(model, limits, (), {}, beside=True)
    watched = [each for name in names.values() for each in (name, f"{name}{BESIDE}")]
    session = run.watching(both, watched, "bias correction")
    errors = dict.fromkeys(names, np.float64(0))
    with console.progress(len(images), "image", "bias correction") as bar:
        for batch in run.batches(images, 50):
            outputs = session.run(None, {session.get_inputs()[0].name: batch})
            for name, exact, rounded in zip(names, outputs[::2], outputs[1::2], strict=True):
                error = (rounded.astype(np.float64) - exact).reshape(*exact.shape[:2], -1)
                errors[name] = errors[name] + error.mean(2).sum(0) / len(images)
            bar.update(len(batch))
    return errors


def _bias(node: NodeProto, values: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """A layer's bias, zeros if it has none; None where there can't be one an output channel, or it is computed."""
    if node.op_type == "MatMul" or attribute(node, "beta", 1.0) != 1:
        return None
    weight = values[node.input[1]]
    channels = weight.shape[0] if node.op_type == "Conv" or attribute(node, "transB", 0) else weight.shape[1]
    if len(node.input) < 3 or not node.input[2]:
        return np.zeros(channels, np.float32)
    bias = values.get(node.input[2])
    return bias if bias is not None and bias.shape == (channels,) else None


def _in_int8(
    model: ModelProto,
    limits: Mapping[str, float],
    kept: Collection[str],
    errors: Mapping[str, np.ndarray],
    beside: bool = False,
) -> ModelProto:
    """A float32 graph with QuantizeLinear and DequantizeLinear before its layers, or `beside` them before copies."""
    import onnx

    chosen = {name: node for name, node in layers(model).items() if name not in kept}
    model, values = copy.deepcopy(model), edit.weights(model)
    if metadata.opset(model) < OPSET:
        model = onnx.version_converter.convert_version(model, OPSET)
    new = edit.namer(model)
    stored, made, nodes = {new("zero"): np.int8(0)}, set(), []
    for node in model.graph.node:
        if node.name in chosen:
            source, weight = node.input[0], node.input[1]
            (q, s, dq), (weight_q, weight_s, weight_dq) = (
                [new(f"{name}_{end}") for end in ("q", "s", "dq")] for name in (source, weight)
            )
            if source not in made:
                stored[s] = _scale(limits[source])
                nodes += [_node("QuantizeLinear", [source, s, new("zero")], q)]
                nodes += [_node("DequantizeLinear", [q, s], dq)]
            if weight not in made:
                axis = 0 if node.op_type == "Conv" or attribute(node, "transB", 0) else 1
                others = tuple(index for index in range(values[weight].ndim) if index != axis)
                largest = np.abs(values[weight]).max(others, keepdims=True)
                whole = np.rint(values[weight] / _scale(largest))
                stored[weight_q] = np.clip(whole, -LEVELS, LEVELS).astype(np.int8)
                stored[weight_s] = _scale(largest).ravel()
                nodes += [_node("DequantizeLinear", [weight_q, weight_s], weight_dq, axis=axis)]
            made |= {source, weight}
            bias = _bias(node, values)
            if node.name in errors and bias is not None:
                node.input[2:] = [new(f"{node.output[0]}_bias")]
                stored[node.input[2]] = (bias - errors[node.name]).astype(np.float32)
            if beside:
                nodes.append(copy.deepcopy(node))
                node.name, node.output[0] = f"{node.name}{BESIDE}", f"{node.output[0]}{BESIDE}"
            node.input[:2] = [dq, weight_dq]
        nodes.append(node)
    edit.store(model, stored)
    edit.replace_nodes(model, nodes)
    return model


def scales(model: ModelProto) -> int:
    """How many scales the DequantizeLinear nodes of a graph have."""
    values = edit.weights(model)
    return sum(values[node.input[1]].size for node in model.graph.node if node.op_type == "DequantizeLinear")


def weights(model: ModelProto) -> int:
    """How many weights a graph stores as int8."""
    return sum(value.size for value in edit.weights(model).values() if value.dtype == np.int8 and value.ndim)


def _node(operator: str, inputs: list[str], output: str, **attributes: int) -> NodeProto:
    from onnx import helper

    return helper.make_node(operator, inputs, [output], output, **attributes)
