from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data import idx
from pipeline.records import manifest
from tests.support import DATA, command, one_line, process


@pytest.fixture(scope="module")
def folders(digits, tmp_path_factory) -> Path:
    """The 10,000 test images as PNG files in folders named by label."""
    out = tmp_path_factory.mktemp("png")
    for label in range(10):
        (out / str(label)).mkdir()
    for index, (image, label) in enumerate(zip(digits.images[:, 0], digits.labels, strict=True)):
        Image.fromarray(image).save(out / str(label) / f"{index}.png", compress_level=1)
    return out


@pytest.fixture
def two(digits) -> Image.Image:
    """A picture of a 2."""
    return Image.fromarray(digits.images[1, 0])


@pytest.mark.exhaustive
@pytest.mark.parametrize("options", [[], ["--as-is"]])
def test_the_test_set_as_pictures_gives_the_accuracy_of_verify(folders, release, options):
    file = release / "mnist_cnn.onnx"
    result = command("predict", folders, "--model", file, "--json", *options)
    assert result.returncode == 0, result.stderr
    facts = json.loads(result.stdout)["facts"]
    (row,) = (row for row in manifest.read(release / "verification.json").facts.rows if row.form == file.name)
    assert (facts["correct"], facts["labelled"]) == (row.correct, 10_000) and facts["accuracy"] == row.accuracy
    wrong = {
        Path(each["image"]).stem: each["prediction"] for each in facts["rows"] if each["prediction"] != each["label"]
    }
    assert wrong == {index: str(label) for index, label in row.wrong.items()}  # the very images, the very answers
    assert abs(sum(facts["rows"][0]["probabilities"].values()) - 1) < 1e-4


def test_idx_files_take_their_labels_from_beside(release):
    file = DATA / "MNIST/raw/t10k-images-idx3-ubyte"
    result = command("predict", file, "--model", release / "mnist_cnn.fp16.onnx")
    rows = manifest.read(release / "verification.json").facts.rows
    row = next(row for row in rows if row.form == "mnist_cnn.fp16.onnx" and row.runtime == "onnxruntime")
    interval = " – ".join(f"{bound:.2%}" for bound in row.interval)
    told = f"accuracy {row.accuracy:.2%} ({row.correct:,} of 10,000 with a label), 95 % interval {interval}"
    assert told in result.stdout and "those that are wrong or doubtful" in result.stdout
    answers = json.loads(command("predict", file, "--model", release / "mnist_cnn.fp16.onnx", "--json").stdout)
    listed = [each for each in answers["facts"]["rows"] if each["remark"] or each["prediction"] != each["label"]]
    assert f"and {len(listed) - 40} more; --json has them all" in result.stdout and len(listed) < 500
    assert result.stdout.count("ubyte[") == 40 and "unsure" in result.stdout


@pytest.mark.parametrize("threads", [0, -3])
def test_threads_below_one_are_refused(two, tmp_path, release, threads):
    two.save(tmp_path / "2.png")
    line = ["predict", tmp_path / "2.png", "--model", release / "mnist_cnn.onnx", "--threads", threads]
    assert f"--threads: expected 1 or more, received {threads}" in one_line(command(*line), 2)


def test_a_picture_of_ones_own(tmp_path, two, release):
    Image.eval(two, lambda value: 255 - value).resize((300, 300)).save(tmp_path / "mine.jpg")
    line = ["predict", tmp_path / "mine.jpg", "--model", release / "mnist_cnn.onnx"]
    result = command(*line)
    assert result.returncode == 0 and "mine.jpg" in result.stdout and "accuracy" not in result.stdout
    (row,) = json.loads(command(*line, "--json").stdout)["facts"]["rows"]
    assert row["prediction"] == "2" and row["label"] is None


def test_wrong_use_is_one_line(tmp_path, release):
    (tmp_path / "cat.png").write_text("meow")
    model = ["--model", release / "mnist_cnn.onnx"]
    assert "cat.png: expected a picture" in one_line(command("predict", tmp_path / "cat.png", *model), 2)
    assert "no such file" in one_line(command("predict", tmp_path / "dog.png", *model), 2)
    assert "Missing argument" in one_line(command("predict", *model), 2)
    assert "no such file" in one_line(command("predict", tmp_path, "--model", "none.onnx"), 2)
    for shape in ([0, 28, 28], [1, 0, 28], [2, 28]):
        (tmp_path / "x-idx3-ubyte").write_bytes(idx.file(np.zeros(shape, np.uint8)))
        error = one_line(command("predict", tmp_path / "x-idx3-ubyte", *model), 2)
        assert "expected images [n, height, width]" in error


def test_what_is_no_file_is_passed_over_and_any_name_is_shown(tmp_path, two, release):
    two.save(tmp_path / os.fsdecode(b"\xff.png"))
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "a-idx3-ubyte").mkdir()
    result = process("predict", tmp_path, "--model", release / "mnist_cnn.onnx", PYTHONIOENCODING="utf-8:strict")
    assert result.returncode == 0 and "udcff.png" in result.stdout, result.stderr


def test_one_bad_picture_costs_none_of_the_others(tmp_path, two, release):
    two.save(tmp_path / "good.png")
    Image.new("L", (300, 300), "white").save(tmp_path / "empty.png")
    (tmp_path / "cat.png").write_text("meow")
    result = command("predict", tmp_path, "--model", release / "mnist_cnn.onnx")
    assert "cat.png: expected a picture" in one_line(result, 1)
    assert "good.png" in result.stdout and "no digit found" in result.stdout
