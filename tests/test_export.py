from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import command, one_line

from pipeline import artifact, dataset, mnist
from pipeline.errors import CheckFailed
from pipeline.stages import export


@pytest.fixture(scope="module")
def model(chain) -> onnx.ModelProto:
    return onnx.load(chain / "mnist_cnn.onnx")


def test_the_graph_holds_nothing_but_what_computes(model):
    operators = [node.op_type for node in model.graph.node]
    assert operators == ["Cast", "Conv", "Relu", "Conv", "Relu", "Conv", "MaxPool"] + ["Conv", "Relu"] * 3 + [
        "AveragePool",
        "Conv",
        "Reshape",
    ]
    assert [o.version for o in model.opset_import] == [18]
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    onnx.checker.check_model(model, full_check=True)


def test_it_is_small(chain):
    assert (chain / "mnist_cnn.onnx").stat().st_size <= 42_000
    assert (chain / "mnist_cnn.fp16.onnx").stat().st_size <= 24_000


def test_it_says_what_it_is(model, chain):
    properties = {entry.key: entry.value for entry in model.metadata_props}
    assert properties["name"] == "mnist_cnn" and properties["classes"] == "0,1,2,3,4,5,6,7,8,9"
    assert properties["parent_sha256"] == artifact.read(chain / "mnist_cnn.folded.safetensors").sha256
    assert properties["licence"] == "MIT" and "uint8" in properties["input"] and "10000" in properties["accuracy"]
    half = {entry.key: entry.value for entry in onnx.load(chain / "mnist_cnn.fp16.onnx").metadata_props}
    assert half["parent_sha256"] == artifact.read(chain / "mnist_cnn.onnx").sha256


@pytest.mark.parametrize("name", ["mnist_cnn.onnx", "mnist_cnn.fp16.onnx"])
def test_plain_onnxruntime_takes_pixels_straight_from_an_idx_file(chain, data, name):
    raw = (data / mnist.RAW / "t10k-images-idx3-ubyte").read_bytes()
    labels = (data / mnist.RAW / "t10k-labels-idx1-ubyte").read_bytes()[8:]
    session = onnxruntime.InferenceSession(chain / name, providers=["CPUExecutionProvider"])
    images = np.frombuffer(raw, np.uint8, offset=16).reshape(-1, 1, 28, 28)
    (logits,) = session.run(["logits"], {"images": images})
    assert logits.dtype == np.float32 and logits.shape == (10_000, 10)
    assert (logits.argmax(1) == np.frombuffer(labels, np.uint8)).mean() > 0.9
    assert session.run(None, {"images": images[:7]})[0].shape == (7, 10)


def test_another_opset_is_what_is_written_or_an_error(chain, tmp_path):
    folded = artifact.read(chain / "mnist_cnn.folded.safetensors")
    export.run(folded, out=tmp_path, opset=20)
    assert onnx.load(tmp_path / "mnist_cnn.onnx").opset_import[0].version == 20
    for opset in (1, -3):
        with pytest.raises(CheckFailed, match="opset"):
            export.run(folded, out=tmp_path / "new", opset=opset)
    assert "opset" in one_line(command("export", folded.path, "--out", tmp_path / "new", "--opset", "999"), 1)
    assert not (tmp_path / "new").exists()


def test_the_reference_evaluator_of_onnx_agrees(model, chain, data):
    from onnx.reference import ReferenceEvaluator

    images = dataset.test(data).images[:20]
    (expected,) = ReferenceEvaluator(model).run(None, {"images": images})
    session = onnxruntime.InferenceSession(chain / "mnist_cnn.onnx", providers=["CPUExecutionProvider"])
    assert np.allclose(session.run(None, {"images": images})[0], expected, atol=1e-4)
