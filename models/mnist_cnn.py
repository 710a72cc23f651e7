"""MNIST digits with 9,596 parameters: the network, its preprocessing, its recipe and its gate."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TITLE = "MNIST digits, 9,596-parameter CNN"
VERSION = "1.0.0"
LICENCE = "MIT"
DATASET = "mnist"
INPUT = (1, 28, 28)
INPUT_MEANING = "raw uint8 pixels, 0 background to 255 stroke, 28 x 28, no normalisation: that is in the graph"
CLASSES = tuple("0123456789")
MEAN, STD = 0.1307, 0.3081  # of the training pixels, scaled to 0..1
GATE = 0.9940  # the least test accuracy a form of this model may have


@dataclass(frozen=True)
class Recipe:
    """How the network is trained. The numbers here are the given schedule; the rest was chosen on held-out images."""

    epochs: int = 15
    batch_size: int = 64
    lr: float = 0.04  # the schedule's highest
    momentum: float = 0.9
    schedule: str = "step"  # StepLR; or "linear": up from 0, then down to 0
    step_size: int = 6  # epochs between two learning-rate steps
    gamma: float = 0.1  # what a step multiplies the learning rate with
    warmup: float = 0.2  # share of a linear schedule that goes up
    dropout: float = 0.0
    label_smoothing: float = 0.0
    rotation: float = 7.0  # degrees, either way, uniform; so are the next three
    shift: float = 0.7  # pixels
    scale: float = 0.05  # relative
    shear: float = 3.0  # degrees
    elastic: float = 0.0  # pixels, standard deviation of a smooth displacement field
    ease: float = 0.5  # of the augmentation, how much a learning-rate step leaves, or a linear schedule at its end


RECIPES = {
    "default": Recipe(),
    "best": Recipe(schedule="linear", lr=0.1, rotation=10.0, shift=1.0, scale=0.1, shear=5.0),
}


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


def augment(images: Tensor, generator: torch.Generator, recipe: Recipe, strength: float) -> Tensor:
    """Each image turned, moved, scaled, sheared and bent at random, `strength` times what the recipe says.

    Takes and gives float32 `[n, 1, 28, 28]` from 0, the background, to 1. One bicubic resampling does all of it: a
    bilinear one blurs the strokes, and the network is to see them as sharp as they will be.
    """
    n, _, height, width = images.shape

    def uniform(limit: float, *shape: int) -> Tensor:
        return (torch.rand(n, *shape, generator=generator) * 2 - 1) * (limit * strength)

    angle, shear = torch.deg2rad(uniform(recipe.rotation)), torch.deg2rad(uniform(recipe.shear))
    stretch = 1 + uniform(recipe.scale, 2)
    cos, sin = torch.cos(angle), torch.sin(angle)
    rows = torch.stack([cos, torch.tan(shear) * cos - sin, sin, torch.tan(shear) * sin + cos], 1).view(n, 2, 2)
    moved = uniform(recipe.shift, 2, 1) * 2 / torch.tensor([width, height]).view(2, 1)
    turned = torch.cat([rows * stretch[:, None, :], moved], 2).to(images.device)
    grid = _grid(turned, height, width)
    if recipe.elastic * strength > 0:
        coarse = torch.randn(n, 2, 6, 6, generator=generator) * (recipe.elastic * strength * 2 / width)
        smooth = F.interpolate(coarse.to(images.device), (height, width), mode="bicubic", align_corners=True)
        grid = grid + smooth.permute(0, 2, 3, 1)
    return F.grid_sample(images, grid, mode="bicubic", padding_mode="zeros", align_corners=False).clamp_(0, 1)


def _grid(affine: Tensor, height: int, width: int) -> Tensor:
    """`F.affine_grid` of `[n, 2, 3]` without its product of matrices: what x gives and what y gives, added."""
    across, down = ((torch.arange(size, device=affine.device) * 2 + 1) / size - 1 for size in (width, height))
    of_x, of_y, moved = affine[:, None, None].unbind(-1)
    return of_x * across[:, None] + (of_y * down[:, None, None] + moved)
