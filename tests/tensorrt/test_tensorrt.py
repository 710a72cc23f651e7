from __future__ import annotations

import importlib.util
import os
import re
import sys
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
from msgspec.structs import replace

from pipeline import chain as chains
from pipeline import runtimes, stages
from pipeline.errors import CheckFailed, UsageError
from pipeline.measure import timing
from pipeline.records import manifest
from pipeline.records.devices import Gpu
from pipeline.records.forms import Engine, EngineLayer
from pipeline.runtimes import tensorrt
from pipeline.stages import bench, build, card, verify
from pipeline.tensorrt import builder, cuda, trtexec
from tests.support import command, flip, one_line
from tests.support.fake_gpu import ENGINE, ORIN


@pytest.fixture
def engine(chain, tmp_path):
    """An engine on record as built here; its bytes mean nothing, since the GPU is none."""
    parent = manifest.read(chain / "mnist_cnn.fp16.onnx")

    def make(content: bytes = b"an engine", gpu: Gpu | None = ORIN, layers=(), **options) -> manifest.Artifact:
        facts = Engine(**card(parent), gpu=gpu, element="HALF", build_seconds=1.0, layers=list(layers))
        path = tmp_path / "mnist_cnn.engine"
        return manifest.write(path, content, parents=[parent], options=ENGINE | options, facts=facts)

    return make


@pytest.mark.parametrize("mode", tensorrt.READS["engine"])
def test_a_session_answers_for_any_number_of_images(device, engine, chain, digits, mode):
    images = digits.images[:150]
    expected = device.answer(images)
    with tensorrt.load(engine(), mode=mode) as session:
        for count in (counts := (150, 1, 64, 65, 7, 150)):
            assert np.allclose(session(images[:count]), expected[:count], atol=1e-3)
        assert device.cuda.launches == (sum(-(-count // 64) for count in counts) if mode != tensorrt.STREAM else 0)
        assert session.arithmetic == f"HALF, {mode}"
    assert not device.cuda.live, "something wasn't freed"


@pytest.mark.parametrize("mode", tensorrt.READS["engine"])
def test_a_request_allocates_nothing_and_is_done_when_it_returns(device, engine, mode):
    with tensorrt.load(engine(), mode=mode) as session:
        step = session.step(8)
        before = device.cuda.allocations
        for _ in range(3):
            step()
        assert device.cuda.allocations == before and not device.cuda.stream
        assert session.gpu_step(8)() > 0
        with pytest.raises(UsageError, match="1 to 64, received 65; build it with another --max-batch"):
            session.step(65)


@pytest.mark.parametrize(("mode", "graphs"), [*zip(tensorrt.READS["engine"], (1, 2, 0), strict=True)])
def test_what_is_the_same_is_captured_once(device, engine, monkeypatch, mode, graphs):
    """Without copies a request is its computation."""
    captured = mock.Mock(side_effect=lambda part: part)
    monkeypatch.setattr(cuda.Stream, "captured", lambda stream, part: captured(part))
    with tensorrt.load(engine(), mode=mode) as session:
        session.step(8)()
    assert captured.call_count == graphs


def test_where_memory_is_shared_nothing_is_copied(device, engine, digits):
    """By default, too; and the session sees new images in the memory that it has, and gives the logits from it."""
    images = digits.images[:20]
    with tensorrt.load(engine()) as session:
        assert session.arithmetic == "HALF, CUDA graph, zero copy"
        for part in (images[:8], images[8:16]):
            assert np.allclose(session(part), device.answer(part), atol=1e-3)
        session.step(8)()
        assert device.cuda.copies == 0 and device.cuda.allocations == 2
    device.cuda.integrated = False
    with tensorrt.load(engine()) as session:
        assert session.arithmetic == "HALF, CUDA graph"
        assert np.allclose(session(images), device.answer(images), atol=1e-3) and device.cuda.copies > 0
    assert not cuda.gpu().integrated and len(runtimes.readers("engine")) == 2


def test_memory_that_is_not_mapped_is_refused(device):
    """The stand-in knows, as CUDA does, what was allocated for what."""
    with cuda.Stream() as stream:
        with pytest.raises(CheckFailed, match="CUDA_ERROR_BAD"):
            stream._call("cuMemHostGetDevicePointer", stream.pinned((4,), np.uint8).ctypes.data, 0)
        array, address = stream.mapped((4,), np.uint8)
        assert address == array.ctypes.data and address in device.cuda.seen
    assert not device.cuda.live and not device.cuda.seen


def test_the_gpu_time_is_that_of_the_computation_alone(device, engine):
    """The fake's clock counts pieces of work, the first event among them: one kernel makes two, copies more."""
    with tensorrt.load(engine(), mode=tensorrt.GRAPH) as session:
        assert session.gpu_step(4)() == pytest.approx(0.002)


@pytest.mark.parametrize(
    ("options", "gpu", "expected"),
    [
        ({"version": "10.13.3"}, ORIN, "built by tensorrt 10.13.3, this machine has 10.3.0; `pipeline build`"),
        ({"version": "10.7.0", "version_compatible": True}, ORIN, "built by tensorrt 10.7.0"),
        ({"version": "9.3.0", "version_compatible": True}, ORIN, "built by tensorrt 9.3.0"),
        ({}, replace(ORIN, name="Thor"), "built for Thor (compute capability 8.7), this machine has Orin"),
        ({}, replace(ORIN, capability="8.6"), "built for Orin (compute capability 8.6), this machine has Orin"),
        ({"targets": ["sm86", "sm120"]}, None, "built for sm86, sm120, this machine has Orin"),
        ({"targets": None}, None, "built for an unknown GPU, this machine has Orin"),
    ],
)
def test_another_version_or_gpu_is_refused_before_deserialising(device, engine, options, gpu, expected):
    made = engine(gpu=gpu, **options)
    with pytest.raises(CheckFailed, match=re.escape(expected)):
        tensorrt.load(made)
    assert expected in runtimes.unable(made) and device.deserialised == 0


@pytest.mark.parametrize(
    ("options", "gpu"),
    [
        ({"version": "10.2rc1", "version_compatible": True}, ORIN),
        ({"hardware_compatible": True}, replace(ORIN, name="A2", capability="8.6")),
        ({"targets": ["sm86", "sm87"]}, None),
    ],
)
def test_what_was_built_to_run_elsewhere_does(device, engine, options, gpu):
    assert runtimes.unable(engine(gpu=gpu, **options)) is None


def test_an_altered_byte_is_refused_before_deserialising(device, engine):
    made = engine()
    flip(made.path)
    with pytest.raises(CheckFailed, match="altered: expected sha256"):
        tensorrt.load(made)
    flip(made.path)
    flip(made.path.with_name(manifest.FILE), 200)
    with pytest.raises(CheckFailed, match="altered"):
        tensorrt.load(manifest.read(made.path))
    assert device.deserialised == 0


def test_an_engine_that_tensorrt_refuses_is_one_line(device, engine):
    with pytest.raises(CheckFailed, match="can't be loaded: magic tag does not match"):
        tensorrt.load(engine(b"broken"))


def test_what_cuda_says_reaches_the_person(device, engine):
    device.cuda.fail.add("memory")
    with tensorrt.load(engine()) as session, pytest.raises(CheckFailed, match="CUDA: CUDA_ERROR_BAD: something bad"):
        session.step(1)


def test_it_is_verified_and_timed_like_any_form(device, engine, few):
    made = engine()
    verified = verify.run(made, data=str(few), gate=0.8).facts.rows
    ways = ["HALF, CUDA graph, zero copy", "HALF, CUDA graph", "HALF, no CUDA graph"]
    assert [row.arithmetic for row in verified] == ways and len({tuple(row.wrong) for row in verified}) == 1
    rows = bench.run(made, quick=True, batch=(1,)).facts.rows
    assert [row.arithmetic for row in rows] == ways
    assert all(row.gpu_microseconds["p50"] > 0 for row in rows)
    (row,) = bench.run(made, quick=True, batch=(1,), no_cuda_graph=True).facts.rows
    assert row.mode == tensorrt.STREAM


# As trtexec 8.6 to 11 print it, with colours off; its summary of a run on MNIST.
SUMMARY = """[01/24/2024-20:02:59] [I] === Performance summary ===
[01/24/2024-20:02:59] [I] Throughput: 40624.2 qps
[01/24/2024-20:02:59] [I] Latency: min = 0.020874 ms, max = 0.354187 ms, mean = 0.0249536 ms, median = 0.0246582 ms, \
percentile(90%) = 0.0258789 ms, percentile(95%) = 0.0263672 ms, percentile(99%) = 0.0344238 ms
[01/24/2024-20:02:59] [I] H2D Latency: min = 0 ms, max = 0 ms, mean = 0 ms, median = 0 ms, percentile(90%) = 0 ms, \
percentile(95%) = 0 ms, percentile(99%) = 0 ms
[01/24/2024-20:02:59] [I] GPU Compute Time: min = 0.0151367 ms, max = 0.348145 ms, mean = 0.0171428 ms, \
median = 0.0166016 ms, percentile(90%) = 0.0174561 ms, percentile(95%) = 0.0183105 ms, percentile(99%) = 2.56348e-02 ms
[01/24/2024-20:02:59] [I] Total Host Walltime: 3.00006 s
[01/24/2024-20:02:59] [I] Total GPU Compute Time: 2.08927 s
&&&& PASSED TensorRT.trtexec [TensorRT v8603] # trtexec"""
OTHER = """[01/24/2024-20:02:59] [E] IRuntime::deserializeCudaEngine: Error Code 6: API Usage Error (The engine plan \
file is not compatible with this version of TensorRT)
&&&& FAILED TensorRT.trtexec [TensorRT v101303] # trtexec"""


@pytest.fixture
def program(tmp_path, monkeypatch):
    """A trtexec that prints a text, and notes what it was given."""

    def make(text: str, code: int = 0):
        path = tmp_path / "bin/trtexec"
        path.parent.mkdir(exist_ok=True)
        note = f"open({str(tmp_path / 'given')!r}, 'a').write(' '.join(sys.argv[1:]) + chr(10))"
        path.write_text(f"#!{sys.executable}\nimport sys\n{note}\nprint({text!r})\nsys.exit({code})\n")
        path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{path.parent}:{os.environ['PATH']}")
        return tmp_path / "given"

    return make


def test_trtexecs_figure_stands_beside_ours(device, engine, program, capsys, monkeypatch):
    """Of the same engine, at every batch size, of the GPU alone; once, not for each way to run it, and after ours."""
    given, made, measure = program(SUMMARY), engine(), timing.measure

    def idle_before(subjects: list, **options: bool) -> timing.Conditions:
        assert not given.exists()
        return measure(subjects, **options)

    monkeypatch.setattr(timing, "measure", idle_before)
    report = bench.run(made, quick=True, batch=(1, 8), compare=True)
    lines = [line.split() for line in given.read_text().splitlines()]
    assert [line[:2] for line in lines] == [
        [f"--loadEngine={made.path}", f"--shapes=images:{batch}x1x28x28"] for batch in (1, 8)
    ]
    assert all({"--useCudaGraph", "--noDataTransfers"} <= set(line) for line in lines)
    assert [(each.form, each.batch) for each in report.facts.trtexec] == [(made.name, 1), (made.name, 8)]
    ours = [row.gpu_microseconds for row in report.facts.rows if row.mode == tensorrt.GRAPH]
    assert report.facts.speedup is None and [each.here for each in report.facts.trtexec] == ours
    times = {"p50": 16.6016, "p90": 17.4561, "p95": 18.3105, "p99": 25.6348}
    assert report.facts.trtexec[0].trtexec == pytest.approx(times)
    bench.show(report)
    shown = capsys.readouterr().out
    assert "microseconds by trtexec --useCudaGraph --noDataTransfers" in shown and "16.6" in shown
    assert "without copies; trtexec has the next request in the queue" in " ".join(shown.split())


@pytest.mark.parametrize(
    ("text", "code", "said"), [(OTHER, 1, "Error Code 6: API Usage Error"), ("", 0, "no GPU Compute Time")]
)
def test_a_trtexec_that_fails_is_one_line(device, engine, program, monkeypatch, text, code, said):
    program(text, code)
    monkeypatch.setattr(timing, "measure", lambda *_, **__: timing.Conditions())
    with pytest.raises(CheckFailed, match=said) as failed:
        bench.run(engine(), quick=True, batch=(1,), compare=True)
    assert "leave --compare out" in str(failed.value)


@pytest.mark.parametrize(
    ("options", "flags"),
    [({"dla": None}, []), ({"version_compatible": True}, ["--versionCompatible"]), ({"dla": 1}, ["--useDLACore=1"])],
)
def test_trtexec_is_told_what_an_engine_needs_to_be_loaded(engine, program, options, flags):
    given = program(SUMMARY)
    trtexec.run(str(given.with_name("bin") / "trtexec"), engine(**options), "images:1x1x28x28")
    assert given.read_text().split()[2 + len(trtexec.FLAGS) :] == flags


def test_without_trtexec_an_engine_alone_is_compared_with_nothing(device, engine, monkeypatch):
    monkeypatch.setattr(trtexec, "find", lambda: None)
    with pytest.raises(UsageError, match="needs the checkpoint among the forms, or an engine and trtexec"):
        bench.run(engine(), quick=True, compare=True)


def test_a_folder_is_verified_without_what_cannot_run_here(chain, capsys, monkeypatch):
    monkeypatch.setattr(cuda, "gpu", mock.Mock(side_effect=UsageError("no GPU at all")))
    kinds = [form.kind for form in chains.runnable(chains.forms(chain))]
    assert kinds == ["checkpoint", "unfolded", "folded", "half", "int8"]
    assert "left out: " in (told := capsys.readouterr().err) and "no GPU at all" in told


@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx has wheels for x86-64 only")
def test_who_names_an_engine_that_cannot_run_here_is_told(chain, tmp_path):
    made = manifest.read(chain / "mnist_cnn.engine")
    if runtimes.unable(made) is None:
        pytest.skip("this machine runs it")
    assert "built for sm86, sm89, sm120" in one_line(command("verify", made.path), 2)
    options = made.options | {"version": "1.0.0.1"}
    manifest.write(tmp_path / made.name, manifest.content(made), options=options, facts=made.facts)
    line = one_line(command("bench", tmp_path / made.name, "--quick"), 1)
    assert f"built by tensorrt-rtx 1.0.0.1, this machine has {made.options['version']}" in line


def test_what_falls_back_from_an_accelerator_to_the_gpu_is_listed_by_layer(engine, capsys):
    """As TensorRT's configuration answers for each layer of the parsed network, in its order."""
    kinds = ["CAST", "CONVOLUTION", "MATRIX_MULTIPLY"]
    layers = [EngineLayer(name=kind.lower(), type=kind, inputs=["HALF"], outputs=["HALF"]) for kind in kinds]
    network = SimpleNamespace(get_layer=kinds.__getitem__)
    config = SimpleNamespace(can_run_on_DLA=lambda layer: layer == "CONVOLUTION")
    marked = builder.falling_back(layers, network, config)
    assert [each.falls_back for each in marked] == [True, False, True]
    made = engine(dla=1, layers=marked, opt_batch=1)
    build.show(manifest.read(made.path))
    assert "DLA 1: 2 of 3 layers fall back to the GPU: cast, matrix_multiply" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("second", "altered", "told"),
    [
        (b"an engine", 0, "the same bytes"),
        (b"another", 0, "the same answers, logits within 0 of the largest"),
        (b"another", 3, "3 of 500 answers differ, logits within "),
        (b"another", None, "not finite"),
    ],
)
def test_a_second_build_is_compared_with_the_one_that_is_kept(
    device, chain, few, digits, tmp_path, monkeypatch, capsys, second, altered, told
):
    """The compiler's place takes one that gives these bytes; the second engine answers otherwise for some images."""
    marked = {image.tobytes() for image in digits.images[:altered]}

    def other(images: np.ndarray) -> np.ndarray:
        logits = device.answer(images)
        for image, row in zip(images, logits, strict=True):
            row *= np.nan if altered is None else -1 if image.tobytes() in marked else 1
        return logits

    built, caches = [b"an engine", second], []
    device.others[b"another"] = other
    monkeypatch.setattr(builder, "build", lambda *given: caches.append(given[4].timing_cache) or (built.pop(0), []))
    monkeypatch.setattr(builder, "inspect", lambda *_: [])
    form = manifest.read(chain / "mnist_cnn.fp16.onnx")
    made = build.run(form, out=tmp_path, runtime="tensorrt", twice=True, data=str(few))
    facts = manifest.read(made.path).facts.second
    assert manifest.content(made) == b"an engine" and manifest.names(tmp_path) == [made.name]
    assert facts.images == 500 and (altered is None or facts.differ == altered)
    assert caches[0] is not None and caches[1] is None  # the second has timings of its own
    stage, chosen = stages.get("build"), stages.options(build) | {"runtime": "tensorrt", "twice": True}
    assert chains._on_record(stage, made.path, "mnist_cnn", [form], chosen)
    about = {"facts": made.facts, "parents": [form], "versions": made.versions, "code": made.code}
    alone = {name: value for name, value in made.options.items() if name != "twice"}
    manifest.write(made.path, manifest.content(made), options=alone, **about)
    assert not chains._on_record(stage, made.path, "mnist_cnn", [form], chosen), "it was compared with none"
    build.show(made)
    assert told in capsys.readouterr().out.partition("second build: ")[2]
    assert not device.cuda.live
