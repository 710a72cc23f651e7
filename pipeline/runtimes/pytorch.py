"""PyTorch: runs a checkpoint as it was trained, eagerly, in float32 on the CPU."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

from pipeline.errors import CheckFailed, reason
from pipeline.records import manifest
from pipeline.records.manifest import Artifact
from pipeline.runtimes import session as base
from pipeline.training import models

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

    name = artifact.facts.model.name
    layers = models.get(name).build()
    try:
        layers.load_state_dict(safetensors.torch.load(manifest.content(artifact)))
    except (RuntimeError, safetensors.SafetensorError) as error:
        raise CheckFailed(
            f"{artifact.path}: its weights don't fit the network in {models.file(name)}: {reason(error)}"
        ) from error
    return layers.eval()


class Session(base.Session):
    """A checkpoint's network on the CPU. Eager, channels last if it can: what one gets from PyTorch as it is."""

    arithmetic = "float32"

    def __init__(self, artifact: Artifact, *, mode: str = "", threads: int | None = None) -> None:
        import torch

        self._torch, self._before, self._artifact = torch, torch.get_num_threads(), artifact
        torch.set_num_threads(threads or self._before)
        card = artifact.facts.model
        self._mean, self._std = (
            torch.tensor(each, dtype=torch.float32).view(-1, 1, 1) for each in (card.mean, card.std)
        )
        layers = network(artifact)
        self._network = layers.to(memory_format=models.memory_format(layers, card.input))

    def __exit__(self, *_: object) -> None:
        self._torch.set_num_threads(self._before)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        try:
            return self._logits(self._torch.from_numpy(images)).numpy()
        except (RuntimeError, TypeError) as error:  # layers that don't fit each other
            raise CheckFailed(f"{self._artifact.path}: PyTorch can't run it: {reason(error)}") from error

    def step(self, batch: int) -> Callable[[], None]:
        images = self._torch.zeros(batch, *self._artifact.facts.model.input, dtype=self._torch.uint8)
        return functools.partial(self._logits, images)

    def _logits(self, images: torch.Tensor) -> torch.Tensor:
        with self._torch.inference_mode():
            return self._network((images.float() / 255 - self._mean) / self._std).flatten(1)


load = Session
