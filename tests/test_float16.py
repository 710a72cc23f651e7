from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from pipeline import artifact, dataset
from pipeline.runtimes import float16


def rounded(values: np.ndarray) -> np.ndarray:
    result = values.copy()
    with np.errstate(all="ignore"):
        float16.round_in_place(result, np.empty_like(result))
    return result


def test_fast_rounding_is_exact_on_every_float16_and_every_tie_between_two():
    every = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)  # 0 to 65504
    ties = (every[:-1] + every[1:]) / 2
    for values in (every, ties, np.nextafter(ties, np.float32(0)), np.nextafter(ties, np.float32(1e9))):
        for signed in (values, -values):
            assert np.array_equal(rounded(signed), float16.to_float16(signed))


@settings(max_examples=300, deadline=None)
@given(npst.arrays(np.float32, 64, elements=st.floats(-(2.0**17), 2.0**17, width=32)))
def test_fast_rounding_is_numpys(values):
    assert np.array_equal(rounded(values), float16.to_float16(values))


def test_float16_sums_are_rounded_after_every_addition():
    rng = np.random.default_rng(0)
    weights = float16.to_float16(rng.normal(size=(3, 40)).astype(np.float32))
    columns = float16.to_float16(rng.normal(size=(40, 5000)).astype(np.float32) * 100)
    expected = np.zeros((3, 5000), np.float16)
    for k in range(40):
        exact = expected.astype(np.float64) + weights[:, k, None].astype(np.float64) * columns[k].astype(np.float64)
        expected = exact.astype(np.float32).astype(np.float16)
    received = float16._dot_float16(weights, columns, lambda sums: sums)
    assert np.array_equal(received, expected.astype(np.float32))
    once = float16._dot_float32(weights, columns, lambda sums: sums)
    assert np.abs(once - received).max() > 0  # the two modes really are two


def test_an_overflow_on_the_way_is_an_infinity_at_the_end():
    weights = np.ones((1, 3), np.float32)
    columns = np.array([[60000.0], [60000.0], [-60000.0]], np.float32)
    assert np.isinf(float16._dot_float16(weights, columns, lambda sums: sums)).all()
    assert float16._dot_float32(weights, columns, lambda sums: sums)[0, 0] == 60000 // 32 * 32


def test_every_value_handed_on_is_a_float16(chain, data):
    form = artifact.read(chain / "mnist_cnn.fp16.onnx")
    for mode in float16.MODES:
        with float16.load(form, mode=mode) as session:
            seen = dict(session.values(dataset.test(data).images[:3]))
        assert len(seen) == 17
        for name, value in seen.items():
            assert np.array_equal(value, float16.to_float16(value)), (mode, name)


def test_agrees_with_pytorch_in_half_precision(chain, data):
    """An independent implementation: PyTorch's CPU kernels also round after every operator, summing in float32."""
    import onnx
    from onnx import numpy_helper

    form = artifact.read(chain / "mnist_cnn.fp16.onnx")
    images = dataset.test(data).images[:64]
    weights = {t.name: numpy_helper.to_array(t) for t in onnx.load(form.path).graph.initializer}
    x = torch.from_numpy(images).half()
    for node in onnx.load(form.path).graph.node:
        if node.op_type == "Conv":
            parts = [torch.from_numpy(weights[name].copy()) for name in node.input[1:]]
            x = torch.nn.functional.conv2d(x, *parts)
        elif node.op_type == "Relu":
            x = x.relu()
        elif node.op_type == "MaxPool":
            x = torch.nn.functional.max_pool2d(x, 2)
        elif node.op_type == "AveragePool":
            x = torch.nn.functional.avg_pool2d(x, 6)
    expected = x.flatten(1).float().numpy()
    with float16.load(form, mode=float16.MODES[0]) as session:
        received = session(images)
    assert np.abs(received - expected).max() < 0.05 and (received.argmax(1) == expected.argmax(1)).all()


@pytest.mark.parametrize("n", [1, 7, 130])
def test_any_number_of_images(chain, data, n):
    images = dataset.test(data).images[:n]
    with float16.load(artifact.read(chain / "mnist_cnn.fp16.onnx")) as session:
        assert session(images).shape == (n, 10)
        assert np.allclose(session(images)[-1:], session(images[-1:]), atol=0.05)
