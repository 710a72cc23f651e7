"""The object that a model file defines, `MODEL = Model(...)`, and its recipes. Imports no torch."""

from __future__ import annotations

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
    gamma: float = 0.1  # factor of a learning-rate step
    warmup: float = 0.2  # share of a linear schedule that goes up
    dropout: float = 0.0  # passed to `network`, if it takes it
    label_smoothing: float = 0.0
    teacher_weight: float = 0.9  # share of the loss that is to a teacher's labels, where the model has some
    temperature: float = 3.0  # that the teacher's and the network's logits are divided by
    rotation: float = 0.0  # degrees, either way, uniform; so are the next three
    shift: float = 0.0  # pixels
    scale: float = 0.0  # relative
    shear: float = 0.0  # degrees
    elastic: float = 0.0  # pixels, standard deviation of a smooth displacement field
    ease: float = 1.0  # share of the augmentation that a learning-rate step leaves, or a linear schedule at its end


@dataclass(frozen=True, kw_only=True)
class Model:
    """An image classifier to be trained: its network, preprocessing, data, recipes and gate.

    `network` returns a torch.nn.Module from normalised float32 `[n, channels, height, width]` to logits; if it has a
    parameter `dropout`, it is given the recipe's. `augment` replaces `pipeline.training.augmentation.augment`, with the
    same signature. Raises UsageError for an invalid field.
    """

    title: str
    data: str  # the image set: `mnist`, a folder, an .npz, torchvision:NAME
    input: tuple[int, int, int]  # channels, height, width
    classes: Sequence[str]
    mean: float | Sequence[float]  # of the training pixels, scaled to 0..1: a number, or one per channel
    std: float | Sequence[float]
    gate: float  # the least test accuracy that a form of this model may have
    network: Callable[..., torch.nn.Module]
    recipes: Mapping[str, Recipe] = field(default_factory=lambda: {"default": Recipe()})
    augment: Callable[..., torch.Tensor] | None = None
    prepare: str = "resize"  # pictures for `predict`; "digit": as MNIST's digits were prepared
    version: str = "1.0.0"
    licence: str = "unknown"
    input_meaning: str = ""
    teacher: str | None = None  # name of the model that `pipeline teach` trains to label this one's training images

    def __post_init__(self) -> None:
        self.card("name")
        if not callable(self.network):
            raise UsageError(
                f"MODEL.network: expected a function that returns a torch.nn.Module, received {self.network!r}"
            )
        if "default" not in self.recipes or not all(isinstance(each, Recipe) for each in self.recipes.values()):
            raise UsageError('MODEL.recipes: expected Recipe objects by name, one of them called "default"')

    def build(self, dropout: float = 0.0) -> torch.nn.Module:
        """Return a new network with random weights."""
        if "dropout" in inspect.signature(self.network).parameters:
            return self.network(dropout=dropout)
        return self.network()

    def card(self, name: str) -> ModelCard:
        """Return the card that every form of the model carries on record."""
        values = {each: getattr(self, each) for each in ModelCard.__struct_fields__ if each != "name"}
        channels = self.input[0] if isinstance(self.input, list | tuple) and self.input else 1
        for each in ("mean", "std"):
            if isinstance(values[each], int | float):
                values[each] = [values[each]] * channels
        try:
            card = msgspec.convert({"name": name, **values}, ModelCard)
        except msgspec.ValidationError as error:
            text = re.sub(r"`\$\.?(\w*).*`", r"MODEL.\1", reason(error))
            raise UsageError(f"the model file's MODEL: {text}") from error
        if len(set(card.classes)) < len(card.classes):
            raise UsageError(f"MODEL.classes: expected different names in a list or tuple, received {self.classes!r}")
        shape = " × ".join(map(str, card.input))
        meaning = f"raw uint8 pixels, {shape}, no normalisation: that is in the graph"
        return msgspec.structs.replace(card, input_meaning=card.input_meaning or meaning)
