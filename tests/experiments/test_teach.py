from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pipeline.data import imagesets
from pipeline.errors import CheckFailed, UsageError
from pipeline.experiments import teach
from pipeline.records import manifest
from pipeline.stages import train
from pipeline.training import labels, models
from pipeline.training.loss import Loss
from pipeline.training.model import Recipe
from tests.support import DIGITS, command, flip, one_line

TEACHER = """
from torch import nn
from pipeline import Model, Recipe

def network():
    return nn.Sequential(nn.Flatten(), nn.Linear({size}, 64), nn.ReLU(), nn.Linear(64, 10))

MODEL = Model(title="a teacher", data="mnist", input={input}, classes=tuple("0123456789"), mean=0.13, std=0.31,
              gate=0.5, network=network, recipes={{"default": Recipe(epochs=1, rotation=5.0)}})
"""
QUICK = {"epochs": 1, "train_threads": 1}


@pytest.fixture(scope="module")
def place(few, tmp_path_factory):
    """A folder with a teacher's model file, its checkpoint in `out`, and the labels that it gave."""
    place = tmp_path_factory.mktemp("teach")
    (place / "models").mkdir()
    (place / "models" / "wide.py").write_text(TEACHER.format(size=784, input=(1, 28, 28)))
    (place / "models" / "large.py").write_text(TEACHER.format(size=1024, input=(1, 32, 32)))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        made = teach.run("mnist_cnn", teacher="wide", data=str(few), out=place / "out", to=place, train_threads=1)
    return place, made


@pytest.fixture
def here(place, monkeypatch):
    monkeypatch.chdir(place[0])
    return place


def test_labels_are_traced_to_the_teacher_and_to_the_pixels(here, few):
    folder, made = here
    teacher = manifest.read(folder / "out" / "wide.safetensors")
    pixels = imagesets.load(str(few), "train", (1, 28, 28), DIGITS)
    assert made.parents == {"wide.safetensors": teacher.sha256} | pixels.digests
    assert made.options["teacher"]["rotation"] == 5.0 and made.options["views"] == 4
    assert made.facts.teacher_accuracy == teacher.facts.test_accuracy > 0.5
    answers = labels.unpack(manifest.read(folder / "mnist_cnn.labels.safetensors"))
    assert answers.shape == (len(pixels), 10) and (answers.max(1) == 0).all()
    assert (answers.argmax(1) == pixels.labels).mean() == pytest.approx(made.facts.agreeing, abs=0.01)
    assert 0.5 < made.facts.agreeing < 1


def test_made_twice_they_have_the_same_bytes_and_the_teacher_is_trained_once(here, few, tmp_path, capsys):
    folder, made = here
    again = teach.run("mnist_cnn", teacher="wide", data=str(few), out=folder / "out", to=tmp_path, train_threads=1)
    assert "wide.safetensors: fresh" in capsys.readouterr().err
    trained = teach.run("mnist_cnn", teacher="wide", data=str(few), out=tmp_path / "new", to=tmp_path, train_threads=1)
    assert "wide.safetensors: made" in capsys.readouterr().err
    given = str(folder / "out" / "wide.safetensors")
    same = teach.run("mnist_cnn", teacher=given, data=str(few), out=tmp_path, to=tmp_path / "other", train_threads=1)
    assert made.sha256 == again.sha256 == trained.sha256 == same.sha256


def test_a_training_with_labels_says_so_and_hard_is_as_without(here, few, tmp_path):
    _, made = here
    soft = train.run("mnist_cnn", out=tmp_path / "a", data=str(few), labels=str(made.path), **QUICK)
    assert soft.parents["mnist_cnn.labels.safetensors"] == soft.options["labels"] == made.sha256
    assert soft.facts.taught.teacher == "wide" and soft.facts.taught.weight == 0.9
    hard = train.run("mnist_cnn", out=tmp_path / "b", data=str(few), labels="hard", **QUICK)
    ignored = {"labels": str(made.path), "teacher_weight": 0.0}
    plain = train.run("mnist_cnn", out=tmp_path / "c", data=str(few), **ignored, **QUICK)
    assert hard.facts.taught is None and hard.options["labels"] == "hard" and hard.sha256 != soft.sha256
    assert plain.facts.test_accuracy == hard.facts.test_accuracy  # all of the loss to the images' own labels


def test_those_beside_the_model_file_are_used_for_their_images_alone(place, few, digits, tmp_path, monkeypatch, capsys):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "mnist_cnn.py").write_text(models.file("mnist_cnn").read_text())
    (tmp_path / "models" / "wide.py").write_text((place[0] / "models" / "wide.py").read_text())
    monkeypatch.chdir(tmp_path)
    given = str(place[0] / "out" / "wide.safetensors")
    teach.run("mnist_cnn", teacher=given, data=str(few), out=tmp_path, to=tmp_path / "models")
    assert labels.beside("mnist_cnn").is_file()
    asked = train.options("mnist_cnn", data=str(few))
    assert asked["labels"] == manifest.read(labels.beside("mnist_cnn")).sha256
    assert train.options("mnist_cnn", data=str(few), labels="hard")["labels"] == "hard"
    assert train.options("mnist_cnn", data=str(few), limit=100)["labels"] == "hard"
    made = train.run("mnist_cnn", out=tmp_path, data=str(few), limit=100, **QUICK)
    assert made.facts.taught is None
    assert "mnist_cnn.labels.safetensors: labels of other images" in capsys.readouterr().err
    flip(labels.beside("mnist_cnn"))
    with pytest.raises(CheckFailed, match=r"mnist_cnn\.labels\.safetensors: altered: expected sha256"):
        train.options("mnist_cnn", data=str(few))


def test_labels_of_other_images_or_none_are_refused_by_name(here, few, tmp_path):
    folder, made = here
    line = ["train", "mnist_cnn", "--data", few, "--limit", "640", "--out", tmp_path]
    error = one_line(command(*line, "--labels", made.path), 2)
    assert "mnist_cnn.labels.safetensors: labels of other images than these 640" in error
    error = one_line(command(*line, "--labels", folder / "out" / "wide.safetensors"), 2)
    assert "holds checkpoint: expected labels, as `pipeline teach mnist_cnn` makes them" in error
    text = TEACHER.format(size=784, input=(1, 28, 28)).replace("0123456789", "0123456789AB").replace(", 10)", ", 12)")
    (folder / "models" / "twelve.py").write_text(text)
    other = ["train", "twelve", "--data", few, "--labels", made.path, "--out", tmp_path]
    error = one_line(command(*other, cwd=folder), 2)
    assert "labels with 10 classes: expected twelve's 12" in error
    assert "none.safetensors: no such file" in one_line(command(*line, "--labels", "none.safetensors"), 2)
    error = one_line(command(*line, "--labels", "hard", "--temperature", 2), 2)
    assert (
        "--temperature: has no effect without a teacher's labels: expected --labels FILE, as `pipeline teach" in error
    )
    study = ["study", *line[1:], "--labels", "hard", "--change", "teacher_weight=0.5"]
    assert "--teacher-weight: has no effect without a teacher's labels" in one_line(command(*study), 2)


def test_a_teacher_that_does_not_fit_is_refused_before_anything_is_trained(here, few, tmp_path):
    folder, made = here
    wide = str(folder / "out" / "wide.safetensors")
    how = {"data": str(few), "out": tmp_path, "to": tmp_path}
    for wrong, expected in (
        ({"teacher": wide, "hold_out": 100}, "was trained on other images"),
        ({"teacher": wide, "to": None}, "--data: labels of other images than mnist_cnn's: expected --to FOLDER"),
        ({"teacher": wide, "data": None, "to": None, "hold_out": 9}, "--hold-out: labels of other images"),
        ({"teacher": str(made.path)}, "holds labels: expected a checkpoint"),
        ({"teacher": "large"}, r"large: a model for \[1, 32, 32\], 10 classes: expected \[1, 28, 28\], 10 classes"),
        ({"teacher": "wide", "views": 0}, "--views: expected 1 to 1000, received 0"),
    ):
        with pytest.raises(UsageError, match=expected):
            teach.run("mnist_cnn", **{**how, **wrong})
    with pytest.raises(UsageError, match=r"wide\.py: names no teacher"):
        teach.run("wide", data=str(few), out=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_file_keeps_differences_to_a_sixteenth_up_to_31():
    logits = np.random.default_rng(0).normal(0, 12, (1000, 10)).astype(np.float32)
    made = manifest.write(
        None,
        labels.pack(logits),
        facts=teach.Labels(model="m", teacher="t", teacher_accuracy=1.0, images=1000, classes=10, agreeing=1.0),
    )
    below = np.maximum(logits - logits.max(1, keepdims=True), -255 / 8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifest, "content", lambda _: labels.pack(logits))
        assert np.abs(labels.unpack(made) - below).max() <= 1 / 16 + 1e-5
        patch.setattr(manifest, "content", lambda _: labels.pack(logits[:, :9]))
        with pytest.raises(CheckFailed, match=r"holds uint8 \[1000, 9\]: expected uint8 \[1000, 10\]"):
            labels.unpack(made)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("taught", [False, True])
def test_the_loss_and_its_gradient_are_those_of_pytorch(smoothing, taught):
    torch.manual_seed(0)
    logits, targets = torch.randn(7, 10, requires_grad=True), torch.randint(10, (7,))
    teacher = torch.randn(7, 10) if taught else None
    expected = F.cross_entropy(logits, targets, label_smoothing=smoothing)
    if taught:
        wanted = F.softmax(teacher / 3, 1)
        expected = 0.2 * expected + 0.8 * 9 * F.cross_entropy(logits / 3, wanted)
    expected.backward()
    recipe = Recipe(label_smoothing=smoothing, teacher_weight=0.8, temperature=3.0)
    loss, gradient = Loss(recipe)(logits.detach(), targets, teacher)
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(gradient, logits.grad)


def test_the_committed_labels_are_of_mnists_training_images(digits):
    images = imagesets.load("mnist", "train", (1, 28, 28), DIGITS)
    found, unused = labels.find("mnist_cnn", "auto", images)
    assert not unused and found.facts.teacher == models.get("mnist_cnn").teacher
    agreeing = (labels.unpack(found).argmax(1) == images.labels).mean()
    assert agreeing == pytest.approx(found.facts.agreeing, abs=1e-3) and agreeing > 0.99
    assert found.options["teacher"]["hold_out"] == 0 and found.options["teacher"]["images"] == images.name
