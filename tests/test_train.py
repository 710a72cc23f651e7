from __future__ import annotations

import csv
import json
import re
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT, command, one_line

from pipeline import artifact, dataset
from pipeline import snapshot as snapshots
from pipeline.errors import UsageError

OPTIONS = ["--epochs", "2", "--limit", "8000", "--step-size", "1", "--dropout", "0.05", "--seed", "3"]


def test_the_log_reads_as_the_seeds_does(chain):
    log = (chain / "run.log").read_text()
    assert re.search(
        r"Loss=\d\.\d+ Batch_id=468 Accuracy=\d\d\.\d\d: 100%\|.*\| 469/469 \[\d\d:\d\d<00:00, .*it/s\]", log
    )
    assert re.search(r"Test set: Average loss: 0\.\d{4}, Accuracy: \d{4}/10000 \(\d\d\.\d\d%\)", log)


def test_the_checkpoint_is_traced_to_the_pixels(chain, data):
    made = artifact.read(chain / "mnist_cnn.safetensors")
    assert made.parents == dataset.train(data).digests
    assert made.facts["parameters"] == 9596
    assert made.options["lr"] == 0.04 and made.options["epochs"] == 1 and made.options["seed"] == 0
    assert made.facts["reference"]["correct"] + len(made.facts["reference"]["wrong"]) == 10_000
    assert made.facts["test_accuracy"] > 0.95


def test_the_history_is_a_table(chain):
    (row,) = csv.DictReader((chain / "mnist_cnn.history.csv").open())
    assert row["epoch"] == "1" and float(row["lr"]) == 0.04 and float(row["test_accuracy"]) > 0.95
    assert artifact.read(chain / "mnist_cnn.history.csv").parents.keys() == {"mnist_cnn.safetensors"}


def killed_in_the_second_epoch(out, data) -> None:
    line = [sys.executable, "-m", "pipeline", "train", "--out", out, "--data", data, *OPTIONS]
    process = subprocess.Popen([str(word) for word in line], cwd=ROOT, stderr=subprocess.DEVNULL)
    snapshot = out / "mnist_cnn.training.safetensors"
    while not snapshot.exists():
        assert process.poll() is None, "ended before it could be killed"
        time.sleep(0.02)
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def test_killed_and_resumed_ends_with_the_same_bytes_as_undisturbed(data, tmp_path):
    """Dropout, augmentation, momentum and a learning-rate step between the two epochs all have to be carried over."""
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    killed.mkdir()
    killed_in_the_second_epoch(killed, data)
    assert [path.name for path in killed.iterdir()] == ["mnist_cnn.training.safetensors"]
    error = one_line(command("train", "--out", killed, "--data", data, *OPTIONS, "--resume", "--lr", "0.1"), 2)
    assert "was begun with lr 0.04: expected 0.1" in error
    resumed = command("train", "--out", killed, "--data", data, *OPTIONS, "--resume")
    assert (
        resumed.returncode == 0 and "resuming after epoch 1 of 2" in resumed.stderr and "epoch 1:" not in resumed.stderr
    )
    assert command("train", "--out", whole, "--data", data, *OPTIONS).returncode == 0
    one, other = (artifact.read(out / "mnist_cnn.safetensors") for out in (killed, whole))
    assert one.sha256 == other.sha256 and one.facts == other.facts
    rows = list(csv.DictReader((killed / "mnist_cnn.history.csv").open()))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert [float(row["lr"]) for row in rows] == pytest.approx([0.04, 0.004])
    assert not list(killed.glob("*training*"))


@pytest.mark.parametrize(
    "wrong",
    [
        ["--epochs", "0"],
        ["--epochs"],
        ["--lr", "-1"],
        ["--lr", "nan"],
        ["--rotation", "inf"],
        ["--seed", "281474976710656"],
        ["--seed", "-1"],
        ["--gamma", "x"],
        ["--dropout", "2"],
        ["--batch-size", "0"],
        ["--limit", "0"],
        ["--rotation", "-5"],
        ["--device", "tpu"],
        ["--schedule", "cosine"],
        ["--recipe", "worst"],
        ["--train-threads", "0"],
        ["--warmup", "2"],
        ["--no-such-option"],
    ],
)
def test_wrong_numbers_are_one_line(tmp_path, data, wrong):
    error = one_line(command("train", "--out", tmp_path, "--data", data, *wrong), 2)
    assert wrong[0] in error and not list(tmp_path.iterdir())


def test_a_damaged_snapshot_is_one_line(tmp_path, data):
    snapshot = tmp_path / "mnist_cnn.training.safetensors"
    for content in (b"", b"damaged", b"\xff" * 8 + b"{}", b"\x02\0\0\0\0\0\0\0{}"):
        snapshot.write_bytes(content)
        with pytest.raises(UsageError, match="is no training to resume"):
            snapshots.resume(snapshot, {}, None)
    one_line(command("train", "--out", tmp_path, "--data", data, "--epochs", "1", "--resume"), 2)


def test_show_tells_what_is_on_record(chain):
    shown = json.loads(command("show", chain / "mnist_cnn.safetensors").stdout)
    assert shown["kind"] == "checkpoint" and shown["versions"]["torch"]


def test_held_out_images_are_neither_trained_on_nor_tests(data, tmp_path):
    line = ["--hold-out", "10000", "--limit", "3000", "--epochs", "1", "--out", tmp_path, "--data", data]
    result = command("train", *line)
    assert result.returncode == 0 and re.search(r"Held-out set: .* \d+/10000", result.stderr)
    made = artifact.read(tmp_path / "mnist_cnn.safetensors")
    assert made.facts["reference"]["name"] == "10000 held-out images, MNIST training set"
    train, held = dataset.split(data, 10_000, None)
    assert len(train) == 50_000 and len(held) == 10_000 and held.digests == {}
    both = {image.tobytes() for image in train.images} & {image.tobytes() for image in held.images}
    assert len(both) < 10  # MNIST has hardly an image twice
