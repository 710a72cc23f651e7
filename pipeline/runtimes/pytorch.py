"""PyTorch: runs a checkpoint as it was trained, eagerly, in float32 on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pipeline.errors import CheckFailed, reason
from pipeline.records import manifest
from pipeline.records.forms import ModelCard
from pipeline.records.manifest import Artifact
from pipeline.runtimes import session as base

if TYPE_CHECKING:
    import numpy as np
    import torch

READS = {"checkpoint": ("",)}
NEEDS = ("torch", "safetensors")
PACKAGES = ("torch",)


def network(artifact: Artifact) -> torch.nn.Module:
    """The trained network of a checkpoint, in evaluation mode: normalised float32 `[n, c, h, w]` to logits.

    It is built by the model's file and filled with the checkpoint's weights. CheckFailed if they don't fit.
    """
    import safetensors.torch

    from pipeline.training import models

    name = artifact.facts.model.name
    layers = models.get(name).build()
    try:
        layers.load_state_dict(safetensors.torch.load(manifest.content(artifact)))
    except (RuntimeError, safetensors.SafetensorError) as error:
        raise CheckFailed(
            f"{artifact.path}: its weights don't fit the network in {models.file(name)}: {reason(error)}"
        ) from error
    return layers.eval()


def from_pixels(layers: torch.nn.Module, card: ModelCard) -> torch.nn.Module:
    """A network behind `(x / 255 - mean) / std`, from uint8 images `[n, c, h, w]` to logits `[n, classes]`."""
    import torch

    mean, std = (torch.tensor(each, dtype=torch.float32).view(-1, 1, 1) for each in (card.mean, card.std))

    class FromPixels(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = layers

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.layers((images.float() / 255 - mean) / std).flatten(1)

    return FromPixels().eval()


class Session(base.Session):
    """A network that is ready to run. Eager, channels-last: what one gets from PyTorch with no further work."""

    arithmetic = "float32"

    def __init__(self, artifact: Artifact, threads: int | None) -> None:
        import torch

        self._torch, self._before = torch, torch.get_num_threads()
        torch.set_num_threads(threads or self._before)
        self._network = from_pixels(network(artifact), artifact.facts.model).to(memory_format=torch.channels_last)
        self._path, self._input = artifact.path, artifact.facts.model.input

    def __exit__(self, *_: object) -> None:
        self._torch.set_num_threads(self._before)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """uint8 images `[n, c, h, w]` to float32 logits `[n, classes]`."""
        try:
            with self._torch.inference_mode():
                return self._network(self._torch.from_numpy(images)).numpy()
        except (RuntimeError, TypeError) as error:  # layers that don't fit each other
            line = " ".join(str(error).split())[:300]
            raise CheckFailed(f"{self._path}: PyTorch can't run it: {line}") from error

    def step(self, batch: int) -> Callable[[], None]:
        """A function that runs one request of `batch` images whose memory is already there."""
        torch, net = self._torch, self._network
        images = torch.zeros(batch, *self._input, dtype=torch.uint8)

        def once() -> None:
            with torch.inference_mode():
                net(images)

        return once


def load(artifact: Artifact, *, mode: str = "", threads: int | None = None) -> Session:
    """A session of a checkpoint on the CPU; there is one mode."""
    return Session(artifact, threads)
