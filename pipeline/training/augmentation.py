"""The standard augmentation: images turned, moved, scaled, sheared and bent at random."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.training.model import Recipe

if TYPE_CHECKING:
    import torch


def augment(images: torch.Tensor, generator: torch.Generator, recipe: Recipe, strength: float) -> torch.Tensor:
    """Turn, move, scale, shear and bend each image at random, `strength` times as much as the recipe says.

    Takes and returns float32 `[n, c, h, w]` from 0 to 1, unchanged if the recipe augments nothing. One bicubic
    resampling does all of it: a bilinear one would blur the strokes. What comes in at the edges is the background, 0,
    in images of one channel, and the nearest pixel in others.
    """
    import torch
    import torch.nn.functional as F

    if not any((recipe.rotation, recipe.shift, recipe.scale, recipe.shear, recipe.elastic)):
        return images
    n, channels, height, width = images.shape

    def uniform(limit: float, *shape: int) -> torch.Tensor:
        return (torch.rand(n, *shape, generator=generator) * 2 - 1) * (limit * strength)

    angle, shear = torch.deg2rad(uniform(recipe.rotation)), torch.deg2rad(uniform(recipe.shear))
    # Coordinates go from -1 to 1 across and down: what is turned from one axis to the other changes its unit.
    across, down = torch.tensor(height / width), torch.tensor(width / height)
    stretch = 1 + uniform(recipe.scale, 2)
    cos, sin = torch.cos(angle), torch.sin(angle)
    rows = torch.stack(
        [cos, (torch.tan(shear) * cos - sin) * across, sin * down, torch.tan(shear) * sin + cos], 1
    ).view(n, 2, 2)
    moved = uniform(recipe.shift, 2, 1) * 2 / torch.tensor([width, height]).view(2, 1)
    turned = torch.cat([rows * stretch[:, None, :], moved], 2).to(images.device)
    grid = _grid(turned, height, width)
    if recipe.elastic * strength > 0:
        coarse = torch.randn(n, 2, 6, 6, generator=generator) * (recipe.elastic * strength * 2 / width)
        coarse[:, 1] *= width / height
        smooth = F.interpolate(coarse.to(images.device), (height, width), mode="bicubic", align_corners=True)
        grid = grid + smooth.permute(0, 2, 3, 1)
    edge = "zeros" if channels == 1 else "border"
    return F.grid_sample(images, grid, mode="bicubic", padding_mode=edge, align_corners=False).clamp_(0, 1)


def _grid(affine: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Return `F.affine_grid` of `[n, 2, 3]`, computed without its matrix product: the parts of x and y, added."""
    import torch

    across, down = ((torch.arange(size, device=affine.device) * 2 + 1) / size - 1 for size in (width, height))
    of_x, of_y, moved = affine[:, None, None].unbind(-1)
    return of_x * across[:, None] + (of_y * down[:, None, None] + moved)
