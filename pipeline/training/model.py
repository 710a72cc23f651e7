"""What a model file defines: `MODEL = Model(...)`, with its recipes. Imports no torch."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from pipeline.errors import UsageError, reason
from pipeline.records.forms import ModelCard

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: SGD with momentum, a schedule, and augmentation, which is off by default."""

    epochs: int = 15
    batch_size: int = 64
    lr: float = 0.04  # the schedule's highest
    momentum: float = 0.9
    schedule: str = "step"  # StepLR; or "linear": up from 0, then down to 0
    step_size: int = 6  # epochs between two learning-rate steps
    gamma: float = 0.1  # what a step multiplies the learning rate with
    warmup: float = 0.2  # share of a linear schedule that goes up
    dropout: float = 0.0  # given to `network`, if it takes it
    label_smoothing: float = 0.0
    rotation: float = 0.0  # degrees, either way, uniform; so are the next three
    shift: float = 0.0  # pixels
    scale: float = 0.0  # relative
    shear: float = 0.0  # degrees
    elastic: float = 0.0  # pixels, standard deviation of a smooth displacement field
    ease: float = 1.0  # of the augmentation, how much a learning-rate step leaves, or a linear schedule at its end


@dataclass(frozen=True, kw_only=True)
class Model:
    """An image classifier to be trained: its network, preprocessing, data, recipes and gate.

    `network` gives a torch.nn.Module from normalised float32 `[n, channels, height, width]` to logits; if it has a
    parameter `dropout`, it is given the recipe's. `augment` replaces the standard augmentation, and has its signature.
    Raises UsageError for a field that is not as it must be.
    """

    title: str
    data: str  # the image set: `mnist`, a folder, an .npz, torchvision:NAME
    input: tuple[int, int, int]  # channels, height, width
    classes: Sequence[str]
    mean: float | Sequence[float]  # of the training pixels, scaled to 0..1: a number, or one a channel
    std: float | Sequence[float]
    gate: float  # the least test accuracy that a form of this model may have
    network: Callable[..., torch.nn.Module]
    recipes: Mapping[str, Recipe] = field(default_factory=lambda: {"default": Recipe()})
    augment: Callable[..., torch.Tensor] | None = None
    prepare: str = "resize"  # pictures for `predict`; "digit": as MNIST's digits were prepared
    version: str = "1.0.0"
    licence: str = "unknown"
    input_meaning: str = ""

    def __post_init__(self) -> None:
        self.card("name")
        if not callable(self.network):
            raise UsageError(
                f"MODEL.network: expected a function that gives a torch.nn.Module, received {self.network!r}"
            )
        if "default" not in self.recipes or not all(isinstance(each, Recipe) for each in self.recipes.values()):
            raise UsageError('MODEL.recipes: expected Recipe objects by name, one of them called "default"')

    def build(self, dropout: float = 0.0) -> torch.nn.Module:
        """A new network, with random weights."""
        takes = "dropout" in inspect.signature(self.network).parameters
        return self.network(dropout=dropout) if takes else self.network()

    def card(self, name: str) -> ModelCard:
        """What every form of the model has on record of it."""
        channels, height, width = (*self.input, 0, 0, 0)[:3] if isinstance(self.input, Sequence) else (0, 0, 0)
        meaning = f"raw uint8 pixels, {channels} × {height} × {width}, no normalisation: that is in the graph"
        values = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        values = {key: value for key, value in values.items() if key in ModelCard.__struct_fields__}
        values |= {key: self._per_channel(key) for key in ("mean", "std")}
        values |= {"name": name, "input_meaning": self.input_meaning or meaning}
        if isinstance(self.classes, str) or len(set(self.classes)) < len(self.classes):
            raise UsageError(f"MODEL.classes: expected different names in a list or tuple, received {self.classes!r}")
        values |= {key: list(values[key]) for key in ("input", "classes") if isinstance(values[key], Sequence)}
        try:
            return msgspec.convert(values, ModelCard)
        except msgspec.ValidationError as error:
            text = re.sub(r"`\$\.?(\w*).*`", r"MODEL.\1", reason(error))
            raise UsageError(f"the model file's MODEL: {text}") from error

    def _per_channel(self, name: str) -> list[float]:
        value = getattr(self, name)
        if isinstance(value, int | float):
            return [float(value)] * max(1, self.input[0])
        return [float(each) if isinstance(each, int) else each for each in value]
