from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, numpy_helper

from pipeline import artifact, dataset
from pipeline.errors import CheckFailed
from pipeline.stages import half


@pytest.fixture
def source(chain) -> artifact.Artifact:
    return artifact.read(chain / "mnist_cnn.onnx")


def logits(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"images": images})[0]


def test_everything_between_the_casts_is_float16(chain):
    model = onnx.load(chain / "mnist_cnn.fp16.onnx")
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    assert {value.type.tensor_type.elem_type for value in inferred.graph.value_info} == {TensorProto.FLOAT16}
    floats = {t.data_type for t in model.graph.initializer} - {TensorProto.INT64}
    assert floats == {TensorProto.FLOAT16}
    casts = [node.attribute[0].i for node in model.graph.node if node.op_type == "Cast"]
    assert casts == [TensorProto.FLOAT16, TensorProto.FLOAT]
    assert model.graph.node[0].op_type == model.graph.node[-1].op_type == "Cast"
    assert model.graph.input[0].type.tensor_type.elem_type == TensorProto.UINT8
    assert model.graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT


def test_scaling_by_powers_of_two_changes_no_bit_of_a_logit(source, data):
    images = dataset.test(data).images[:500]
    model = half._load(source)
    before = logits(model, images)
    scales = half._equalise(model, half._ranges(model, images))
    assert any(scales) and scales[-1] == 0
    assert np.array_equal(logits(model, images), before)


def test_the_margins_are_on_record(chain):
    margins = artifact.read(chain / "mnist_cnn.fp16.onnx").facts["margins"]
    assert margins["overflow_margin"] >= half.HEADROOM and margins["underflow_margin"] > 1
    assert margins["activations"] > 60_000 * 20_000
    assert margins["activations_to_zero"] <= half.RARE * margins["activations"]


@pytest.mark.parametrize(
    ("factor", "problem"),
    [
        (2.0**-30, "weights that round to zero"),
        (2.0**30, "weights over 65504"),
        (2.0**12, "activations over 65504"),
    ],
)
def test_what_leaves_the_range_is_named(source, data, factor, problem):
    model = half._load(source)
    weights, name = half._weights(model), half._convolutions(model)[0].input[1]
    half._store(model, {name: weights[name] * np.float32(factor)})
    with pytest.raises(CheckFailed, match=problem) as caught:
        half._margins(source, model, half._ranges(model, dataset.test(data).images[:500]))
    assert str(source.path) in str(caught.value)


def test_activations_lost_to_zero_are_named(source, data):
    model, images = half._load(source), dataset.test(data).images[:50]
    last = half._convolutions(model)[-1]
    weights = half._weights(model)[last.input[1]]
    half._store(model, {last.input[1]: weights * np.float32(2.0**-40)})
    lost = half._ranges(model, images)
    assert lost[last.output[0]]["to_zero"] == lost[last.output[0]]["values"] == 50 * 10
    half._store(model, {last.input[1]: weights})
    with pytest.raises(CheckFailed, match=f"of the activations rounding to zero: {last.output[0]} "):
        half._margins(source, model, lost)


def test_a_float32_layer_left_over_is_a_failed_conversion(source):
    model = half._load(source)
    name = half._convolutions(model)[2].input[1]
    kept = half._weights(model)[name]
    half._convert(model)
    half._store(model, {name: kept})
    with pytest.raises(CheckFailed, match="converted to float16, it isn't valid"):
        half._check(source, model)


def test_an_operator_that_stayed_float32_is_named(source):
    """All of one type, so ONNX finds nothing wrong with it; our own check does."""
    model = half._load(source)
    with pytest.raises(CheckFailed, match=r"conv_1.*would not be float16"):
        half._check(source, model)


def test_numbers_that_are_none_are_refused(source, data):
    model = half._load(source)
    name = half._convolutions(model)[-1].input[1]
    half._store(model, {name: np.full_like(half._weights(model)[name], np.nan)})
    with pytest.raises(CheckFailed, match="no finite numbers"):
        half._margins(source, model, half._ranges(model, dataset.test(data).images[:10]))
    name = half._convolutions(model)[0].output[0]
    ranges = half._ranges(model, dataset.test(data).images[:10])
    assert np.isnan(ranges[half._convolutions(model)[-1].output[0]]["largest"])
    assert np.isfinite(ranges[name]["largest"])


def test_weights_survive_the_rounding(chain):
    exact = {t.name: numpy_helper.to_array(t) for t in onnx.load(chain / "mnist_cnn.onnx").graph.initializer}
    rounded = {t.name: numpy_helper.to_array(t) for t in onnx.load(chain / "mnist_cnn.fp16.onnx").graph.initializer}
    assert exact.keys() == rounded.keys()
    for name, value in rounded.items():
        if value.dtype == np.float16:
            assert np.count_nonzero(value) == np.count_nonzero(exact[name])
