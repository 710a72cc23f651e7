from __future__ import annotations

import functools
import json
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from pipeline import chain as chains
from pipeline import commands, stages
from pipeline.records import disk, kinds, manifest
from tests.support import ROOT, SMALL, command, flip, one_line, process


def states(folder: Path) -> dict[str, str]:
    """The state of each stage's artifact."""
    links = json.loads(command("status", folder, "--json").stdout)
    return {link["stage"]: link["state"] for link in links if link["stage"]}


def run(folder: Path, data: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return command("run", "--data", data, "--out", folder, *SMALL, *more)


def test_a_second_run_does_no_work_and_says_so(folder, few):
    times = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    again = run(folder, few)
    assert again.returncode == 0 and "nothing to do" in again.stderr
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == times
    (line,) = again.stdout.splitlines()
    assert line.startswith("passed: gate 80.00%, least accuracy ")


def test_each_stage_is_shown_when_it_is_made_and_the_verdict_last(folder, few, monkeypatch):
    (folder / "verification.json").unlink()
    (folder / "latency.json").unlink()
    bench, before = stages.get("bench"), []

    @functools.wraps(bench.run)
    def watched(*forms, **options):
        before.append(sys.stdout.getvalue())
        return timed(*forms, **options)

    timed = bench.run
    monkeypatch.setattr(bench, "run", watched)
    log = run(folder, few).stdout
    assert "McNemar" in before[0] and "p99.9" not in before[0] and "p99.9" in log
    assert log.splitlines()[-1].startswith("passed: gate 80.00%, least accuracy ")


def made(result: subprocess.CompletedProcess[str]) -> list[str]:
    """The stages that a run did, not those it skipped."""
    return [line.split()[0] for line in result.stderr.splitlines() if " made: " in line]


def test_only_what_an_option_touches_is_done_again_and_what_failed_is_not_skipped(folder, few):
    again = run(folder, few, "--gate", "0.9999")
    assert made(again) == ["verify"]
    assert "mnist_cnn.fp16.onnx" in one_line(again, 1) and "FAILED" in again.stdout
    assert states(folder)["verify"] == "stale" and set(states(folder).values()) == {"fresh", "stale"}
    assert "failed: " in command("status", folder).stdout
    assert made(run(folder, few, "--gate", "0.9999")) == ["verify"], "what failed is not fresh"
    assert made(run(folder, few, "--opset", "19")) == [
        "export",
        "fold",
        "half",
        "quantize",
        "certify",
        "build",
        "verify",
        "bench",
    ]


def test_the_same_seed_gives_the_same_bytes_and_what_comes_after_is_run(folder, chain, few):
    """As on a fresh clone: the checkpoint isn't shipped, but the verification of the same bytes is."""
    (folder / "mnist_cnn.safetensors").unlink()
    again = run(folder, few)
    assert again.returncode == 0 and made(again) == list(stages.names())
    for name in ("mnist_cnn.safetensors", "mnist_cnn.unfolded.onnx", "mnist_cnn.onnx", "mnist_cnn.fp16.onnx"):
        assert manifest.recall(folder / name).record() == manifest.recall(chain / name).record()
        assert disk.digest(folder / name) == disk.digest(chain / name)
    for name in ("mnist_cnn.history.csv", "verification.json"):
        assert disk.digest(folder / name) == disk.digest(chain / name)


def recorded_as(folder: Path, name: str, **changes: object) -> None:
    """Another record of an unaltered file, with a digest that fits."""
    before = manifest.read(folder / name)
    kept = {"parents": before.parents, "options": before.options, "versions": before.versions, "code": before.code}
    content = None if before.kind in kinds.REPORTS else before.path.read_bytes()
    manifest.write(before.path, content, facts=before.facts, **{**kept, **changes})


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"code": "0" * 64}, "made by different code"),
        ({"versions": {"onnxruntime": "1.0", "onnxruntime-gpu": "1.0"}}, "made with onnxruntime"),
        ({"parents": {"mnist_cnn.onnx": "0" * 64}}, "mnist_cnn.onnx has changed"),
    ],
)
def test_other_code_versions_and_parents_make_it_and_what_follows_stale(folder, few, change, why):
    recorded_as(folder, "mnist_cnn.fp16.onnx", **change)
    found = states(folder)
    assert [found[name] for name in ("fold", "half", "verify", "bench")] == ["fresh", "stale", "stale", "stale"]
    assert why in " ".join(command("status", folder).stdout.split())
    if "code" in change:
        assert made(run(folder, few)) == ["half", "certify", "build", "verify", "bench"]
        assert set(states(folder).values()) == {"fresh"}


def test_status_tells_fresh_stale_missing_and_altered(folder):
    assert set(states(folder).values()) == {"fresh"}
    (folder / "latency.json").unlink()
    assert states(folder)["bench"] == "missing"
    recorded_as(folder, "mnist_cnn.onnx", parents={"mnist_cnn.unfolded.onnx": "0" * 64})
    assert states(folder)["fold"] == states(folder)["half"] == "stale" and states(folder)["export"] == "fresh"
    flip(folder / "mnist_cnn.unfolded.onnx")
    found = states(folder)
    assert found["export"] == "altered" and found["fold"] == "stale" and found["train"] == "fresh"
    error = one_line(command("status", folder), 1)
    assert "mnist_cnn.unfolded.onnx" in error and "expected sha256" in error


def test_a_form_without_its_record_is_not_passed_over(folder, few):
    records = json.loads((folder / manifest.FILE).read_text())
    del records["mnist_cnn.onnx"]
    (folder / manifest.FILE).write_bytes(manifest._serialised(records))
    assert "mnist_cnn.onnx: has no record in" in one_line(command("verify", folder, "--data", few), 2)
    assert states(folder)["fold"] == "altered" and states(folder)["half"] == "stale"


def test_a_look_with_other_options_does_not_replace_the_proof(folder, digits):
    before = (folder / "verification.json").read_bytes()
    np.savez(folder / "own.npz", images=digits.images[600:650], labels=digits.labels[600:650])
    result = command("verify", folder, "--data", folder / "own.npz", "--gate", "0")
    assert result.returncode == 0 and "--out" in result.stderr
    assert (folder / "verification.json").read_bytes() == before


def test_a_look_at_fewer_forms_does_not_replace_the_proof(folder):
    before = (folder / "verification.json").read_bytes()
    (folder / "mnist_cnn.safetensors").unlink()
    result = command("verify", folder)
    assert "without mnist_cnn.safetensors the result is only shown" in result.stderr
    assert (folder / "verification.json").read_bytes() == before


def test_a_release_without_its_checkpoint_is_fresh(folder):
    for name in ("mnist_cnn.safetensors", "mnist_cnn.unfolded.onnx", "latency.json", "verification.json"):
        (folder / name).unlink()
    assert [states(folder)[stage] for stage in ("train", "fold", "half")] == ["missing", "fresh", "fresh"]


def test_an_altered_file_can_be_made_again(folder, few):
    flip(folder / "mnist_cnn.onnx")
    assert command("fold", "--out", folder, "--data", few).returncode == 0
    assert states(folder)["fold"] == "fresh" and states(folder)["half"] == "fresh"


def test_an_altered_report_does_not_block_its_remaking(folder):
    flip(folder / "latency.json")
    flip(folder / "verification.json")
    assert command("bench", folder, "--quick", "--batch", "1", "--out", folder).returncode == 0
    assert states(folder)["bench"] == "fresh" and states(folder)["verify"] == "altered"


def test_an_altered_manifest_is_noticed_and_made_again(folder, few):
    flip(folder / manifest.FILE, 500)
    assert "altered" in one_line(command("status", folder), 1)
    again = run(folder, few)
    assert again.returncode == 0, again.stderr
    assert set(states(folder).values()) == {"fresh"}


def test_a_run_tells_of_a_manifest_that_cannot_be_read_before_it_makes_anything(folder):
    (folder / manifest.FILE).write_text("[")
    told, error = command("run", "--out", folder, "--batch", "0").stderr.splitlines()
    assert f"{folder / manifest.FILE}: altered" in told and "stop now to restore it" in told
    assert "--batch" in error and (folder / manifest.FILE).read_text() == "["


def test_status_tells_of_what_no_stage_makes_by_itself(folder):
    form = folder / "mnist_cnn.onnx"
    manifest.write(folder / "mnist_cnn.fp32.onnx", form.read_bytes(), facts=manifest.read(form).facts)
    links = {link["file"]: link["state"] for link in json.loads(command("status", folder, "--json").stdout)}
    assert links["mnist_cnn.fp32.onnx"] == links["mnist_cnn.history.csv"] == "recorded"


def test_status_sees_an_altered_history(folder):
    flip(folder / "mnist_cnn.history.csv")
    assert "mnist_cnn.history.csv" in one_line(command("status", folder), 1)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--gate", "99.4"], "--gate: expected a share"),
        (["--opset", "17"], "--opset 17: expected 18"),
        (["--headroom", "0"], "--headroom 0: expected 1"),
        (["--batch", "0"], "expected --batch and --threads of at least 1"),
        (["--opt-batch", "0"], "1 <= --opt-batch <= --max-batch"),
        (
            ["--twice", "--runtime", "tensorrt-rtx", "--target", "sm1"],
            "--twice: compares two engines' answers on a GPU",
        ),
        (["--runtime", "tensorrt-rtx", "--target", "sm1"], "--target sm1: expected some of"),
    ],
)
def test_options_of_later_stages_are_refused_before_the_training(few, tmp_path, wrong, said):
    assert said in one_line(run(tmp_path / "out", few, *wrong), 2)
    assert not (tmp_path / "out").exists()


def test_each_graph_records_the_images_that_it_was_measured_on(chain):
    checkpoint = manifest.read(chain / "mnist_cnn.safetensors")
    train, test = checkpoint.parents, checkpoint.facts.reference.digests
    for name, images in ((".unfolded.onnx", test), (".onnx", test), (".fp16.onnx", train | test)):
        assert manifest.read(chain / f"mnist_cnn{name}").options["images"] == images


def test_status_of_no_folder_is_wrong_use(tmp_path):
    assert "no such folder" in one_line(command("status", tmp_path / "nothing"), 2)
    (tmp_path / "notes.txt").write_text("no chain")
    for more in ([], ["--json"], ["--model", "mnist_cnn"]):
        assert f"{tmp_path}: no chain: expected" in one_line(result := command("status", tmp_path, *more), 2)
        assert not result.stdout


STAGE = '''"""List the sizes of every form."""
from __future__ import annotations
from typing import Annotated
from pipeline.records import manifest
from pipeline.records.manifest import Artifact
from pipeline.records.reports import Picture
from pipeline.stages import OptionalOut
KIND, FILE = "picture", "sizes.txt"
def run(*forms: Artifact, out: OptionalOut = None, unit: Annotated[str, "A unit."] = "bytes") -> Artifact:
    """List the sizes."""
    text = "".join(f"{form.name} {form.bytes} {unit}\\n" for form in forms).encode()
    path = out / FILE if out else None
    return manifest.write(path, text, facts=Picture(), parents=forms, options={"unit": unit})
'''
RUNTIME = '''"""Answers zero to everything."""
import numpy as np
from pipeline.runtimes import session
READS, PACKAGES, TIMED = {"folded": ("",)}, (), False
class Session(session.Session):
    arithmetic = "none"
    def __call__(self, images): return np.zeros((len(images), 10), np.float32)
def load(artifact, *, mode="", threads=None): return Session()
'''


@pytest.mark.exhaustive
def test_a_stage_and_a_runtime_are_a_file_and_a_line_each(tmp_path, chain, few):
    """Added to a copy of the sources, as docs/development has it; a model is a file alone."""
    shutil.copytree(ROOT / "pipeline", tmp_path / "pipeline")
    shutil.copytree(ROOT / "models", tmp_path / "models")
    (tmp_path / "pipeline/stages/sizes.py").write_text(STAGE)
    (tmp_path / "pipeline/runtimes/zero.py").write_text(RUNTIME)
    for name, old, new in (
        ("stages/__init__.py", '"verify", "bench")', '"sizes", "verify", "bench")'),
        ("runtimes/__init__.py", "pytorch, tensorrt", "pytorch, tensorrt, zero"),
        ("commands.py", '        Command("verify",',
         '        Command("sizes", "pipeline.stages.sizes", "Sizes.", "pipeline sizes"),\n        Command("verify",'),
    ):  # fmt: skip
        text = (tmp_path / "pipeline" / name).read_text()
        assert old in text, name
        (tmp_path / "pipeline" / name).write_text(text.replace(old, new))
    shutil.copy(tmp_path / "models/mnist_cnn.py", tmp_path / "models/other.py")

    def pipeline(*words: object) -> subprocess.CompletedProcess[str]:
        return process(*words, cwd=tmp_path, PYTHONPATH=str(tmp_path))

    assert "A unit." in pipeline("sizes", "-h").stdout and "--unit" in pipeline("run", "-h").stdout
    assert "other" in pipeline("models").stdout
    assert "zero: none" in one_line(pipeline("verify", chain / "mnist_cnn.onnx", "--data", few), 1)
    assert pipeline("sizes", chain / "mnist_cnn.onnx", "--out", tmp_path).returncode == 0
    assert (tmp_path / "sizes.txt").read_text().startswith("mnist_cnn.onnx ")
    assert "sizes" in {link["stage"] for link in json.loads(pipeline("status", chain, "--json").stdout)}
    train = pipeline("train", "other", "--limit", "500", "--epochs", "1", "--data", few, "--out", tmp_path / "new")
    assert train.returncode == 0 and (tmp_path / "new/other.safetensors").is_file(), train.stderr


def test_the_chain_is_ordered_by_its_stages():
    assert stages.names() == ("train", "export", "fold", "half", "quantize", "certify", "build", "verify", "bench")
    assert chains.inputs(stages.get("half")) == ["folded"] and chains.inputs(stages.get("verify")) == ["*"]
    assert set(stages.names()) < set(commands.COMMANDS)


def test_a_folder_is_held_by_one_at_a_time(tmp_path, capsys):
    """The second waits, says so, and goes on; what was made for the lock alone is gone again."""
    folder, order = tmp_path / "new" / "artifacts", []

    def second() -> None:
        with disk.held(folder):
            order.append("second")

    with disk.held(folder):
        other = threading.Thread(target=second)
        other.start()
        while "waiting until it is done" not in capsys.readouterr().err:
            time.sleep(0.01)
        order.append("first")
    other.join(timeout=10)
    assert order == ["first", "second"] and not list(tmp_path.iterdir())


def test_other_training_images_make_the_checkpoint_stale(folder, few, tmp_path):
    with np.load(few) as file:
        arrays = {**file, "train_labels": np.roll(file["train_labels"], 1)}
    np.savez(tmp_path / "other.npz", **arrays)
    train, path = stages.get("train"), folder / "mnist_cnn.safetensors"
    for data, fresh in ((few, True), (tmp_path / "other.npz", False)):
        chosen = {**stages.options(train), "data": str(data), "epochs": 2, "batch_size": 32, "train_threads": 1}
        assert bool(chains._on_record(train, path, "mnist_cnn", ["mnist_cnn"], chosen)) is fresh
