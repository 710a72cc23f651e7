"""The committed files: verified again from their bytes, with no training."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from pipeline.records import kinds, manifest
from pipeline.training import labels, models
from tests.support import command

FILES = ["mnist_cnn.onnx", "mnist_cnn.fp16.onnx"]


@pytest.mark.parametrize("name", FILES)
def test_it_reaches_the_gate_again(release, name):
    result = command("verify", release / name, "--data", "mnist", "--json")
    assert result.returncode == 0, result.stderr
    recorded = {(row.form, row.arithmetic): row for row in manifest.read(release / "verification.json").facts.rows}
    for row in json.loads(result.stdout)["facts"]["rows"]:
        assert row["accuracy"] >= 0.9940 and row["differ"] <= (5 if "fp16" in name else 0)
        before = recorded[row["form"], row["arithmetic"]]
        assert row["sha256"] == before.sha256
        assert abs(row["correct"] - before.correct) <= 2  # another processor may sum in another order


def test_it_is_small_and_its_chain_holds(release):
    onnx, half = (manifest.read(release / name) for name in FILES)
    assert onnx.bytes <= 42_000 and half.bytes <= 24_000
    assert half.parents == {"mnist_cnn.onnx": onnx.sha256}
    verification = manifest.read(release / "verification.json")
    assert verification.parents[half.name] == half.sha256 and verification.facts.passed
    unfolded, checkpoint = (manifest.recall(release / f"mnist_cnn{end}") for end in (".unfolded.onnx", ".safetensors"))
    assert onnx.parents == {unfolded.name: unfolded.sha256}
    assert unfolded.parents == {checkpoint.name: checkpoint.sha256}
    int8 = manifest.read(release / "mnist_cnn.int8.onnx")
    assert int8.bytes <= 20_000 and int8.parents == half.parents and int8.facts.failed == []


def test_it_was_made_with_the_default_recipe(release):
    history = manifest.read(release / "mnist_cnn.history.csv")
    checkpoint = manifest.recall(release / "mnist_cnn.safetensors")
    assert history.parents == {"mnist_cnn.safetensors": checkpoint.sha256}
    expected = asdict(models.get("mnist_cnn").recipes["default"])
    expected |= {"model": "mnist_cnn", "seed": 0, "limit": None, "hold_out": 0}
    expected["labels"] = manifest.read(labels.beside("mnist_cnn")).sha256
    assert expected.items() <= history.options.items()


@pytest.mark.parametrize("name", ["default", "best", "default-hard", "best-hard"])
def test_the_studies_are_of_the_recipes_as_they_are(release, name):
    study = manifest.read(release / f"study-{name}.json")
    facts = json.loads((release / f"study-{name}.json").read_text())
    recipe, _, hard = name.partition("-")
    expected = {**asdict(models.get("mnist_cnn").recipes[recipe]), "limit": None, "hold_out": 0}
    if hard:  # made before there was a teacher
        expected = {each: value for each, value in expected.items() if each not in ("teacher_weight", "temperature")}
    else:
        expected["labels"] = manifest.read(labels.beside("mnist_cnn")).sha256
    assert expected.items() <= facts["numbers"].items() and facts == kinds.plain(study.facts)
    assert len(facts["accuracies"]) >= 10 and facts["n"] == 10_000
    assert facts["mean"] == pytest.approx(sum(facts["accuracies"]) / len(facts["accuracies"]))
