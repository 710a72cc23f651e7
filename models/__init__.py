"""What can be trained: one file a model, found by listing this folder.

A model file defines (see `mnist_cnn.py`): `TITLE`, `VERSION`, `LICENCE`, `DATASET`, `INPUT` (channels,
height, width), `CLASSES`, `MEAN`, `STD`, `GATE`, `RECIPES` (one is
called "default"), `network(dropout)` and `augment(...)`.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from types import ModuleType
from typing import Any

from pipeline.errors import UsageError

DEFAULT = "mnist_cnn"


def names() -> list[str]:
    """Names of the models there are, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def get(name: str) -> ModuleType:
    """The model file called `name`, imported (this imports torch). UsageError if there is none."""
    if name not in names():
        raise UsageError(f"no model is called {name!r}: expected one of {', '.join(names())}")
    return importlib.import_module(f"{__name__}.{name}")


def card(name: str) -> dict:
    """What every form of a model has to know of it, in JSON types."""
    model = get(name)
    return {
        "name": name,
        "title": model.TITLE,
        "version": model.VERSION,
        "licence": model.LICENCE,
        "dataset": model.DATASET,
        "input": list(model.INPUT),
        "input_meaning": model.INPUT_MEANING,
        "classes": list(model.CLASSES),
        "mean": model.MEAN,
        "std": model.STD,
        "gate": model.GATE,
    }


def recipes(name: str) -> dict[str, dict]:
    """A model's recipes by name: each number of each."""
    return {recipe: dataclasses.asdict(numbers) for recipe, numbers in get(name).RECIPES.items()}


def recipe(name: str, which: str) -> Any:
    """The recipe of a model that is called `which`. UsageError if there is none."""
    recipes = get(name).RECIPES
    if which not in recipes:
        raise UsageError(f"--recipe: {name} has none called {which!r}: expected one of {', '.join(recipes)}")
    return recipes[which]


def layers(name: str) -> list[tuple[str, list[int], int]]:
    """A model's layer table: (type, output shape with -1 for the batch, parameters) a layer."""
    import torch

    model = get(name)
    rows, x = [], torch.zeros(1, *model.INPUT)
    with torch.inference_mode():
        for layer in model.network().eval():
            x = layer(x)
            parameters = sum(parameter.numel() for parameter in layer.parameters())
            rows.append((type(layer).__name__, [-1, *x.shape[1:]], parameters))
    return rows
