from __future__ import annotations

import shutil
from pathlib import Path

import onnx
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from pipeline.release import ship, triton
from tests.support import command, flip, one_line
from tests.support.releases import resum

NAME = "mnist_cnn-1.0.0-triton"
TYPES = {onnx.TensorProto.UINT8: "TYPE_UINT8", onnx.TensorProto.FLOAT: "TYPE_FP32"}


@pytest.fixture(scope="module")
def repository(release, tmp_path_factory):
    out = tmp_path_factory.mktemp("triton")
    ship.run(release, out=out, format="triton")
    return out / NAME


@pytest.mark.parametrize(("name", "file"), [("mnist_cnn", "mnist_cnn.onnx"), ("mnist_cnn_fp16", "mnist_cnn.fp16.onnx")])
def test_the_configuration_is_the_models(repository, release, name, file):
    """Parsed by Triton's own message, held against the ONNX file that lies beside it."""
    config = text_format.Parse((repository / name / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())
    served = repository / name / "1" / "model.onnx"
    assert served.read_bytes() == (release / file).read_bytes()
    graph = onnx.load(served).graph
    assert config.name == name and config.backend == "onnxruntime"
    for described, value in ((config.input, graph.input), (config.output, graph.output)):
        assert [each.name for each in described] == [each.name for each in value]
        kind = value[0].type.tensor_type
        assert model_config_pb2.DataType.Name(described[0].data_type) == TYPES[kind.elem_type]
        assert list(described[0].dims) == [dim.dim_value for dim in kind.shape.dim[1:]]
        assert kind.shape.dim[0].dim_param, "the batch is free, as max_batch_size says"
    labels = (repository / name / config.output[0].label_filename).read_text().split()
    assert labels == list("0123456789") and len(labels) == config.output[0].dims[0]
    assert config.max_batch_size == triton.LARGEST and config.HasField("dynamic_batching")
    assert max(config.dynamic_batching.preferred_batch_size) <= config.max_batch_size
    warm = config.model_warmup[0]
    assert warm.batch_size == triton.LARGEST and list(warm.inputs["images"].dims) == [1, 28, 28]


def test_it_is_a_release_too(repository):
    """Triton looks into folders: what else is there must be files."""
    assert command("verify-release", repository).returncode == 0
    assert {path.name for path in repository.iterdir() if path.is_dir()} == {
        "mnist_cnn",
        "mnist_cnn_fp16",
        "mnist_cnn_int8",
    }


def test_a_model_that_was_not_verified_is_noticed(repository, tmp_path):
    """Also by one who fits the digests to it."""
    copy = Path(shutil.copytree(repository, tmp_path / NAME))
    flip(copy / "mnist_cnn/1/model.onnx", 20_000)
    resum(copy)
    assert "mnist_cnn/1/model.onnx: was not verified" in one_line(command("verify-release", copy), 1)
    (copy / "verification.json").unlink()
    resum(copy)
    assert "expected the proof" in one_line(command("verify-release", copy), 1)
