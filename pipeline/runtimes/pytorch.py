"""PyTorch: runs a checkpoint (BatchNorm and normalisation as trained) or its folded form, in float32 on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pipeline import artifact as artifacts
from pipeline.artifact import Artifact
from pipeline.errors import CheckFailed

if TYPE_CHECKING:
    import numpy as np
    import torch

READS = {"checkpoint": ("",), "folded": ("",)}
NEEDS = ("torch", "safetensors")
PACKAGES = ("torch",)
LAYERS = {  # what a network may be made of, and the arguments that make a layer like another one
    "Conv2d": ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode"),
    "BatchNorm2d": ("num_features", "eps", "momentum", "affine", "track_running_stats"),
    "ReLU": (),
    "Dropout": ("p",),
    "MaxPool2d": ("kernel_size", "stride", "padding", "dilation", "ceil_mode"),
    "AvgPool2d": ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
}


def describe(layers: torch.nn.Sequential) -> list[dict[str, Any]]:
    """Each layer's class and arguments, for `build` to make a network like it. CheckFailed for others."""
    return [_described(layer) for layer in layers]


def _described(layer: torch.nn.Module) -> dict[str, Any]:
    kind = type(layer).__name__
    if kind not in LAYERS or getattr(layer, "return_indices", False):
        raise CheckFailed(f"a layer {layer} is not one of those known here: expected {', '.join(LAYERS)}")
    found = {"layer": kind, **{name: getattr(layer, name) for name in LAYERS[kind]}}
    return {**found, "bias": layer.bias is not None} if kind == "Conv2d" else found


def build(description: list[dict[str, Any]]) -> torch.nn.Sequential:
    """The layers that `describe` told of, with weights of their own."""
    import torch

    unknown = {layer["layer"] for layer in description} - LAYERS.keys()
    if unknown:
        raise CheckFailed(f"a network has layers {', '.join(sorted(unknown))}: expected {', '.join(LAYERS)}")
    made = [
        (getattr(torch.nn, layer["layer"]), {k: v for k, v in layer.items() if k != "layer"}) for layer in description
    ]
    try:
        return torch.nn.Sequential(*(kind(**arguments) for kind, arguments in made))
    except (TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        raise CheckFailed(f"a network has a layer that can't be: {' '.join(str(error).split())[:200]}") from error


def network(artifact: Artifact) -> torch.nn.Module:
    """The network in an artifact, from uint8 images `[n, c, h, w]` to float32 logits `[n, classes]`, in eval mode.

    Its layers are on record. Raises CheckFailed if the weights don't fit them.
    """
    import safetensors.torch

    layers, card = build(artifact.facts["layers"]), artifact.facts["model"]
    try:
        layers.load_state_dict(safetensors.torch.load(artifacts.content(artifact)))
    except (RuntimeError, safetensors.SafetensorError) as error:
        line = " ".join(str(error).split())
        raise CheckFailed(f"{artifact.path}: its weights don't fit the layers on record: {line}") from error
    return from_pixels(layers, (card["mean"], card["std"]) if artifact.kind == "checkpoint" else None)


def from_pixels(layers: torch.nn.Sequential, normalise: tuple[float, float] | None = None) -> torch.nn.Module:
    """`layers` in eval mode behind a cast from uint8 pixels and, unless that is folded in, `(x / 255 - mean) / std`."""
    import torch

    class FromPixels(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = layers

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            x = images.float()
            if normalise:
                mean, std = normalise
                x = (x / 255 - mean) / std
            return self.layers(x).flatten(1)

    return FromPixels().eval()


class Session:
    """A network that is ready to run. Eager, channels-last: what one gets from PyTorch with no further work."""

    arithmetic = "float32"

    def __init__(self, artifact: Artifact, threads: int | None) -> None:
        import torch

        self._torch, self._before = torch, torch.get_num_threads()
        torch.set_num_threads(threads or self._before)
        self._network = network(artifact).to(memory_format=torch.channels_last)
        self._path, self._input = artifact.path, artifact.facts["model"]["input"]

    def __enter__(self) -> Session:
        return self

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
    """A session of a checkpoint or a folded network on the CPU; there is one mode."""
    return Session(artifact, threads)
