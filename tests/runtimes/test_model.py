"""The Python API: three lines, typed, without torch."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import onnxruntime
import pytest

import pipeline
from pipeline import load
from pipeline.errors import CheckFailed, UsageError
from pipeline.graph import run
from pipeline.runtimes.classifier import softmax
from tests.support import ROOT, flip

NAMES = ("mnist_cnn.onnx", "mnist_cnn.fp16.onnx")


@pytest.fixture
def images(digits) -> np.ndarray:
    return digits.images


def test_three_lines_and_no_torch(release):
    """Also with an import of torch made impossible."""
    code = f"""
import sys; sys.modules["torch"] = None
import numpy as np
import onnxruntime
from pipeline import load
model = load({str(release / "mnist_cnn.onnx")!r})
print(model(np.zeros([2, 28, 28], np.uint8)).shape)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "(2, 10)\n", done.stderr


def test_importing_the_package_costs_nothing():
    code = "import sys, pipeline; print(sorted({'numpy', 'onnx', 'click'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout == "[]\n"
    with pytest.raises(AttributeError, match="no attribute 'save'"):
        pipeline.save  # noqa: B018


@pytest.mark.parametrize("name", NAMES)
def test_every_shape_is_the_same_answer(release, images, name):
    with load(release / name) as model:
        whole = model(images[:7])
        assert whole.shape == (7, 10) and whole.dtype == np.float32
        assert np.array_equal(model(images[:7, 0]), whole)
        assert np.allclose(model(images[3, 0]), whole[3:4], atol=1e-5)
        assert model.predict(images[:4]) == ["7", "2", "1", "0"] == [model.classes[i] for i in whole[:4].argmax(1)]
        assert np.allclose(model.probabilities(images[:7]).sum(1), 1)


@pytest.mark.parametrize("n", [0, 1, 7, 10_001])
def test_any_number_of_images(release, images, n):
    many = np.concatenate([images, images[:1]])[:n]
    with load(release / "mnist_cnn.onnx") as model:
        found = model(many)
        assert found.shape == (n, 10)
        if n > 500:
            assert np.array_equal(found[-1].argmax(), model(images[:1])[0].argmax())


def test_arrays_of_any_layout(release, images):
    with load(release / "mnist_cnn.onnx") as model:
        expected = model(images[:10:2])
        assert np.array_equal(model(images[:10][::2]), expected)
        turned = np.ascontiguousarray(images[:10:2, 0].transpose(2, 1, 0)).transpose(2, 1, 0)
        assert not turned.flags.c_contiguous and np.array_equal(model(turned), expected)


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        (np.zeros((1, 28, 28), np.float32), "images are float32: expected uint8"),
        (np.zeros((1, 28, 28), bool), "images are bool: expected uint8"),
        (np.zeros((1, 27, 28), np.uint8), r"\[1, 27, 28\]: expected \[n, 1, 28, 28\]"),
        (np.zeros((1, 3, 28, 28), np.uint8), r"\[1, 3, 28, 28\]"),
        (np.zeros(784, np.uint8), r"\[784\]"),
        (np.zeros((1, 1, 1, 28, 28), np.uint8), r"\[1, 1, 1, 28, 28\]"),
        ("images", "expected uint8"),
        (None, "expected uint8"),
    ],
)
def test_what_it_does_not_take_is_said(release, wrong, expected):
    with load(release / "mnist_cnn.onnx") as model, pytest.raises(UsageError, match=expected):
        model(wrong)


def test_an_altered_file_is_not_loaded(folder):
    flip(folder / "mnist_cnn.onnx")
    with pytest.raises(CheckFailed, match="altered"):
        load(folder / "mnist_cnn.onnx")
    with pytest.raises(UsageError, match="no such file"):
        load("nowhere.onnx")


def test_eight_threads_get_the_answers_of_one(release, images):
    with load(release / NAMES[0], threads=1) as model, ThreadPoolExecutor(8) as threads:
        expected = model(images[:500])
        for received in threads.map(model, [images[:500]] * 80):
            assert np.array_equal(received, expected)


def test_the_softmax_never_overflows():
    extreme = np.array([[1e38, 0, -1e38], [-3e38, -3e38, -3e38]], np.float32)
    assert np.allclose(softmax(extreme), [[1, 0, 0], [1 / 3] * 3])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("threads", [2, 5])
def test_answers_do_not_depend_on_the_number_of_threads_or_images(release, images, name, threads):
    """ONNX Runtime sums each logit in one order."""
    with load(release / name, threads=threads) as model, load(release / name, threads=1) as alone:
        expected = alone(images[:2000])
        assert np.array_equal(model(images[:2000]), expected)
        assert np.array_equal(model(images[:1]), expected[:1]) and np.array_equal(alone(images[:1]), expected[:1])


def test_an_int8_file_runs_where_onnx_runtimes_fusions_spoil_it(release, images, monkeypatch):
    """As on aarch64; this stands in for it. What another file can't be run by stays an error."""
    session = onnxruntime.InferenceSession

    def refuse(content, options, **more):
        if options.graph_optimization_level == onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL:
            raise RuntimeError("Type 'tensor(float16)' of input parameter of operator (QLinearConv) is invalid")
        return session(content, options, **more)

    expected = load(release / "mnist_cnn.int8.onnx").predict(images[:200])
    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    answers = load(release / "mnist_cnn.int8.onnx").predict(images[:200])
    assert sum(a == b for a, b in zip(answers, expected, strict=True)) >= 199
    quantised = run.outputs(onnx.load(release / "mnist_cnn.int8.onnx"), images[:200], "as `quantize` measures it")
    assert [str(digit) for digit in quantised.argmax(1)] == answers
    with pytest.raises(CheckFailed, match="QLinearConv"):
        load(release / "mnist_cnn.fp16.onnx")
