from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import models
from models import mnist_cnn
from pipeline import training
from pipeline.training import Trainer


def test_the_step_schedule_is_pytorchs_steplr():
    recipe = models.recipe("mnist_cnn", "default")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=recipe.lr)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, recipe.step_size, recipe.gamma)
    for epoch in range(recipe.epochs):
        for batch in (0.0, 0.5, 0.999):
            assert training.learning_rate(recipe, epoch + batch) == pytest.approx(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()


def test_the_linear_schedule_goes_up_and_down_to_nothing():
    recipe = replace(mnist_cnn.Recipe(), schedule="linear", lr=0.1, warmup=0.2, ease=0.5)
    rates = [training.learning_rate(recipe, epochs) for epochs in np.linspace(0, 15, 301)]
    assert rates[0] == 0 and rates[-1] == pytest.approx(0) and max(rates) == pytest.approx(0.1)
    assert np.argmax(rates) == 60 and (np.diff(rates[60:]) < 0).all()
    strengths = [training.augmentation(recipe, epoch) for epoch in range(15)]
    assert strengths[0] == 1 and strengths[-1] == pytest.approx(0.5) and strengths == sorted(strengths, reverse=True)


def trained(**how) -> dict[str, torch.Tensor]:
    """The weights after one epoch on 640 random images."""
    noise = np.random.default_rng(0)
    images = noise.integers(0, 256, (640, 1, 28, 28), np.uint8)
    recipe = replace(mnist_cnn.Recipe(), epochs=1, **how.pop("recipe", {}))
    ((network, figures, _),) = Trainer(mnist_cnn, recipe, 0, **how).fit(images, noise.integers(0, 10, 640))
    assert figures["epoch"] == 1 and np.isfinite(figures["train_loss"])
    return training.weights(network)


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_same_seed_gives_the_same_bytes(precision):
    assert equal(trained(precision=precision, threads=2), trained(precision=precision, threads=2))


def test_with_dropout_the_general_path_learns_too():
    without, with_it = trained(), trained(recipe={"dropout": 0.1})
    assert without.keys() == with_it.keys() and not equal(without, with_it)
