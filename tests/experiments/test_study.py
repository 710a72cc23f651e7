from __future__ import annotations

import json

import pytest

from pipeline.measure import statistics
from pipeline.records import disk, kinds, manifest
from tests.support import command, one_line

SHORT = ["--limit", "640", "--change", "epochs=2", "--change", "batch_size=64"]


@pytest.fixture(scope="module")
def study(few, tmp_path_factory):
    out = tmp_path_factory.mktemp("study")
    result = command("study", "--data", few, "--out", out, "--seeds", "2", "--workers", "2", *SHORT)
    assert result.returncode == 0, result.stderr
    return out, result


def test_it_prints_and_keeps_what_the_seeds_gave(study):
    out, result = study
    made = manifest.read(out / "study-default.json")
    facts = json.loads(made.path.read_text())
    assert facts == kinds.plain(made.facts) and len(facts["accuracies"]) == 2
    for seed, accuracy in enumerate(facts["accuracies"]):
        checkpoint = manifest.read(out / "study-default" / str(seed) / "mnist_cnn.safetensors")
        assert checkpoint.options["seed"] == seed and 100 * checkpoint.facts.test_accuracy == pytest.approx(accuracy)
        assert checkpoint.sha256 == facts["checkpoints"][seed] and checkpoint.options["epochs"] == 2
    assert facts["accuracies"][0] != facts["accuracies"][1]
    assert facts["numbers"]["limit"] == 640 and facts["recipe"] == "default" and facts["machine"]["cores"]
    assert facts["versions"]["torch"] and made.parents
    mean, first = f"mean {facts['mean']:.3f} %", f"{facts['accuracies'][0]:.2f} %"
    assert all(text in result.stdout for text in (mean, first, "standard deviation", "reach 99.40%"))
    assert "mnist_cnn.labels.safetensors: labels of other images: not used" in result.stderr
    assert facts["numbers"]["labels"] == "hard"


@pytest.mark.exhaustive
def test_it_goes_on_where_it_was_and_trains_again_what_was_altered(study, few):
    out, _ = study
    line = ["study", "--data", few, "--out", out, "--workers", "2", *SHORT]
    first = out / "study-default" / "0" / "mnist_cnn.safetensors"
    before, other = first.stat().st_mtime_ns, out / "study-default" / "1" / "mnist_cnn.safetensors"
    other.write_bytes(b"altered")
    result = command(*line, "--seeds", "3")
    assert result.returncode == 0, result.stderr
    assert "1 of 3 seeds are on record" in result.stderr and first.stat().st_mtime_ns == before
    assert "seed 1 is trained again: " in result.stderr and "altered: expected sha256" in result.stderr
    assert "seed 0:" not in result.stderr and "seed 1:" in result.stderr and "seed 2:" in result.stderr
    again = json.loads((out / "study-default.json").read_text())
    assert len(again["accuracies"]) == 3 and again["checkpoints"][1] == disk.digest(other)
    error = one_line(command(*line, "--change", "lr=0.01"), 2)
    assert "belongs to a study with lr 0.04: expected 0.01" in error


def test_a_seed_that_fails_ends_the_study_and_the_other_trainings(few, tmp_path):
    (tmp_path / "study-default").mkdir()
    (tmp_path / "study-default" / "1").write_text("in the way")
    line = ["study", "--data", few, "--out", tmp_path, "--seeds", "2", "--workers", "2", "--change", "epochs=60000"]
    assert "seed 1: its training ended with exit code" in one_line(command(*line), 1)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--recipe", "worst"], "expected one of default, best"),
        (["--seeds", "0"], "--seeds: expected 1 to 65536"),
        (["--seeds", "65537"], "--seeds: expected 1 to 65536"),
        (["--workers", "0"], "--workers: expected 1 or more"),
        (["--change", "nothing=1"], "expected NAME=VALUE, with one of epochs"),
        (["--change", "epochs=x"], "expected int, received 'x'"),
        (["--change", "epochs=0"], "--epochs: expected 1"),
        (["--change", "schedule=cosine"], "--schedule: expected"),
    ],
)
def test_wrong_use_is_one_line_before_anything_is_trained(few, tmp_path, arguments, text):
    assert text in one_line(command("study", "--data", few, "--out", tmp_path, *arguments), 2)
    assert not list(tmp_path.iterdir())


def test_the_summary_is_the_textbooks():
    summary = statistics.summary([99.4, 99.5, 99.6])
    assert summary["mean"] == pytest.approx(99.5) and summary["deviation"] == pytest.approx(0.1)
    assert summary["mean_interval"] == pytest.approx([99.5 - 0.2484, 99.5 + 0.2484], abs=1e-3)  # t(2) = 4.303
    assert (summary["least"], summary["most"]) == (99.4, 99.6)
    assert statistics.summary([99.4])["deviation"] is None
