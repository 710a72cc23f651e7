"""MNIST digits with 9,596 parameters: the network, its preprocessing, its recipes and its gate."""

from __future__ import annotations

from torch import nn

from pipeline import Model, Recipe


def network(dropout: float = 0.0) -> nn.Sequential:
    """The 24 layers, from normalised float32 `[n, 1, 28, 28]` to logits `[n, 10, 1, 1]`.

    Source: the layer table of the seed (torchsummary), 9,596 parameters, no bias in any convolution.
    """

    def block(inputs: int, outputs: int) -> list[nn.Module]:
        conv = nn.Conv2d(inputs, outputs, 3, bias=False)
        return [conv, nn.BatchNorm2d(outputs), nn.ReLU(), nn.Dropout(dropout)]

    return nn.Sequential(
        *block(1, 12),
        *block(12, 16),
        nn.Conv2d(16, 10, 1, bias=False),
        nn.MaxPool2d(2),
        *block(10, 12),
        *block(12, 16),
        *block(16, 30),
        nn.AvgPool2d(6),
        nn.Conv2d(30, 10, 1, bias=False),
    )


MODEL = Model(
    title="MNIST digits, 9,596-parameter CNN",
    version="1.0.0",
    licence="MIT",
    data="mnist",
    input=(1, 28, 28),
    input_meaning="raw uint8 pixels, 0 background to 255 stroke, 28 x 28, no normalisation: that is in the graph",
    classes=tuple("0123456789"),
    mean=0.1307,  # of the training pixels, scaled to 0..1
    std=0.3081,
    gate=0.9940,  # the least test accuracy that a form of this model may have
    network=network,
    recipes={  # the schedules are given; the augmentation was chosen on held-out images
        "default": Recipe(rotation=7.0, shift=0.7, scale=0.05, shear=3.0, ease=0.5),
        "best": Recipe(schedule="linear", lr=0.1, rotation=10.0, shift=1.0, scale=0.1, shear=5.0, ease=0.5),
    },
    prepare="digit",
    teacher="mnist_teacher",
)
