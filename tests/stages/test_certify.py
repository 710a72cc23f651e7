from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from pipeline.errors import UsageError
from pipeline.graph import certificate, proof, rounding
from pipeline.records import manifest
from pipeline.stages import certify, verify
from tests.support import command, flip, one_line


@pytest.fixture
def half(chain, tmp_path) -> manifest.Artifact:
    """The chain's float16 file in a folder of its own."""
    made = manifest.read(chain / "mnist_cnn.fp16.onnx")
    return manifest.write(tmp_path / made.name, made.path.read_bytes(), facts=made.facts, parents=made.parents)


@pytest.fixture
def some(few, tmp_path) -> str:
    with np.load(few) as file:
        np.savez(tmp_path / "some.npz", **{name: values[:60] for name, values in file.items()})
    return str(tmp_path / "some.npz")


def test_both_executions_are_certified_unless_one_is_named(half, some, tmp_path):
    made = certify.run(half, out=tmp_path, data=some)
    rows = {row.execution: row for row in made.facts.rows}
    assert list(rows) == ["A1", "A"] and made.facts.data.images == 60 and made.facts.unknown == []
    for name, row in rows.items():
        assert row.certified >= row.right and row.certified + len(made.facts.undecided[name]) == row.images
        assert row.at_least == row.right / 60 <= row.at_most
    assert rows["A"].certified <= rows["A1"].certified and rows["A"].median > rows["A1"].median


def test_the_chain_has_a_certificate_and_verify_tells_it(chain):
    made = manifest.read(chain / "mnist_cnn.certificate.json")
    (proven,) = made.facts.rows
    assert proven.images == made.facts.data.images == 500 and proven.at_least > 0.8
    proof = manifest.read(chain / "verification.json")
    assert proof.facts.certified == made.facts.rows and proof.options["certificates"] == {made.name: made.sha256}
    for row in (row for row in proof.facts.rows if row.kind == "half"):
        assert proven.at_least <= row.accuracy <= proven.at_most


def test_it_is_not_done_again_for_the_same_file_and_images(half, some, tmp_path, monkeypatch):
    made = certify.run(half, out=tmp_path, data=some, executions="A1")
    monkeypatch.setattr(certificate, "certify", None)
    assert certify.run(half, out=tmp_path, data=some, executions="A1").sha256 == made.sha256
    assert certify.run(half, out=tmp_path / "elsewhere", data=some, executions="A1").path == made.path
    with pytest.raises(TypeError):
        certify.run(half, out=tmp_path, data=some, executions="A")
    flip(made.path, 20)
    with pytest.raises(TypeError):
        certify.run(half, out=tmp_path, data=some, executions="A1")


def test_an_interrupted_one_goes_on(half, some, tmp_path, monkeypatch, capsys):
    whole = certify.run(half, out=tmp_path / "whole", data=some, executions="A1")
    real, seen = certificate.certify, []

    def once(graph, images, execution):
        seen.append(len(images))
        if len(seen) == 3:
            raise KeyboardInterrupt
        return real(graph, images, execution)

    monkeypatch.setattr(certificate, "certify", once)
    ended = command("certify", half.path, "--out", tmp_path, "--data", some, "--executions", "A1")
    assert "run the same command again to continue" in one_line(ended, 130)
    (partial,) = tmp_path.glob(".*.partial")
    shutil.copy(partial, tmp_path / "kept")
    altered = bytearray(partial.read_bytes())
    altered[-1] ^= 1  # an array's byte: nothing in the format would notice
    again = certify.run(half, out=tmp_path, data=some, executions="A1")
    assert seen == [2, 18, 40, 40] and not partial.exists() and "going on from it" in capsys.readouterr().err
    row, other = (each.facts.rows[0] for each in (again, whole))
    assert (row.certified, row.right, row.median) == (other.certified, other.right, other.median)
    for content in (
        (tmp_path / "kept").read_bytes(),
        b"no safetensors",
        bytes(altered),
    ):  # of other executions, and damaged
        partial.write_bytes(content)
        certify.run(half, out=tmp_path, data=some, executions="A1-float16-averages")
        assert "of another certification: replaced" in capsys.readouterr().err
        (tmp_path / certify.FILE.format(model="mnist_cnn")).unlink()


def test_one_that_certifies_nothing_ends_after_a_few_images(half, some, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(rounding, "PER_TERM", 30_000)
    (row,) = certify.run(half, out=tmp_path, data=some, executions="A1").facts.rows
    assert (row.images, row.certified, row.at_least, row.at_most) == (20, 0, 0, 1)
    assert "none of 20 images" in capsys.readouterr().err
    assert verify.run(half, data=some, gate=0).facts.certified == [], "of 20 images and nothing, nothing is told"


def test_bounds_that_are_no_numbers_are_none(half, some, tmp_path, monkeypatch):
    """As of a deep network, whose radii grow beyond any number."""
    real = certificate.certify

    def beyond(*given, **options):
        found = real(*given, **options)
        return replace(found, certified=found.certified & False, bounds=found.bounds * np.inf)

    monkeypatch.setattr(certificate, "certify", beyond)
    result = command("certify", half.path, "--data", some, "--out", tmp_path, "--executions", "A1")
    assert result.returncode == 0, result.stderr
    assert "0 of 20, 40 left out" in result.stdout and result.stdout.count("1e+300") == 2


def test_operators_that_are_not_covered_are_named_and_no_failure(half, some, tmp_path):
    model = onnx.load(half.path)
    for node in model.graph.node:
        if node.op_type == "Relu":
            node.op_type = "HardSwish"
    strange = manifest.write(half.path, model.SerializeToString(), facts=half.facts, parents=half.parents)
    result = command("certify", strange.path, "--data", some, "--out", tmp_path)
    assert result.returncode == 0 and "not certified: HardSwish" in result.stdout
    assert manifest.read(tmp_path / "mnist_cnn.certificate.json").facts.rows == []


def test_a_certificate_of_another_file_or_other_images_is_not_told(half, some, few, tmp_path):
    certify.run(half, out=tmp_path, data=some, executions="A1")
    assert len(verify.run(half, data=some, gate=0).facts.certified) == 1
    assert verify.run(half, data=str(few), gate=0).facts.certified == []
    other = manifest.write(half.path, half.path.read_bytes() + b"\x7a\x00", facts=half.facts, parents=half.parents)
    assert verify.run(other, data=some, gate=0).facts.certified == []


def test_the_executions_are_those_that_are_defined():
    assert tuple(rounding.EXECUTIONS) == certify.EXECUTIONS


def test_the_table(half, some, tmp_path):
    result = command("certify", half.path, "--data", some, "--out", tmp_path)
    assert result.returncode == 0, result.stderr
    for words in ("execution", "certified", "and right", "accuracy at least", "bound, median", "A1", " of 60"):
        assert words in result.stdout
    assert "A1: 60 images in " in result.stderr
    as_json = json.loads(command("certify", half.path, "--data", some, "--out", tmp_path, "--json").stdout)
    assert "A1" in json.dumps(as_json)


@pytest.mark.parametrize("executions", ["B", "A1,A1", "A1,"])
def test_executions_that_are_not_known_are_refused(chain, tmp_path, executions):
    words = ["certify", chain / "mnist_cnn.fp16.onnx", "--out", tmp_path, "--executions", executions]
    assert "expected some of A1,A,A1-float16-averages" in one_line(command(*words), 2)
    with pytest.raises(UsageError):
        certify.expect(executions=executions, certify_minutes=30)
    assert Path(tmp_path).is_dir()


def test_one_that_takes_too_long_is_left_out_after_the_first_images(half, some, tmp_path, capsys):
    (row,) = certify.run(half, out=tmp_path, data=some, executions="A1", certify_minutes=1e-9).facts.rows
    assert (row.images, row.at_least) == (proof.FIRST, row.right / 60)
    assert "A1: left out after 2 images: all 60 would take " in capsys.readouterr().err
    assert verify.run(half, data=some, gate=0).facts.certified == []
    shown = command("show", tmp_path / "mnist_cnn.certificate.json")
    assert re.search(r"2 of 2, 58 left out +\d +– +–", shown.stdout), "shares of two images tell nothing"
    words = ["certify", half.path, "--data", some, "--out", tmp_path, "--executions", "A1"]
    on = command(*words, "--certify-minutes", "inf")
    assert on.returncode == 0 and "going on from it" in on.stderr and "left out" not in on.stdout
    made = manifest.read(tmp_path / "mnist_cnn.certificate.json")
    assert made.facts.rows[0].images == 60 and verify.run(half, data=some, gate=0).facts.certified == made.facts.rows
    assert command(*words, "--certify-minutes", "0.001").returncode == 0, "of a whole one, the minutes don't matter"
    assert manifest.read(made.path).sha256 == made.sha256 and not list(tmp_path.glob(".*.partial"))


@pytest.mark.parametrize(
    ("images", "seconds", "cores", "minutes", "then"),
    [
        (10_000, [], 2, 30, 2),
        (10_000, [1.0], 2, 30, 18),  # warming up: 42 minutes on two cores, if it were for all
        (10_000, [8.0], 2, 30, 0),
        (10_000, [1.0, 3.0], 2, 30, 500),  # 17 minutes on two cores
        (10_000, [1.0, 9.0], 2, 30, 0),  # 42 minutes
        (10_000, [7.0, 6.0], 2, 30, 500),  # 28 minutes: without the first two, which warm up
        (10_000, [1.0, 9.0], 4, 30, 500),  # 21 minutes on four
        (70, [400.0], 64, 30, 0),  # the first twenty alone take over an hour
        (70, [4.0, 36.0], 2, 30, 50),
        (12, [1.0], 2, 30, 10),
        (12, [1.0, 5.0], 2, 30, 0),  # done
    ],
)
def test_whether_all_fit_into_the_time_is_judged_by_the_first(images, seconds, cores, minutes, then, monkeypatch):
    """By images of one core, over the cores there are; later chunks, such as the third here, aren't judged."""
    monkeypatch.setattr(proof.host, "cores", lambda: cores)
    asked = proof.Proof([], np.zeros((images, 1)), Path("none"), {})
    n = [0, 2, min(20, images)][len(seconds)]
    part = {"answers": np.zeros(n), "certified": np.ones(n, bool), "seconds": np.array(seconds)}
    assert asked._next("A1", part if n else None, minutes) == then
    begun = {"answers": np.zeros(520), "certified": np.ones(520, bool), "seconds": np.array([1e9])}
    assert images < 1000 or asked._next("A1", begun, minutes) == 500


@pytest.mark.parametrize("minutes", ["0", "-1", "nan"])
def test_no_time_at_all_is_refused(chain, tmp_path, minutes):
    words = ["certify", chain / "mnist_cnn.fp16.onnx", "--out", tmp_path, "--certify-minutes", minutes]
    assert "expected more than 0" in one_line(command(*words), 2)
