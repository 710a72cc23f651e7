from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, SMALL, command, flip, one_line

from pipeline import artifact, dataset, lock, lookup, runtimes, stages
from pipeline import chain as chains


def states(folder: Path) -> dict[str, str]:
    return {
        link["stage"] or link["file"]: link["state"] for link in json.loads(command("status", folder, "--json").stdout)
    }


def run(folder: Path, data: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return command("run", "--data", data, "--out", folder, *SMALL, *more)


def test_a_second_run_does_no_work_and_says_so(folder, data):
    times = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    again = run(folder, data)
    assert again.returncode == 0 and "nothing to do" in again.stderr
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == times
    assert "passed: gate 90.00%" in again.stdout.splitlines()[-1]


def test_the_verification_is_printed_last(chain):
    log = (chain / "run.log").read_text()
    assert log.rindex("p99.9") < log.rindex("McNemar") and log.rstrip().endswith("passed: gate 90.00%")


def made(result: subprocess.CompletedProcess[str]) -> list[str]:
    """The stages that a run did, not those it skipped."""
    return [line.split()[0] for line in result.stderr.splitlines() if " made: " in line]


def test_only_what_an_option_touches_is_done_again_and_what_failed_is_not_skipped(folder, data):
    again = run(folder, data, "--gate", "0.9999")
    assert made(again) == ["verify"]
    assert "mnist_cnn.fp16.onnx" in one_line(again, 1) and "FAILED" in again.stdout
    assert set(states(folder).values()) == {"fresh"}
    for name, asked in (("verify", {"data": data, "gate": 0.9999}), ("export", {"opset": 20})):
        stage = stages.get(name)
        given = lookup.forms(folder) if name == "verify" else lookup.forms(folder)[1:2]
        path = folder / stage.FILE.format(model="mnist_cnn")
        assert chains._on_record(stage, path, given, asked) is None
    assert chains._on_record(stage, path, given, {"opset": 18}) is not None


def test_the_same_seed_gives_the_same_bytes_and_what_comes_after_is_run(folder, chain, data):
    """As on a fresh clone: the checkpoint isn't shipped, but the verification of the same bytes is."""
    (folder / "mnist_cnn.safetensors").unlink()
    again = run(folder, data)
    assert again.returncode == 0 and made(again) == stages.names()
    for name in ("mnist_cnn.safetensors", "mnist_cnn.folded.safetensors", "mnist_cnn.onnx", "mnist_cnn.fp16.onnx"):
        assert artifact.digest(folder / name) == artifact.digest(chain / name)
        assert (folder / f"{name}.json").read_bytes() == (chain / f"{name}.json").read_bytes()
    for name in ("mnist_cnn.history.csv", "verification.json"):
        assert artifact.digest(folder / name) == artifact.digest(chain / name)


def test_status_tells_fresh_stale_missing_and_altered(folder):
    assert set(states(folder).values()) == {"fresh"}
    (folder / "latency.json").unlink()
    assert states(folder)["bench"] == "missing"
    (folder / "verification.json.json").unlink()
    assert states(folder)["verify"] == "altered"
    other = folder / "mnist_cnn.onnx"
    parent = artifact.read(other)
    artifact.write(other, other.read_bytes() + b"\0", kind="onnx", parents=parent.parents, facts=parent.facts)
    assert states(folder)["export"] == "fresh" and states(folder)["half"] == "stale"
    flip(folder / "mnist_cnn.folded.safetensors")
    found = states(folder)
    assert found["fold"] == "altered" and found["export"] == "stale" and found["train"] == "fresh"
    error = one_line(command("status", folder), 1)
    assert "mnist_cnn.folded.safetensors" in error and "expected sha256" in error


def test_a_form_without_its_record_is_not_passed_over(folder, data):
    (folder / "mnist_cnn.onnx.json").unlink()
    assert "mnist_cnn.onnx.json is not beside it" in one_line(command("verify", folder, "--data", data), 2)
    assert states(folder)["export"] == "altered" and states(folder)["half"] == "stale"


def test_a_look_with_other_options_does_not_replace_the_proof(folder, data):
    before = (folder / "verification.json").read_bytes()
    np.savez(folder / "own.npz", images=dataset.test(data).images[:50], labels=dataset.test(data).labels[:50])
    result = command("verify", folder, "--data", folder / "own.npz", "--gate", "0")
    assert result.returncode == 0 and "--out" in result.stderr
    assert (folder / "verification.json").read_bytes() == before


def test_a_release_without_its_checkpoint_is_fresh(folder):
    for name in ("mnist_cnn.safetensors", "mnist_cnn.folded.safetensors", "latency.json", "verification.json"):
        (folder / name).unlink()
    assert [states(folder)[stage] for stage in ("train", "export", "half")] == ["missing", "fresh", "fresh"]


def test_an_altered_file_can_be_made_again(folder, data):
    flip(folder / "mnist_cnn.folded.safetensors")
    flip(folder / "latency.json.json")
    assert command("fold", "--out", folder, "--data", data).returncode == 0
    assert states(folder)["fold"] == "fresh" and states(folder)["export"] == "fresh"


def test_an_altered_report_does_not_block_its_remaking(folder, data):
    flip(folder / "latency.json")
    flip(folder / "verification.json")
    assert command("bench", folder, "--quick", "--batch", "1", "--out", folder).returncode == 0
    assert states(folder)["bench"] == "fresh" and states(folder)["verify"] == "altered"


def test_status_sees_an_altered_history(folder):
    flip(folder / "mnist_cnn.history.csv")
    assert "mnist_cnn.history.csv" in one_line(command("status", folder), 1)


def test_status_of_no_folder_is_wrong_use(tmp_path):
    assert "no such folder" in one_line(command("status", tmp_path / "nothing"), 2)


STAGE = '''"""Every form in, a list of their sizes out."""
from __future__ import annotations
import json
from typing import Annotated
from pipeline import artifact
from pipeline.artifact import Artifact
from pipeline.stages import OptionalOut
ORDER = 55
KIND, FILE = "sizes", "sizes.json"
def run(*forms: Artifact, out: OptionalOut = None, unit: Annotated[str, "A unit."] = "bytes") -> Artifact:
    """List the sizes."""
    text = json.dumps({form.name: form.bytes for form in forms}).encode()
    return artifact.write(out / FILE if out else None, text, kind=KIND, parents=forms, options={"unit": unit})
'''
RUNTIME = '''"""Answers zero to everything."""
import numpy as np
READS, PACKAGES = {"onnx": ("",)}, ()
class Session:
    arithmetic = "none"
    def __enter__(self): return self
    def __exit__(self, *_): pass
    def __call__(self, images): return np.zeros((len(images), 10), np.float32)
def load(artifact, *, mode="", threads=None): return Session()
'''


def test_a_stage_a_runtime_and_a_model_are_one_file_each(tmp_path, chain, data):
    """Three files are added to a copy of the sources; nothing else is edited."""
    for package in ("pipeline", "models"):
        shutil.copytree(ROOT / package, tmp_path / package)
    (tmp_path / "pipeline/stages/sizes.py").write_text(STAGE)
    (tmp_path / "pipeline/runtimes/zero.py").write_text(RUNTIME)
    model = (ROOT / "models/mnist_cnn.py").read_text()
    (tmp_path / "models/other.py").write_text(model.replace("epochs: int = 15", "epochs: int = 1"))

    def pipeline(*words: object) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "pipeline", *map(str, words)]
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        return subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True)

    assert "A unit." in pipeline("sizes", "-h").stdout and "a list of their sizes out" in pipeline("-h").stdout
    assert "--unit" in pipeline("run", "-h").stdout
    assert "other" in pipeline("models").stdout and "9,596" in pipeline("show", "other").stdout
    result = pipeline("verify", chain / "mnist_cnn.onnx", "--data", data)
    assert "zero: none" in one_line(result, 1)
    assert pipeline("sizes", chain / "mnist_cnn.onnx", "--out", tmp_path).returncode == 0
    assert json.loads((tmp_path / "sizes.json").read_text()) == {
        "mnist_cnn.onnx": (chain / "mnist_cnn.onnx").stat().st_size
    }
    assert "sizes" in {link["stage"] for link in json.loads(pipeline("status", chain, "--json").stdout)}
    train = pipeline("train", "other", "--limit", "500", "--data", data, "--out", tmp_path / "new")
    assert train.returncode == 0 and (tmp_path / "new/other.safetensors").is_file(), train.stderr


def test_the_chain_is_ordered_by_its_stages():
    assert stages.names() == ["train", "fold", "export", "half", "build", "verify", "bench"]
    for name in stages.names():
        stage = stages.get(name)
        assert {"run", "KIND", "FILE", "ORDER"} <= vars(stage).keys()
        assert stages.summary(name) == stage.__doc__.splitlines()[0]
    assert chains.inputs(stages.get("half")) == ["onnx"] and chains.inputs(stages.get("verify")) == ["*"]


@pytest.mark.parametrize("name", runtimes.names())
def test_every_runtime_offers_the_same_verbs(name):
    runtime = runtimes.get(name)
    assert {"READS", "PACKAGES"} <= vars(runtime).keys()
    if runtime.READS:  # one that runs nothing yet only builds
        assert {"load", "Session"} <= vars(runtime).keys()
        assert {"__enter__", "__exit__", "__call__"} <= vars(runtime.Session).keys()


def test_a_folder_is_held_by_one_at_a_time(tmp_path, capsys):
    """The second waits, says so, and goes on; what was made for the lock alone is gone again."""
    folder, order = tmp_path / "new" / "artifacts", []

    def second() -> None:
        with lock.held(folder):
            order.append("second")

    with lock.held(folder):
        other = threading.Thread(target=second)
        other.start()
        while "waiting until it is done" not in capsys.readouterr().err:
            time.sleep(0.01)
        order.append("first")
    other.join(timeout=10)
    assert order == ["first", "second"] and not list(tmp_path.iterdir())
