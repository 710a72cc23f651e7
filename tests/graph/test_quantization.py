from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pipeline.graph import edit, quantization, run


@pytest.fixture
def pointwise() -> onnx.ModelProto:
    """Pixels, and one 1x1 convolution of 3 to 5 channels."""
    chance = np.random.default_rng(0)
    weights = {"w": chance.normal(0, 1, (5, 3, 1, 1)).astype(np.float32), "b": np.arange(5, dtype=np.float32)}
    nodes = [helper.make_node("Cast", ["images"], ["x"], "cast", to=TensorProto.FLOAT),
             helper.make_node("Conv", ["x", "w", "b"], ["logits"], "conv")]  # fmt: skip
    ends = [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", 3, 4, 4]),
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 5, 4, 4])]  # fmt: skip
    tensors = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def test_a_layer_is_the_integer_arithmetic_done_by_hand(pointwise):
    images = np.random.default_rng(1).integers(0, 256, (20, 3, 4, 4)).astype(np.uint8)
    weights = edit.weights(pointwise)
    logits = run.outputs(quantization.quantize(pointwise, {"x": 200.0}), images, "quantised")
    scale = np.float64(np.float16(200 / 127))
    scales = (np.abs(weights["w"]).max((1, 2, 3)) / 127).astype(np.float16).astype(np.float64)
    pixels = np.clip(np.rint(images / scale), -127, 127).astype(np.int64)  # over 200, clipped
    kernels = np.clip(np.rint(weights["w"][..., 0, 0] / scales[:, None]), -127, 127).astype(np.int64)
    sums = np.einsum("oc,nchw->nohw", kernels, pixels)
    expected = sums * scale * scales[:, None, None] + weights["b"][:, None, None]
    assert np.abs(logits - expected).max() <= 2e-3 * np.abs(expected).max()
    assert (images > 200).any() and np.abs(kernels).max() == 127


def test_weights_are_stored_once_and_zero_points_are_zero(pointwise):
    quantised = quantization.quantize(pointwise, {"x": 255.0})
    stored = {tensor.name: tensor for tensor in quantised.graph.initializer}
    assert [stored[f"w_{end}"].data_type for end in "qs"] == [TensorProto.INT8, TensorProto.FLOAT16]
    assert "w" not in stored and TensorProto.FLOAT not in {tensor.data_type for tensor in stored.values()}
    nodes = [node for node in quantised.graph.node if "Quantize" in node.op_type or "Dequantize" in node.op_type]
    assert [node.op_type for node in nodes] == ["QuantizeLinear", "DequantizeLinear", "DequantizeLinear"]
    assert numpy_helper.to_array(stored[nodes[0].input[2]]) == 0 and len(nodes[1].input) == len(nodes[2].input) == 2
    assert (quantization.scales(quantised), quantization.weights(quantised)) == (6, 15)


def test_a_kept_layer_has_float16_weights_and_no_scale(pointwise):
    kept = quantization.quantize(pointwise, {}, ["conv"])
    assert {node.op_type for node in kept.graph.node} == {"Cast", "Conv"}
    assert {tensor.data_type for tensor in kept.graph.initializer} == {TensorProto.FLOAT16}


def test_the_limits_by_each_method():
    counts = np.zeros(quantization.BINS, np.int64)
    counts[:100], counts[-1] = 1_000_000, 1  # one outlier beside many small values
    found = {method: quantization.limit(counts, 2048.0, method) for method in quantization.METHODS}
    assert found["min-max"] == 2048 and found["percentile"] == pytest.approx(100, abs=1)
    assert 90 <= found["mse"] <= 2048 and quantization.limit(np.zeros(quantization.BINS), 0.0, "mse") == 0


def test_a_tensor_of_zeros_and_a_dead_channel_have_scales(pointwise):
    weights = edit.weights(pointwise)["w"].copy()
    weights[0] = 0
    edit.store(pointwise, {"w": weights})
    counts, largest = quantization.histograms(pointwise, np.zeros((4, 3, 4, 4), np.uint8))["x"]
    quantised = quantization.quantize(pointwise, {"x": quantization.limit(counts, largest, "mse")})
    logits = run.outputs(quantised, np.zeros((2, 3, 4, 4), np.uint8), "zeros")
    assert np.allclose(logits[0, :, 0, 0], np.arange(5))


@pytest.mark.parametrize("bias", [True, False])
def test_the_mean_error_of_every_channel_is_taken_from_its_bias(pointwise, bias):
    if not bias:
        del pointwise.graph.node[1].input[2]
    images = np.random.default_rng(1).integers(0, 256, (120, 3, 4, 4)).astype(np.uint8)
    limits = {"x": 180.0}  # what is larger is clipped, so that every channel's mean is off
    before = run.outputs(pointwise, images, "float32").astype(np.float64)
    errors = quantization.bias_errors(pointwise, limits, images)
    plain, corrected = (
        run.outputs(quantization.quantize(pointwise, limits, errors=given), images, "int8") - before
        for given in ({}, errors)
    )
    assert np.allclose(errors["conv"], plain.mean((0, 2, 3)), atol=0.1) and np.abs(errors["conv"]).min() > 0.5
    assert np.abs(corrected.mean((0, 2, 3))).max() < 0.1
    assert np.square(corrected).mean() < np.square(plain).mean()


def test_a_layer_that_has_no_bias_of_its_own_keeps_its_errors():
    chance = np.random.default_rng(0)
    weights = [numpy_helper.from_array(chance.normal(0, 1, (4, 3)).astype(np.float32), name) for name in ("v", "w")]
    nodes = [helper.make_node("Cast", ["images"], ["x"], "cast", to=TensorProto.FLOAT),
             helper.make_node("MatMul", ["x", "v"], ["first"], "product"),
             helper.make_node("Gemm", ["x", "w", "b"], ["second"], "scaled", beta=2.0),
             helper.make_node("Add", ["first", "second"], ["logits"], "sum")]  # fmt: skip
    ends = [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", 4]),
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])]  # fmt: skip
    bias = numpy_helper.from_array(np.ones(3, np.float32), "b")
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [*weights, bias])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    images = chance.integers(0, 256, (10, 4)).astype(np.uint8)
    assert len(quantization.layers(model)) == 2
    assert quantization.bias_errors(model, {"x": 255.0}, images) == {}


def test_layers_that_share_a_weight_have_biases_of_their_own():
    chance = np.random.default_rng(0)
    weights = {"w": chance.normal(0, 1, (4, 4)).astype(np.float32), "b": np.full(4, 100, np.float32)}
    weights["c"] = -weights["b"]
    nodes = [helper.make_node("Cast", ["images"], ["x"], "cast", to=TensorProto.FLOAT),
             helper.make_node("Gemm", ["x", "w", "b"], ["y"], "first"),
             helper.make_node("Gemm", ["y", "w", "c"], ["logits"], "second")]  # fmt: skip
    ends = [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", 4]),
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4])]  # fmt: skip
    graph = helper.make_graph(
        nodes, "g", ends[:1], ends[1:], [numpy_helper.from_array(v, n) for n, v in weights.items()]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    images = chance.integers(0, 256, (200, 4)).astype(np.uint8)
    limits = {"x": 200.0, "y": 700.0}
    before = run.outputs(model, images, "float32")
    errors = quantization.bias_errors(model, limits, images)
    plain, corrected = (
        np.abs((run.outputs(quantization.quantize(model, limits, errors=given), images, "int8") - before).mean(0)).max()
        for given in ({}, errors)
    )
    assert set(errors) == {"first", "second"} and corrected < plain
