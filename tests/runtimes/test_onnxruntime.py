"""ONNX Runtime's providers: what they lack is said in one line."""

from __future__ import annotations

import os

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from pipeline import runtimes
from pipeline.errors import CheckFailed
from pipeline.graph import load, run
from pipeline.records import manifest
from tests.support import command, one_line

LOG = b"""[E:onnxruntime] Failed to load library cuda.so with error: libcublasLt.so.13: cannot open shared object file
[W:onnxruntime:Default] Failed to create CUDAExecutionProvider. Require cuDNN 9.* and CUDA 13.*. Please install all.
"""
MISSING = (
    "libcublasLt.so.13: cannot open shared object file; it needs an NVIDIA GPU, cuDNN 9.* and CUDA 13.*; "
    "or use --provider cpu"
)


@pytest.mark.parametrize(
    ("log", "reason"),
    [(LOG, MISSING), (b"", "disabled by the user")],
)
def test_why_a_provider_cannot_be_loaded_is_one_line(release, monkeypatch, capfd, log, reason):
    """ONNX Runtime writes it to the process's stderr, its Python part prints, and the exception says something else."""

    def opened(*_):
        os.write(2, log)
        print("*** EP Error ***")
        raise RuntimeError("fallback to the CPU is\ndisabled by the user")

    monkeypatch.setattr(run, "opened", opened)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    result = command("verify", release / "mnist_cnn.onnx", "--provider", "cuda")
    assert one_line(result, 1).endswith(reason)
    assert result.stdout == "" and capfd.readouterr() == ("", "")


@pytest.mark.parametrize("words", [["run"], ["verify", "FORM"], ["bench", "FORM"]])
def test_a_provider_that_does_not_load_is_refused_before_anything_is_done(release, monkeypatch, tmp_path, words):
    def opened(*_):
        raise RuntimeError("no such device")

    monkeypatch.setattr(run, "opened", opened)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    line = [release / "mnist_cnn.onnx" if word == "FORM" else word for word in words]
    error = one_line(command(*line, "--provider", "cuda", "--out", tmp_path / "out"), 1)
    assert "--provider cuda" in error and "no such device" in error and not (tmp_path / "out").exists()


@pytest.mark.parametrize("mode", range(3))
def test_a_file_that_loads_and_cannot_run_is_one_line(release, monkeypatch, mode):
    """In ONNX Runtime, and as the rounded twin: sizes that don't fit show when it runs."""
    half = manifest.read(release / "mnist_cnn.fp16.onnx")
    nodes = [
        helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT16),
        helper.make_node("Reshape", ["pixels", "shape"], ["rows"]),
        helper.make_node("Cast", ["rows"], ["logits"], to=TensorProto.FLOAT),
    ]
    shapes = ("images", TensorProto.UINT8, ["n", 1, 28, 28]), ("logits", TensorProto.FLOAT, ["m", 1000])
    ends = [helper.make_tensor_value_info(*each) for each in shapes]
    shape = numpy_helper.from_array(np.int64([-1, 1000]), "shape")
    graph = helper.make_graph(nodes, "wrong", ends[:1], ends[1:], [shape])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    monkeypatch.setattr(load, "load", lambda _: model)
    runtime, name = runtimes.readers("half")[mode]
    with runtime.load(half, mode=name) as session:
        requests = [lambda: session(np.zeros([2, 1, 28, 28], np.uint8))]
        requests += [lambda: session.step(2)] if runtime.TIMED else []
        for request in requests:
            with pytest.raises(CheckFailed, match=r"mnist_cnn\.fp16\.onnx: ONNX Runtime can't run it: "):
                request()
