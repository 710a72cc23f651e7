"""The teacher of `mnist_cnn`: the same layers four times as wide, to label training images with; it is not shipped."""

from __future__ import annotations

from torch import nn

from pipeline import Model, Recipe

WIDTH = 4


def network(dropout: float = 0.0) -> nn.Sequential:
    """The layers of `mnist_cnn`, 146,576 parameters: normalised float32 `[n, 1, 28, 28]` to logits `[n, 10, 1, 1]`."""

    def block(inputs: int, outputs: int) -> list[nn.Module]:
        conv = nn.Conv2d(inputs, outputs, 3, bias=False)
        return [conv, nn.BatchNorm2d(outputs), nn.ReLU(), nn.Dropout(dropout)]

    return nn.Sequential(
        *block(1, 12 * WIDTH),
        *block(12 * WIDTH, 16 * WIDTH),
        nn.Conv2d(16 * WIDTH, 10 * WIDTH, 1, bias=False),
        nn.MaxPool2d(2),
        *block(10 * WIDTH, 12 * WIDTH),
        *block(12 * WIDTH, 16 * WIDTH),
        *block(16 * WIDTH, 30 * WIDTH),
        nn.AvgPool2d(6),
        nn.Conv2d(30 * WIDTH, 10, 1, bias=False),
    )


MODEL = Model(
    title="MNIST digits, teacher of the 9,596-parameter CNN",
    version="1.0.0",
    licence="MIT",
    data="mnist",
    input=(1, 28, 28),
    input_meaning="raw uint8 pixels, 0 background to 255 stroke, 28 x 28, no normalisation: that is in the graph",
    classes=tuple("0123456789"),
    mean=0.1307,  # of the training pixels, scaled to 0..1
    std=0.3081,
    gate=0.9940,
    network=network,
    recipes={"default": Recipe(schedule="linear", lr=0.1, rotation=10.0, shift=1.0, scale=0.1, shear=5.0, ease=0.5)},
    prepare="digit",
)
