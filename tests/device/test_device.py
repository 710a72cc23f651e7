from __future__ import annotations

import dataclasses
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from PIL import Image

from pipeline import commands, runtimes
from pipeline.device import deploy, doctor
from pipeline.errors import CheckFailed
from pipeline.measure import timing
from pipeline.records import disk, manifest
from pipeline.records.devices import Ability
from pipeline.records.forms import EngineLayer
from pipeline.records.releases import Boards
from pipeline.release import archives, ship, verify_release
from pipeline.stages import bench
from pipeline.tensorrt import bindings as library
from pipeline.tensorrt import builder
from tests.support import ROOT, command, flip, one_line, surroundings
from tests.support.fake_gpu import ORIN
from tests.support.sources import imports


def test_doctor_tells_what_is_missing_in_the_words_of_the_stage(chain, tmp_path):
    result = command("doctor")
    assert result.returncode == 0
    for name in library.MODULES:
        build = ["build", chain / "mnist_cnn.fp16.onnx", "--runtime", name, "--out", tmp_path]
        if importlib.util.find_spec(library.MODULES[name]):
            assert f"pipeline build --runtime {name}" in result.stdout
        else:
            assert one_line(command(*build), 2).removeprefix("error: ") in " ".join(result.stdout.split())


def test_doctor_breaks_long_lines_but_no_command(capsys):
    made, remedy = doctor.run(), library.INSTALL["tensorrt"]
    able = [Ability(what="pipeline build", ready=False, missing=[], remedy=remedy)]
    doctor.show(dataclasses.replace(made, facts=msgspec.structs.replace(made.facts, able=able)))
    lines = capsys.readouterr().out.partition("\npipeline build: ")[2].splitlines()
    assert " ".join(" ".join(lines).split()).startswith(remedy) and max(map(len, lines)) <= doctor.WIDTH
    for part in (
        "`sudo apt install nvidia-jetpack`",
        "pip install -e '.[host,tensorrt,cuda13]' in the project's folder",
    ):
        assert any(part in line for line in lines), part


def test_doctor_finds_what_a_stage_lacks(monkeypatch):
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in ("torch", "optuna") else there(name))
    rows = {row.what: row for row in doctor.run().facts.able}
    assert rows["pipeline train"].missing == ["torch"] and ".[host]" in rows["pipeline train"].remedy
    assert ".[host,sweep]" in rows["pipeline sweep"].remedy
    assert rows["run unfolded, folded, half, int8 in onnxruntime"].ready and not rows["run checkpoint in pytorch"].ready


def test_files_need_what_they_import():
    """Doctor believes NEEDS; so it must be what stands in the file."""
    modules = [command.load() for command in commands.COMMANDS.values() if command.name not in ("deploy", "doctor")]
    for module in (*modules, *runtimes.every()):
        path = Path(module.__file__)
        heavy = {"torch", "safetensors", "onnxruntime", "onnxscript", "optuna", "matplotlib", "PIL"}
        assert {name.split(".")[0] for name in imports(path)} & heavy <= set(module.NEEDS), path.name


def test_deploy_without_a_gpu_says_so_and_proves_the_files(chain, few, tmp_path):
    result = command("deploy", chain, "--out", tmp_path, "--data", few, "--gate", "0.8", "--quick", "--batch", "1")
    assert result.returncode == 0, result.stderr
    assert "no engine is built: " in result.stderr and result.stdout.count("passed") == 1
    report = manifest.read(tmp_path / "device-report.json")
    low, high = report.facts.rows[0].interval
    assert f"{low:.2%} – {high:.2%}" in result.stdout and "{" not in result.stdout
    assert report.facts.no_engine and report.facts.data.images == 500
    assert {row.form for row in report.facts.rows} == {f"mnist_cnn{end}.onnx" for end in ("", ".fp16", ".int8")}
    assert all(timed.microseconds["p50"] > 0 for row in report.facts.rows for timed in row.latency)
    for name in ("verification.json", "latency.json"):
        assert report.parents[name] == disk.digest(tmp_path / name)
    assert not list(tmp_path.glob("*.engine"))


def test_a_chains_own_folder_is_none_for_a_device(shipped, chain):
    error = one_line(command("deploy", shipped / "mnist_cnn-1.0.0", "--out", chain, "--runtime", "none"), 2)
    assert "holds a chain and its proof" in error


def test_deploy_on_a_device_builds_verifies_and_times_engines(device, chain, few, tmp_path, monkeypatch, capsys):
    """Without the compiler: its place takes one that makes an engine of any bytes."""
    layers = [EngineLayer(name="conv", type="CaskConvolution", inputs=["Half"], outputs=["Half"])]
    caches = []

    def compiled(source, content, element, bindings, plan, integers):
        caches.append(plan.timing_cache)
        return content[:99], []

    monkeypatch.setattr(builder, "build", compiled)
    monkeypatch.setattr(builder, "inspect", lambda *_: layers)
    monkeypatch.setattr(library, "installed", lambda: ["tensorrt"])
    monkeypatch.setattr(timing, "SECONDS", (2.0, 0.05))  # of each of two dozen subjects
    timed = bench.run
    monkeypatch.setattr(bench, "run", lambda *forms, quick, **options: timed(*forms, quick=True, **options))
    report = deploy.run(chain, out=tmp_path, data=str(few), gate=0.8, batch=(1, 4))
    rows = {(row.form, row.arithmetic): row for row in report.facts.rows}
    assert report.facts.no_engine is None and report.facts.gpu.name == "Orin"
    assert ("mnist_cnn.fp32.engine", "FLOAT, no CUDA graph") in rows
    engine = manifest.read(tmp_path / "mnist_cnn.engine")
    assert engine.facts.gpu == ORIN and engine.facts.inspected == layers and engine.options["version"] == "10.3.0"
    timed = rows["mnist_cnn.engine", "HALF, CUDA graph"].latency
    assert [each.batch for each in timed] == [1, 4] and timed[0].gpu_microseconds["p50"] > 0
    deploy.show(report)
    assert caches == [tmp_path / "timings/tensorrt-10.3.0-Orin-sm87.timings", None] * 3  # None: timings of its own
    output = capsys.readouterr().out
    assert "GPU µs" in output and output.count("built a second time: the same bytes") == 3
    assert {second.images for second in report.facts.second_builds.values()} == {500}


def test_timings_travel_with_a_release_to_the_next_device_of_the_kind(release, digits, tmp_path):
    left = tmp_path / "device/timings"
    left.mkdir(parents=True)
    (left / "tensorrt-10.3.0-Orin-sm87.timings").write_bytes(b"timings")
    made = ship.run(release, out=tmp_path, timings=left)
    assert verify_release.run(made.path).facts.verified
    with archives.opened(made.path) as folder:
        assert not deploy._timings(None, tmp_path / "next").exists()  # of mere files, which nobody checked
        assert [path.name for path in deploy._timings(folder, tmp_path / "next").iterdir()] == [
            next(left.iterdir()).name
        ]
        (tmp_path / "next/timings/tensorrt-10.3.0-Orin-sm87.timings").write_bytes(b"its own")
        deploy._timings(folder, tmp_path / "next")
    assert next((tmp_path / "next/timings").iterdir()).read_bytes() == b"its own"
    error = one_line(command("ship", release, "--out", tmp_path, "--timings", tmp_path), 2)
    assert "expected files *.timings" in error
    line = ["ship", release, "--out", tmp_path, "--format", "triton"]
    for option in ("--timings", "--board"):
        assert f"{option}: a Triton repository has no place for them" in one_line(command(*line, option, left), 2)


def test_mere_files_bring_no_timings(release, few, tmp_path, monkeypatch):
    """They are on no record, and TensorRT would parse them."""
    folder = Path(shutil.copytree(release, tmp_path / "artifacts"))
    (folder / "timings").mkdir()
    (folder / "timings/tensorrt-10.3.0-Orin-sm87.timings").write_bytes(b"from anywhere")
    deploy.run(folder, out=tmp_path / "out", data=str(few), runtime="none", gate=0.8, quick=True, batch=(1,))
    assert not (tmp_path / "out/timings").exists()


def test_figures_to_doubt_are_told_with_the_report_and_by_board(release, few, tmp_path, monkeypatch, capsys):
    measure = timing.measure

    def unlocked(*given, **options):
        conditions = measure(*given, **options)
        conditions.warnings.append("GPU clock is not locked")
        return conditions

    monkeypatch.setattr(timing, "measure", unlocked)
    monkeypatch.setattr(timing, "UNSTABLE", -1)
    form = release / "mnist_cnn.onnx"
    report = deploy.run(form, out=tmp_path, data=str(few), runtime="none", gate=0.8, quick=True, batch=(8, 1))
    assert len(report.facts.warnings) == 2
    (row,) = report.facts.rows
    assert [each.batch for each in row.latency] == [8, 1] and row.smallest is row.latency[1]
    capsys.readouterr()
    both = {"orin": report.facts, "xavier": report.facts}
    for shown, start in (
        (report, ""),
        (manifest.write(None, None, facts=Boards(boards=both, failures=[])), "xavier: "),
    ):
        deploy.show(shown)
        told = capsys.readouterr()
        assert f"{start}unreliable measurement: GPU clock" in told.err
        assert f"{start}unstable: throughput varied by over" in told.err and "mnist_cnn.onnx at batch 1" in told.err
    cells = next(line.split() for line in told.out.splitlines() if "xavier" in line)
    assert f"{row.latency[1].microseconds['p50']:.1f}" in cells and "8" not in cells


def test_a_form_that_fails_fails_the_deployment_and_is_reported(chain, few, tmp_path):
    line = ["deploy", chain / "mnist_cnn.onnx", "--out", tmp_path, "--data", few, "--quick", "--batch", "1"]
    message = one_line(command(*line, "--gate", "1", "--runtime", "none"), 1)
    assert "under the gate of 100.00%" in message
    report = manifest.read(tmp_path / "device-report.json")
    assert not report.facts.passed and report.facts.failures


@pytest.mark.parametrize("name", ["mnist_cnn.onnx", "report.html", "test-set.npz", "SHA256SUMS"])
def test_a_shipped_release_is_checked_whole_before_anything_is_loaded(shipped, tmp_path, monkeypatch, name):
    copy = Path(shutil.copytree(shipped / "mnist_cnn-1.0.0", tmp_path / "release"))
    flip(copy / name, 1000)
    monkeypatch.setattr(manifest, "read", lambda path: pytest.fail(f"{path} is looked at"))
    with pytest.raises(CheckFailed, match=name):
        deploy.run(copy, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_key_demands_a_signed_release(shipped, release, tmp_path):
    (tmp_path / "pub.pem").write_text("")
    line = ["deploy", "--public-key", tmp_path / "pub.pem", "--out", tmp_path / "out"]
    assert "is not signed" in one_line(command(*line, shipped / "mnist_cnn-1.0.0"), 1)
    assert "has no SHA256SUMS" in one_line(command(*line, release), 2)


@pytest.mark.parametrize("given", [".", "mnist_cnn.fp16.onnx"])
def test_an_altered_form_is_refused_before_anything_is_loaded(folder, few, tmp_path, given):
    flip(folder / "mnist_cnn.fp16.onnx")
    assert "altered" in one_line(command("deploy", folder / given, "--out", tmp_path / "device", "--data", few), 1)
    assert not (tmp_path / "device").exists()


@pytest.mark.parametrize(
    ("line", "code", "expected"),
    [
        (["nothing-here"], 2, "nothing-here"),
        ([], 2, "Missing argument"),
        (["README.md"], 2, "README.md"),
        (["tests"], 2, "expected an ONNX file that this pipeline made"),
        (["artifacts", "--runtime", "tensorrt", "--out", "{tmp}"], 2, "tensorrt"),
        (["artifacts", "--out", "README.md"], 2, "expected a folder that can be written to"),
    ],
)
def test_wrong_use_is_one_line(line, code, expected, tmp_path):
    if "tensorrt" in line and library.installed()[:1] == ["tensorrt"]:
        pytest.skip("tensorrt is installed here")
    assert expected in one_line(command("deploy", *(word.format(tmp=tmp_path) for word in line)), code)


@pytest.mark.exhaustive
def test_the_device_side_installs_and_runs_without_torch(release, shipped, few, digits, tmp_path):
    """In a virtual environment of its own, with the extras for a Jetson and nothing of this one."""
    source = tmp_path / "source"
    for name in ("pipeline", "models"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    (release.parent / "digits").mkdir(exist_ok=True)
    Image.fromarray(digits.images[0, 0]).save(release.parent / "digits" / "7.png")
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv/bin/python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", f"{source}[jetson,demo]"], check=True, cwd=tmp_path)
    assert subprocess.run([python, "-c", "import torch"], capture_output=True).returncode

    def run(*line: object) -> str:
        called = [tmp_path / "venv/bin/pipeline", *map(str, line)]
        done = subprocess.run(called, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    tested = ["--data", few, "--gate", "0.95"]
    assert json.loads(run("doctor", "--json"))["facts"]["onnxruntime"]["version"]
    assert "missing: torch" in run("doctor")
    report = json.loads(run("deploy", release, "--quick", "--batch", "1", *tested, "--json"))
    assert report["facts"]["passed"] and report["path"] == "device/device-report.json"
    archive = shipped / "mnist_cnn-1.0.0.tar.gz"
    run("verify-release", archive)
    whole = json.loads(run("deploy", archive, "--quick", "--batch", "1", "--out", "whole", "--json"))["facts"]
    assert whole["passed"] and whole["data"]["name"] == "MNIST test set" and whole["release"]["verified"]
    run("predict", release.parent / "digits", "--model", release / "mnist_cnn.onnx")
    run("verify", release / "mnist_cnn.onnx", *tested)
    run("bench", release / "mnist_cnn.onnx", "--quick", "--batch", "1")
    run("status", release)
    run("show", release / "mnist_cnn.onnx")


def test_the_device_side_runs_where_torch_cannot_be_imported(release, shipped, few, tmp_path):
    """As on a Jetson: what a release needs there is asked for with every import of torch made impossible."""
    code = """
import sys
class NoTorch:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in ("torch", "torchvision"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, NoTorch())
from pipeline.cli.main import main
main()
"""
    for line in (
        ["deploy", shipped / "mnist_cnn-1.0.0", "--quick", "--batch", "1", "--data", few, "--gate", "0.9"],
        ["verify-release", shipped / "mnist_cnn-1.0.0.tar.gz"],
        ["status", release],
    ):
        called = [sys.executable, "-c", code, *map(str, line)]
        done = subprocess.run(called, cwd=tmp_path, env=surroundings(), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
