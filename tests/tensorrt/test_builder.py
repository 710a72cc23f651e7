"""Builds by `tensorrt` 10 and 11 as on a device, with a stand-in for the compiler."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.errors import CheckFailed, UsageError
from pipeline.records import manifest
from pipeline.runtimes import tensorrt
from pipeline.stages import build
from pipeline.tensorrt import bindings as library
from tests.support import fake_builder
from tests.support.fake_gpu import ORIN

VERSIONS = ["10.3.0", "10.16.2", "11.4.1"]
FORMS = {"mnist_cnn.fp16.onnx": "HALF", "mnist_cnn.onnx": "FLOAT", "mnist_cnn.int8.onnx": "INT8"}


@pytest.fixture(params=VERSIONS)
def compiler(request, device, monkeypatch) -> fake_builder.Bindings:
    compiler = fake_builder.Bindings(device.cuda, device.answer, 64, request.param, accelerators=2)
    monkeypatch.setattr(library, "load", lambda name: compiler)
    monkeypatch.setattr(library, "version", lambda name: request.param)
    return compiler


def made(chain, tmp_path, name: str = "mnist_cnn.fp16.onnx", **options) -> manifest.Artifact:
    given = {"timing_cache": tmp_path / "timings", **options}
    return build.run(manifest.read(chain / name), out=tmp_path, runtime="tensorrt", **given)


@pytest.mark.parametrize("name", FORMS)
def test_each_form_is_built_typed_and_asked_what_it_computes_in(compiler, chain, tmp_path, name):
    engine = made(chain, tmp_path, name)
    facts = engine.facts
    assert facts.element == FORMS[name] and facts.gpu == ORIN and engine.options["version"] == compiler.__version__
    assert len(facts.inspected) == len(facts.layers) and not any(each.falls_back for each in facts.layers)


def test_an_engine_that_computes_in_another_type_is_refused(compiler, chain, tmp_path):
    compiler.computes = "FLOAT"
    with pytest.raises(CheckFailed, match="expected the engine to compute in HALF, received Convolution"):
        made(chain, tmp_path)
    assert not list(tmp_path.glob("*.engine"))


def test_each_build_begins_with_the_timings_of_the_one_before(compiler, chain, tmp_path):
    for builds in (1, 2):
        made(chain, tmp_path)
        (path,) = (tmp_path / "timings").iterdir()
        assert path.name == f"tensorrt-{compiler.__version__}-Orin-sm87.timings"
        assert path.read_bytes() == b"timings" + b" of one more build" * builds
    path.write_bytes(b"another version's")
    made(chain, tmp_path)
    assert path.read_bytes() == b"timings of one more build"


def test_on_an_accelerator_the_rest_falls_back_to_the_gpu(compiler, chain, tmp_path, capsys):
    engine = made(chain, tmp_path, dla=1, opt_batch=8, max_batch=8)
    stays = {each.type for each in engine.facts.layers if not each.falls_back}
    assert stays == {"CONVOLUTION"} and any(each.falls_back for each in engine.facts.layers)
    build.show(engine)
    assert "DLA 1: " in (told := capsys.readouterr().out) and "layers fall back to the GPU" in told
    with pytest.raises(UsageError, match="this device's 2 DLA cores"):
        made(chain, tmp_path, dla=2, opt_batch=8, max_batch=8)


def test_an_accelerators_engine_has_one_batch_size_and_is_loaded_on_its_core(compiler, device, chain, digits, tmp_path):
    """What is left over after full batches is answered in one as well; other requests are refused."""
    with pytest.raises(UsageError, match="--opt-batch and --max-batch alike, received 1 and 64"):
        made(chain, tmp_path, dla=1)
    images = digits.images[:13]
    with tensorrt.load(made(chain, tmp_path, dla=1, opt_batch=8, max_batch=8)) as session:
        assert np.allclose(session(images), device.answer(images), atol=1e-3)
        session.step(8)()
        with pytest.raises(UsageError, match="takes batches of 8 to 8, received 1"):
            session.step(1)
