"""The teacher of `mnist_cnn`: the same layers four times as wide, to label training images with; it is not shipped."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from pipeline.training import models

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


STUDENT = models.get("mnist_cnn")
MODEL = replace(
    STUDENT,
    title="MNIST digits, teacher of the 9,596-parameter CNN",
    network=network,
    recipes={"default": STUDENT.recipes["best"]},
    teacher=None,
)
