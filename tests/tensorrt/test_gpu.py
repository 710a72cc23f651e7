"""On a machine with an NVIDIA GPU: what the other tests hold against a fake one, for real."""

from __future__ import annotations

import json

import numpy as np
import pytest
from msgspec.structs import replace

from pipeline.errors import CheckFailed
from pipeline.records import manifest
from pipeline.runtimes import onnxruntime, tensorrt
from pipeline.tensorrt import bindings as library
from pipeline.tensorrt import cuda
from tests.support import command, one_line

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def built(chain, tmp_path_factory):
    """Engines of both files for this GPU, by the first TensorRT that builds for it."""
    out, told = tmp_path_factory.mktemp("engines"), []
    target = cuda.gpu().target
    for name in library.installed():
        more = ["--target", target] if name == "tensorrt-rtx" else []
        for file in ("mnist_cnn.fp16.onnx", "mnist_cnn.onnx"):
            result = command("build", chain / file, "--runtime", name, "--out", out, *more)
            told.append(result.stderr[-500:])
        if result.returncode == 0:
            return out
    pytest.skip(f"no TensorRT here builds for {target}: {'; '.join(told) or 'none is installed'}")


@pytest.mark.parametrize("mode", tensorrt.READS["engine"])
def test_engines_answer_as_their_files_do(built, chain, digits, mode):
    images = digits.images[:1000]
    for engine, file in (("mnist_cnn.engine", "mnist_cnn.fp16.onnx"), ("mnist_cnn.fp32.engine", "mnist_cnn.onnx")):
        with onnxruntime.load(manifest.read(chain / file)) as session:
            expected = session(images)
        with tensorrt.load(manifest.read(built / engine), mode=mode) as session:
            found = session(images)
            assert np.array_equal(session(images[:7]).argmax(1), found[:7].argmax(1))
        assert np.abs(found - expected).max() < (0.1 if "fp32" not in engine else 0.02)
        assert (found.argmax(1) == expected.argmax(1)).mean() >= 0.999


def test_an_engine_is_asked_what_it_computes_in(built):
    facts = manifest.read(built / "mnist_cnn.engine").facts
    assert facts.inspected and facts.gpu == cuda.gpu()


def test_host_latency_is_more_than_the_gpus(built):
    result = command("bench", built / "mnist_cnn.engine", "--quick", "--batch", "1", "--batch", "64", "--json")
    rows = json.loads(result.stdout)["facts"]["rows"]
    assert {row["mode"] for row in rows} == set(filter(tensorrt.has, tensorrt.READS["engine"]))
    assert all(0 < row["gpu_microseconds"]["p50"] < row["microseconds"]["p50"] for row in rows)


def test_another_gpus_engine_is_refused(built, tmp_path):
    made = manifest.read(built / "mnist_cnn.engine")
    facts = replace(made.facts, gpu=replace(made.facts.gpu, name="Another"))
    options = made.options | {"targets": ["sm1"] if made.options["targets"] else []}
    manifest.write(tmp_path / made.name, made.path.read_bytes(), options=options, facts=facts)
    assert "built for" in one_line(command("verify", tmp_path / made.name), 1)


def test_an_engine_that_isnt_one_is_one_line(built, tmp_path):
    made = manifest.read(built / "mnist_cnn.engine")
    manifest.write(tmp_path / made.name, b"no engine" * 99, options=made.options, facts=made.facts)
    with pytest.raises(CheckFailed, match="can't be loaded"):
        tensorrt.load(manifest.read(tmp_path / made.name))


@pytest.mark.parametrize("name", ["mnist_cnn.onnx", "mnist_cnn.fp16.onnx"])
def test_onnx_runtimes_cuda_provider_answers_the_same(chain, digits, name):
    there = pytest.importorskip("onnxruntime").get_available_providers()
    if "CUDAExecutionProvider" not in there:
        pytest.skip(f"this ONNX Runtime has no CUDA provider, only {', '.join(there)}")
    images, form = digits.images[:500], manifest.read(chain / name)
    with onnxruntime.load(form) as session:
        expected = session(images)
    with onnxruntime.load(form, mode="cuda") as session:
        assert "CUDAExecutionProvider" in session.arithmetic
        assert np.array_equal(session(images).argmax(1), expected.argmax(1))
        step = session.step(8)
        for _ in range(3):
            step()
