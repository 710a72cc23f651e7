"""PyTorch: runs a checkpoint (BatchNorm and normalisation as trained) or its folded form, in float32 on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pipeline import artifact as artifacts
from pipeline.artifact import Artifact
from pipeline.errors import CheckFailed

if TYPE_CHECKING:
    import numpy as np
    import torch

READS = {"checkpoint": ("",), "folded": ("",)}
PACKAGES = ("torch",)
LAYERS = ("Conv2d", "ReLU", "MaxPool2d", "AvgPool2d")  # what a folded network is made of


def network(artifact: Artifact) -> torch.nn.Module:
    """The network in an artifact, from uint8 images `[n, c, h, w]` to float32 logits `[n, classes]`, in eval mode.

    A checkpoint's layers come from its model file, a folded network's from its record.
    Raises CheckFailed if the weights don't fit the layers.
    """
    import safetensors.torch
    import torch

    card = artifact.facts["model"]
    if artifact.kind == "checkpoint":
        import models

        model = models.get(card["name"])
        layers, normalise = model.network(), lambda x: (x / 255 - model.MEAN) / model.STD
    else:
        layers, normalise = torch.nn.Sequential(*map(_layer, artifact.facts["layers"])), None
    try:
        layers.load_state_dict(safetensors.torch.load(artifacts.content(artifact)))
    except (RuntimeError, safetensors.SafetensorError) as error:
        line = " ".join(str(error).split())
        raise CheckFailed(f"{artifact.path}: its weights don't fit {card['name']}: {line}") from error
    return from_pixels(layers, normalise).eval()


def from_pixels(layers: torch.nn.Sequential, normalise: Callable | None = None) -> torch.nn.Module:
    """`layers` behind a cast from uint8 pixels and, unless that is folded into them, their normalisation."""
    import torch

    class FromPixels(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = layers

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            x = images.float()
            return self.layers(normalise(x) if normalise else x).flatten(1)

    return FromPixels()


def _layer(description: dict) -> torch.nn.Module:
    import torch

    options = dict(description)
    name = options.pop("layer")
    if name not in LAYERS:
        raise CheckFailed(f"a folded network has a layer {name!r}: expected one of {', '.join(LAYERS)}")
    return getattr(torch.nn, name)(**options)


class Session:
    """A network that is ready to run. Eager, channels-last: what one gets from PyTorch with no further work."""

    arithmetic = "float32"

    def __init__(self, artifact: Artifact, threads: int | None) -> None:
        import torch

        self._torch, self._before = torch, torch.get_num_threads()
        torch.set_num_threads(threads or self._before)
        self._network = network(artifact).to(memory_format=torch.channels_last)
        self._input = artifact.facts["model"]["input"]

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self._torch.set_num_threads(self._before)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        with self._torch.inference_mode():
            return self._network(self._torch.from_numpy(images)).numpy()

    def step(self, batch: int) -> Callable[[], None]:
        torch, net = self._torch, self._network
        images = torch.zeros(batch, *self._input, dtype=torch.uint8)

        def once() -> None:
            with torch.inference_mode():
                net(images)

        return once


def load(artifact: Artifact, *, mode: str = "", threads: int | None = None) -> Session:
    return Session(artifact, threads)
