from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.data import imagesets
from pipeline.training import augmentation, models
from pipeline.training import trainer as training
from pipeline.training.trainer import Trainer
from tests.support import DIGITS

MODEL = models.get("mnist_cnn")


def test_the_step_schedule_is_pytorchs_steplr():
    recipe = MODEL.recipes["default"]
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=recipe.lr)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, recipe.step_size, recipe.gamma)
    for epoch in range(recipe.epochs):
        for batch in (0.0, 0.5, 0.999):
            assert training.learning_rate(recipe, epoch + batch) == pytest.approx(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()


def test_the_linear_schedule_goes_up_and_down_to_nothing():
    recipe = replace(MODEL.recipes["default"], schedule="linear", lr=0.1, warmup=0.2, ease=0.5)
    rates = [training.learning_rate(recipe, epochs) for epochs in np.linspace(0, 15, 301)]
    assert rates[0] == 0 and rates[-1] == pytest.approx(0) and max(rates) == pytest.approx(0.1)
    assert np.argmax(rates) == 60 and (np.diff(rates[60:]) < 0).all()
    strengths = [training.augmentation(recipe, epoch) for epoch in range(15)]
    assert strengths[0] == 1 and strengths[-1] == pytest.approx(0.5) and strengths == sorted(strengths, reverse=True)


def trained(precision: str) -> dict[str, torch.Tensor]:
    """The weights and momentum after one epoch on 640 random images."""
    noise = np.random.default_rng(0)
    images = noise.integers(0, 256, (640, 1, 28, 28), np.uint8)
    trainer = Trainer(MODEL, replace(MODEL.recipes["default"], epochs=1), 0, precision=precision, threads=2)
    ((_, figures, state),) = trainer.fit(images, noise.integers(0, 10, 640))
    assert figures["epoch"] == 1 and np.isfinite(figures["train_loss"])
    return state


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_same_seed_gives_the_same_bytes(precision):
    one, other = (trained(precision) for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("dropout", [0.0, 0.1], ids=["oneDNN's step", "the general step"])
def test_the_loss_falls(few, dropout):
    recipe = replace(MODEL.recipes["default"], epochs=3, dropout=dropout)
    some = imagesets.load(str(few), "train", (1, 28, 28), DIGITS)
    fit = Trainer(MODEL, recipe, 0, quiet=True).fit(some.images[:2560], some.labels[:2560])
    losses, accuracies = zip(*((now["train_loss"], now["train_accuracy"]) for _, now, _ in fit), strict=True)
    assert losses[0] < 2.303 and losses[0] > losses[1] > losses[2] and losses[2] < 0.8  # ln 10: knowing nothing
    assert accuracies[2] > 0.7


def batches(size: int, n: int) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]]:
    recipe = replace(MODEL.recipes["default"], batch_size=size)
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (n, 1, 28, 28), np.uint8))
    return list(Trainer(MODEL, recipe, 0)._batches(pixels, torch.arange(n), torch.arange(n) * 2, 0))


@pytest.mark.parametrize("size", [64, 100, 7000])
def test_every_image_is_in_one_batch_and_memory_does_not_grow_with_the_batch(size, monkeypatch):
    calls, augment = [], augmentation.augment
    monkeypatch.setattr(training, "augment", lambda x, *rest: calls.append(len(x)) or augment(x, *rest))
    found = batches(size, 15_000)
    assert [len(x) for x, _, _ in found[:-1]] == [size] * (len(found) - 1)
    assert torch.cat([y for _, y, _ in found]).sort().values.equal(torch.arange(15_000))
    assert all(answers.equal(y * 2) for _, y, answers in found)
    assert calls[0] == {64: 96 * 64, 100: 6100, 7000: 7000}[size]  # 96 batches of the recipes: their bits depend on it


def test_an_image_left_alone_joins_the_batch_before():
    """BatchNorm can't train on one image."""
    assert [len(x) for x, _, _ in batches(64, 129)] == [64, 65]
    assert [len(x) for x, _, _ in batches(64, 1)] == [1]


def test_a_picture_that_is_not_square_is_turned_without_distortion(monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda *shape, generator: torch.ones(shape))  # the largest angle
    bar = torch.zeros(1, 1, 64, 32)
    bar[0, 0, 31:33, 6:26] = 1
    quarter = replace(MODEL.recipes["default"], rotation=90.0, shift=0.0, scale=0.0, shear=0.0, elastic=0.0)
    ink = augmentation.augment(bar, torch.Generator(), quarter, 1.0)[0, 0] > 0.5
    assert (int(ink.any(1).sum()), int(ink.any(0).sum())) == (20, 2)


def test_pixels_are_normalised_by_channel():
    model = replace(MODEL, prepare="resize", input=(3, 4, 4), mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 1.0))
    pixels = training.normalised(torch.full((2, 3, 4, 4), 0.6), model)
    assert torch.allclose(pixels[0, :, 0, 0], torch.tensor([1.0, 1.6, 0.3]))
