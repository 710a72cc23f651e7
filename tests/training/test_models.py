from __future__ import annotations

import json

import pytest
import torch

from pipeline import Recipe
from pipeline.training import augmentation, models
from tests.support import command, one_line

MODEL = models.get("mnist_cnn")

SEED_TABLE = """
Conv2d 12,26,26 108  BatchNorm2d 12,26,26 24  ReLU 12,26,26 0  Dropout 12,26,26 0
Conv2d 16,24,24 1728  BatchNorm2d 16,24,24 32  ReLU 16,24,24 0  Dropout 16,24,24 0
Conv2d 10,24,24 160  MaxPool2d 10,12,12 0
Conv2d 12,10,10 1080  BatchNorm2d 12,10,10 24  ReLU 12,10,10 0  Dropout 12,10,10 0
Conv2d 16,8,8 1728  BatchNorm2d 16,8,8 32  ReLU 16,8,8 0  Dropout 16,8,8 0
Conv2d 30,6,6 4320  BatchNorm2d 30,6,6 60  ReLU 30,6,6 0  Dropout 30,6,6 0
AvgPool2d 30,1,1 0  Conv2d 10,1,1 300
"""


def test_the_network_is_the_given_one_layer_by_layer():
    words = SEED_TABLE.split()
    expected = [
        (layer, [-1, *map(int, shape.split(","))], int(size))
        for layer, shape, size in zip(words[::3], words[1::3], words[2::3], strict=True)
    ]
    table = models.layers(MODEL.build(), MODEL.input)
    assert [(row.layer, row.output, row.parameters) for row in table] == expected and len(expected) == 24


def test_the_schedule_is_the_given_one():
    recipe = MODEL.recipes["default"]
    assert (recipe.schedule, recipe.lr, recipe.step_size, recipe.gamma) == ("step", 0.04, 6, 0.1)
    assert (recipe.epochs, recipe.batch_size, recipe.momentum, MODEL.gate) == (15, 64, 0.9, 0.994)


def test_show_prints_the_table():
    result = command("show", "mnist_cnn")
    assert result.returncode == 0 and "Total params: 9,596" in result.stdout
    assert "Conv2d-1 " in result.stdout and "Conv2d-24 " in result.stdout
    shown = json.loads(command("show", "mnist_cnn", "--json").stdout)
    assert shown["parameters"] == 9596 and len(shown["layers"]) == 24


def test_models_lists_it():
    assert "mnist_cnn" in command("models").stdout
    assert "expected one of mnist_cnn" in one_line(command("show", "resnet"), 2)
    assert "put its file into ./models" in one_line(command("train", "some/net.py"), 2)


def test_augmentation_moves_strokes_and_keeps_the_background():
    images = torch.zeros(64, 1, 28, 28)
    images[:, :, 8:20, 13:15] = 1
    generator = torch.Generator().manual_seed(0)
    moved = augmentation.augment(images, generator, MODEL.recipes["default"], 1.0)
    assert moved.shape == images.shape and moved.min() >= 0 and moved.max() <= 1 + 1e-6
    assert (moved[:, :, :3] == 0).all() and not torch.equal(moved, images)
    assert 0.6 < moved.sum() / images.sum() < 1.5
    still = augmentation.augment(images, generator, MODEL.recipes["default"], 0.0)
    assert torch.allclose(still, images, atol=1e-4)
    assert augmentation.augment(images, generator, Recipe(), 1.0) is images


def test_its_grid_is_pytorchs():
    affine = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.affine_grid(affine, [5, 1, 20, 28], align_corners=False)
    torch.testing.assert_close(augmentation._grid(affine, 20, 28), expected)


class Flat(torch.nn.Module):
    """Two channels of a convolution, as one row: by `flatten`, or by what needs the row in one piece in memory."""

    def __init__(self, row):
        super().__init__()
        self.conv, self.norm, self.row = torch.nn.Conv2d(3, 2, 3), torch.nn.BatchNorm2d(2), row
        self.norm.eval()

    def forward(self, images):
        return self.row(self.norm(self.conv(images)))


def _contiguous(x):
    if not x.is_contiguous():
        raise TypeError("not contiguous")
    return x.flatten(1)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (lambda x: x.flatten(1), torch.channels_last),
        (lambda x: x.view(x.shape[0], -1), torch.contiguous_format),
        (_contiguous, torch.contiguous_format),
    ],
)
def test_channels_come_last_in_memory_where_a_network_runs_so(row, expected):
    network = Flat(row).train()
    network.norm.eval()
    before, random = network.norm.running_mean.clone(), torch.random.get_rng_state()
    assert models.memory_format(network, (3, 8, 8)) is expected
    assert network.training and not network.norm.training and network.norm.running_mean.equal(before)
    assert network.conv.weight.is_contiguous() and torch.random.get_rng_state().equal(random)
