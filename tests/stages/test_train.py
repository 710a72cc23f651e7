from __future__ import annotations

import csv
import json
import re
import signal
import subprocess
import time

import numpy as np
import pytest
import torch

from pipeline import stages
from pipeline.data import imagesets
from pipeline.errors import CheckFailed, PipelineError, UsageError
from pipeline.records import manifest
from pipeline.release import ship
from pipeline.stages import check, train
from pipeline.training import recipe
from pipeline.training import resume as snapshots
from pipeline.training.trainer import Trainer
from tests.support import DATA, DIGITS, command, flip, one_line, started

OPTIONS = ["--epochs", "2", "--limit", "2500", "--step-size", "1", "--seed", "3", "--train-threads", "1"]
HOW = {"device": "cpu", "precision": "float32", "train_threads": 1}


def test_the_log_reads_as_the_seeds_does(chain):
    log = (chain / "run.log").read_text()
    assert re.search(r"Loss=\d\.\d+ Batch_id=93 Accuracy=\d\d\.\d\d: 100%\|.*\| 94/94 \[\d\d:\d\d<00:00, .*it/s\]", log)
    assert re.search(r"Test set: Average loss: \d\.\d{4}, Accuracy: \d{3}/500 \(\d\d\.\d\d%\)", log)


def test_the_checkpoint_is_traced_to_the_pixels(chain, few):
    made = manifest.read(chain / "mnist_cnn.safetensors")
    assert made.parents == imagesets.load(str(few), "train", (1, 28, 28), DIGITS).digests
    assert made.facts.parameters == 9596 and made.versions["torch"]
    assert made.options["lr"] == 0.04 and made.options["epochs"] == 2 and made.options["seed"] == 0
    assert made.facts.reference.correct + len(made.facts.reference.wrong) == 500
    assert made.facts.test_accuracy > 0.85
    shown = json.loads(command("show", made.path, "--json").stdout)
    assert shown["kind"] == "checkpoint" and shown["options"] == made.options


def test_the_card_names_the_images_that_were_trained_on_and_a_release_no_path(few, tmp_path):
    data = tmp_path / "some.npz"
    data.write_bytes(few.read_bytes())
    made = train.run("mnist_cnn", out=tmp_path, data=str(data), epochs=1, limit=64, train_threads=1)
    assert made.facts.model.data == str(data) and stages.images(made, None).digests == made.facts.reference.digests
    assert ship._public(made).facts.model.data == "some.npz" and made.facts.reference.name == "some.npz"
    data.unlink()
    with pytest.raises(UsageError, match=r"some\.npz: no such file.*mnist_cnn.* names that set: give --data"):
        stages.images(made, None)


def test_mnist_is_called_so_wherever_it_was_found(digits, tmp_path):
    made = train.run("mnist_cnn", out=tmp_path, data=str(DATA), epochs=1, limit=64, train_threads=1)
    assert made.facts.model.data == "mnist"


def test_the_history_is_a_table(chain):
    row, _ = csv.DictReader((chain / "mnist_cnn.history.csv").open())
    assert row["epoch"] == "1" and float(row["lr"]) == 0.04 and float(row["test_accuracy"]) > 0.5


def test_a_checkpoint_on_record_has_its_own_curves(few, tmp_path, monkeypatch):
    """Killed between the two files: the history is there first, so training isn't done, and is done again."""

    def killed(**_):
        raise KeyboardInterrupt

    words = {"data": str(few), "epochs": 1, "limit": 640, "train_threads": 1}
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(train, "Checkpoint", killed)
        train.run("mnist_cnn", out=tmp_path, **words)
    history = manifest.read(tmp_path / "mnist_cnn.history.csv")
    assert [path.name for path in manifest.recorded(tmp_path)] == ["mnist_cnn.history.csv"]
    made = train.run("mnist_cnn", out=tmp_path, **words)
    assert manifest.read(tmp_path / "mnist_cnn.history.csv") == history
    assert history.parents == {made.name: made.sha256}


@pytest.mark.parametrize(
    "dropout",
    [
        pytest.param("0", id="oneDNN's step"),
        pytest.param("0.05", id="the general step", marks=pytest.mark.exhaustive),
    ],
)
def test_killed_and_resumed_ends_with_the_same_bytes_as_undisturbed(few, tmp_path, dropout):
    """Dropout, augmentation, momentum and a learning-rate step between the two epochs all have to be carried over."""
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    words = ["--data", few, *OPTIONS, "--dropout", dropout]
    process = started("train", "--out", killed, *words, stderr=subprocess.DEVNULL)
    while not (killed / "mnist_cnn.training.safetensors").exists():
        assert process.poll() is None, "ended before it could be killed"
        time.sleep(0.02)
    time.sleep(0.1)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert [path.name for path in killed.iterdir()] == ["mnist_cnn.training.safetensors"]
    error = one_line(command("train", "--out", killed, *words, "--resume", "--lr", "0.1"), 2)
    assert "was begun with lr 0.04: expected 0.1" in error
    resumed = command("train", "--out", killed, *words, "--resume")
    assert resumed.returncode == 0 and "resuming after epoch 1 of 2" in resumed.stderr
    assert "epoch 1:" not in resumed.stderr
    assert command("train", "--out", whole, *words).returncode == 0
    one, other = (manifest.read(out / "mnist_cnn.safetensors") for out in (killed, whole))
    assert one.sha256 == other.sha256 and one.facts == other.facts
    rows = list(csv.DictReader((killed / "mnist_cnn.history.csv").open()))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert [float(row["lr"]) for row in rows] == pytest.approx([0.04, 0.004])
    assert not list(killed.glob("*training*"))


@pytest.mark.parametrize(
    "wrong",
    [
        "--epochs 0",
        "--epochs 65536",
        "--lr -1",
        "--lr nan",
        "--rotation inf",
        "--rotation -5",
        "--seed 65536",  # would be seed 0 once more
        "--seed -1",
        "--gamma x",
        "--dropout 2",
        "--batch-size 0",
        "--limit 0",
        "--device tpu",
        "--schedule cosine",
        "--recipe worst",
        "--train-threads 0",
        "--gamma 0.5 --recipe best",  # whose schedule is linear
        "--step-size 3 --schedule linear",
        "--warmup 0.1",
        "--labels nowhere.safetensors",
    ],
)
def test_wrong_numbers_are_one_line(tmp_path, few, wrong):
    error = one_line(command("train", "--out", tmp_path, "--data", few, *wrong.split()), 2)
    assert wrong.split()[0] in error and not list(tmp_path.iterdir())


def test_a_damaged_snapshot_is_one_line(tmp_path, few):
    snapshot = tmp_path / "mnist_cnn.training.safetensors"
    for content in (b"", b"damaged", b"\xff" * 8 + b"{}", b"\x02\0\0\0\0\0\0\0{}"):
        snapshot.write_bytes(content)
        with pytest.raises(UsageError, match="is not a snapshot of a training"):
            snapshots.resume(snapshot, {}, None)
    one_line(command("train", "--out", tmp_path, "--data", few, "--epochs", "1", "--resume"), 2)


@pytest.fixture
def begun(tmp_path):
    """A snapshot after an epoch of a training, and that training's options."""
    asked = {**recipe.options("mnist_cnn", **HOW, epochs=2), "images": {}}
    noise = np.random.default_rng(0)
    images, labels = noise.integers(0, 256, (128, 1, 28, 28), np.uint8), noise.integers(0, 10, 128)
    _, figures, state = next(Trainer.of(asked, quiet=True).fit(images, labels))
    snapshot = tmp_path / "mnist_cnn.training.safetensors"
    snapshots.save(snapshot, state, asked, [figures])
    return snapshot, asked


def test_an_altered_snapshot_is_one_line(begun, few):
    snapshot, asked = begun
    state, history = snapshots.resume(snapshot, asked, None)
    assert len(history) == 1 and sum(name.startswith("momentum.") for name in state) == 17
    flip(snapshot)  # the last byte is one of a tensor's
    with pytest.raises(CheckFailed, match="altered: expected sha256"):
        snapshots.resume(snapshot, asked, None)
    error = one_line(command("train", "--out", snapshot.parent, "--data", few, "--epochs", "2"), 1)
    assert "altered" in error and "delete it and train anew" in error
    content = snapshot.read_bytes()
    for offset in range(8, 3000, 17):  # in the header: names, shapes, notes
        snapshot.write_bytes(content)
        flip(snapshot, offset)
        with pytest.raises(PipelineError):
            snapshots.resume(snapshot, asked, None)


def test_a_snapshot_of_another_network_is_one_line(begun):
    snapshot, asked = begun
    state, history = snapshots.resume(snapshot, asked, None)
    for name in ("weights.0.weight", "momentum.99"):
        snapshots.save(snapshot, {**state, name: torch.zeros(2)}, asked, history)
        with pytest.raises(CheckFailed, match=f"tensor {name}: expected "):
            snapshots.resume(snapshot, asked, None)


def test_a_training_with_other_options_says_that_it_replaces_the_unfinished_one(begun, capsys):
    snapshot, asked = begun
    assert snapshots.resume(snapshot, {**asked, "lr": 0.1}, None) == (None, [])
    assert "an unfinished training is replaced, since it has lr 0.04 instead of 0.1" in capsys.readouterr().err
    assert snapshots.resume(snapshot, {**asked, "images": {"train-images": "0"}}, None) == (None, [])
    assert "since it has images {} instead of {'train-images': '0'}" in capsys.readouterr().err
    snapshots.resume(snapshot, {**asked, "lr": 0.1}, False)  # asked for
    snapshots.resume(snapshot.with_name("none"), {**asked, "lr": 0.1}, None)
    assert capsys.readouterr().err == ""


def test_a_number_that_no_recipe_has_is_refused():
    with pytest.raises(UsageError, match="--momentun: mnist_cnn has no such number: expected one of epochs"):
        recipe.options("mnist_cnn", **HOW, momentun=0.5)
    assert recipe.options("mnist_cnn", **HOW, momentun=None, out="x", data="y", resume=True)["momentum"] == 0.9


def test_held_out_images_are_neither_trained_on_nor_tests(few, tmp_path):
    line = ["--hold-out", "400", "--limit", "600", "--epochs", "1", "--out", tmp_path, "--data", few]
    result = command("train", *line)
    assert result.returncode == 0 and re.search(r"Held-out set: .* \d+/400", result.stderr)
    made = manifest.read(tmp_path / "mnist_cnn.safetensors")
    assert made.facts.reference.name == f"400 held-out images, {few.name}"
    train, held = imagesets.split(str(few), (1, 28, 28), DIGITS, 400, None)
    assert len(train) == 2600 and len(held) == 400
    both = {image.tobytes() for image in train.images} & {image.tobytes() for image in held.images}
    assert len(both) < 10  # MNIST has hardly an image twice


def test_a_training_that_ends_under_the_gate_says_how_often_and_what_helps(few, release, tmp_path):
    result = command("train", "--data", few, "--out", tmp_path, "--epochs", "1", "--labels", "hard")
    assert re.search(
        r"^seed 0 ends at \d\d\.\d\d%, under the gate of 99\.40%: try --seed 1 or --recipe best$", result.stderr, re.M
    )
    assert result.returncode == 0
    made = manifest.recall(release / "mnist_cnn.safetensors")
    study = manifest.read(release / "study-default.json").facts
    under = sum(accuracy < 99.4 for accuracy in study.accuracies)
    text = f", as {under} of {len(study.accuracies)} seeds did in study-default.json: try --seed 1 or --recipe best"
    assert train._under_the_gate(made, "default").endswith(text)


@pytest.mark.parametrize("name", ["train", "run", "study", "sweep", "teach"])
def test_images_that_are_not_there_are_told_before_the_network_is_checked(name, tmp_path, monkeypatch):
    monkeypatch.setattr(check, "model", lambda _: pytest.fail("the network was checked"))
    error = one_line(command(name, "--data", "nowhere", "--out", tmp_path), 2)
    assert "--data nowhere: no such file or folder: expected mnist, " in error


def test_a_training_that_diverges_says_so_and_leaves_no_checkpoint(few, tmp_path):
    words = ["--data", few, "--epochs", "1", "--out", tmp_path, "--labels", "hard", "--lr", "1000"]
    error = one_line(command("train", *words), 1)
    assert "epoch 1 ends with a loss of " in error and "nan: try a smaller --lr" in error
    assert not (tmp_path / "mnist_cnn.safetensors").exists()


def test_classes_without_an_image_to_train_on_are_told(few, tmp_path, capsys):
    train.run("mnist_cnn", out=tmp_path, data=str(few), limit=5, epochs=1, hold_out=10, train_threads=1)
    missing = 10 - len(np.unique(imagesets.split(str(few), (1, 28, 28), DIGITS, 10, 5)[0].labels))
    assert missing > 0 and f"{missing} of 10 classes have none of the 5 images" in capsys.readouterr().err
    train.show(manifest.read(tmp_path / "mnist_cnn.safetensors"))
    assert "held-out accuracy" in capsys.readouterr().out
