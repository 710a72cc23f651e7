from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest

from pipeline import chain as chains
from pipeline import stages
from pipeline.errors import CheckFailed, UsageError
from pipeline.records import disk, kinds, manifest
from pipeline.records.forms import EngineLayer
from pipeline.stages import build
from pipeline.tensorrt import bindings as library
from pipeline.tensorrt import builder
from tests.support import command, one_line

MISSING = importlib.util.find_spec("tensorrt_rtx") is None
pytestmark = pytest.mark.skipif(MISSING, reason="tensorrt-rtx has wheels for x86-64 only")


def rtx(content: bytes, element: str = "HALF", **plan) -> tuple[bytes, list[EngineLayer]]:
    plan = builder.Plan(**{"targets": ("sm86",), **plan})
    return builder.build("try.onnx", content, element, library.load("tensorrt-rtx"), plan)


@pytest.fixture(scope="module")
def built(chain, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("engine")
    result = command(
        "build", chain / "mnist_cnn.fp16.onnx", "--runtime", "tensorrt-rtx", "--target", "sm86,sm89,sm120", "--out", out
    )
    assert result.returncode == 0, result.stderr
    assert "15 of 15 layers between the casts compute in HALF; built for sm86, sm89, sm120" in result.stdout
    return out / "mnist_cnn.engine"


def test_the_record_lists_every_layer_and_its_types(built, chain):
    engine = manifest.read(built)
    layers = engine.facts.layers
    assert [layer.type for layer in layers].count("CONVOLUTION") == 7
    assert layers[0].inputs == ["UINT8"] and layers[-1].outputs == ["FLOAT"]
    assert all(layer.inputs == layer.outputs == ["HALF"] for layer in layers[1:-1])
    assert engine.bytes > 10_000
    assert engine.parents == {"mnist_cnn.fp16.onnx": disk.digest(chain / "mnist_cnn.fp16.onnx")}
    assert engine.options["targets"] == ["sm86", "sm89", "sm120"]
    assert engine.options["version"] == engine.versions["tensorrt-rtx"]


def test_the_float32_file_builds_in_float32_and_not_in_half(chain):
    content = (chain / "mnist_cnn.onnx").read_bytes()
    engine, layers = rtx(content, "FLOAT")
    assert len(engine) > 10_000 and layers[1].outputs == ["FLOAT"]
    with pytest.raises(CheckFailed, match=r"expected every layer to compute in HALF, received CONVOLUTION .* in FLOAT"):
        rtx(content)


def test_one_float32_convolution_is_refused_by_name(chain, tmp_path):
    """As an exporter would that keeps a layer in float32 between two casts."""
    source = manifest.read(chain / "mnist_cnn.fp16.onnx")
    model = onnx.load(source.path)
    index, node = [(i, n) for i, n in enumerate(model.graph.node) if n.op_type == "Conv"][2]
    node.name = "the_odd_one"
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    for name in node.input[1:]:
        wide = onnx.numpy_helper.to_array(weights[name]).astype(np.float32)
        weights[name].CopyFrom(onnx.numpy_helper.from_array(wide, name))
    before, after = node.input[0], node.output[0]
    node.input[0], node.output[0] = "wide_in", "wide_out"
    cast = onnx.helper.make_node
    model.graph.node.insert(index + 1, cast("Cast", ["wide_out"], [after], to=onnx.TensorProto.FLOAT16))
    model.graph.node.insert(index, cast("Cast", [before], ["wide_in"], to=onnx.TensorProto.FLOAT))
    path = tmp_path / source.name
    content = model.SerializeToString()
    manifest.write(path, content, parents=source.parents, facts=source.facts)
    line = one_line(command("build", path, "--runtime", "tensorrt-rtx", "--out", tmp_path), 1)
    assert "CONVOLUTION the_odd_one is in FLOAT" in line and line.count(" is in FLOAT") == 1
    assert not (tmp_path / "mnist_cnn.engine").exists()


def test_what_tensorrt_cannot_take_is_a_line_with_node_and_operator(chain):
    model = onnx.load(chain / "mnist_cnn.fp16.onnx")
    node = next(node for node in model.graph.node if node.op_type == "Relu")
    node.op_type, node.name, node.domain = "NoSuchThing", "strange", ""
    with pytest.raises(CheckFailed, match=r"try.onnx: TensorRT can't take it: .*strange NoSuchThing"):
        rtx(model.SerializeToString())
    with pytest.raises(CheckFailed, match="TensorRT can't take it"):
        rtx(b"no model at all")


@pytest.mark.filterwarnings("ignore:.*Timing cache operations are no-ops")
def test_a_timing_cache_is_written_over_one_of_any_bytes(chain, tmp_path):
    """By the calls that `tensorrt` has, too; tensorrt-rtx's cache holds no timings."""
    path = tmp_path / "gpu.timings"
    path.write_bytes(b"no timings")
    rtx((chain / "mnist_cnn.fp16.onnx").read_bytes(), timing_cache=path)
    assert len(path.read_bytes()) > len(b"no timings")


@pytest.mark.parametrize("name", ["sm86", "sm89", "sm120"])
def test_it_builds_for_one_target(chain, name):
    engine, _ = rtx((chain / "mnist_cnn.fp16.onnx").read_bytes(), targets=(name,), workspace=64, opt_batch=8)
    assert len(engine) > 10_000


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--target", "sm99"], "expected some of"),
        (["--target", "sm86", "--runtime", "tensorrt"], "builds for the GPU it is on"),
        (["--opt-batch", "0"], "1 <= --opt-batch <= --max-batch"),
        (["--opt-batch", "65"], "1 <= --opt-batch <= --max-batch"),
        (["--workspace", "0"], "expected MiB"),
        (["--dla", "0", "--opt-batch", "64"], "0 DLA cores"),
        (["--dla", "0"], "--opt-batch and --max-batch alike, received 1 and 64"),
        (["--dla", "-1"], "expected 0 or more"),
        (["--version-compatible"], "name GPUs by --target"),
        (["--twice", "--target", "sm86"], "sm86 is not here"),
    ],
)
def test_wrong_use_is_one_line(chain, tmp_path, options, expected):
    more = [] if "--runtime" in options else ["--runtime", "tensorrt-rtx"]
    line = one_line(command("build", chain / "mnist_cnn.fp16.onnx", "--out", tmp_path, *more, *options), 2)
    assert expected in line and not list(tmp_path.iterdir())


@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="tensorrt is installed here")
def test_without_tensorrt_it_says_what_to_install(chain, tmp_path):
    line = one_line(command("build", chain / "mnist_cnn.fp16.onnx", "--runtime", "tensorrt", "--out", tmp_path), 2)
    for word in ("tensorrt isn't installed", "6.1 or 6.2 (TensorRT 10.3", "nvidia-jetpack", "[host,tensorrt,cuda13]"):
        assert word in line


def test_an_old_tensorrt_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="8.6.2"))
    with pytest.raises(UsageError, match=r"TensorRT 8.6.2 has no strongly typed networks: expected 10.0 or later"):
        library.load("tensorrt")


def test_the_chain_ends_with_an_engine_and_does_without_where_there_is_no_tensorrt(chain, monkeypatch):
    assert manifest.read(chain / "mnist_cnn.engine").options["runtime"] == "tensorrt-rtx"
    assert build.absent(runtime="auto") is None
    monkeypatch.setattr(library, "installed", list)
    assert "neither tensorrt nor tensorrt-rtx is installed" in build.absent(runtime="auto")
    assert build.absent(runtime="tensorrt") is None
    left = [name for name in stages.names() if name != "build"]
    monkeypatch.setattr(stages, "names", lambda: ["build"])
    assert list(chains.run("mnist_cnn", out=chain)) == [] and left[-1] == "bench"


def test_the_same_file_gives_the_same_layers(built, chain, tmp_path):
    again = command("build", chain / "mnist_cnn.fp16.onnx", "--runtime", "tensorrt-rtx", "--out", tmp_path, "--json")
    engine, facts = manifest.read(built), json.loads(again.stdout)["facts"]
    assert facts["layers"] == kinds.plain(engine.facts.layers)  # TensorRT does not always repeat the bytes
    assert manifest.read(tmp_path / built.name).options == engine.options
