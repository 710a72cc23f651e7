"""Checkpoint in, folded network out: BatchNorm and pixel normalisation become part of the convolutions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline import artifact, console, dataset
from pipeline.artifact import Artifact
from pipeline.errors import CheckFailed
from pipeline.runtimes import pytorch
from pipeline.stages import Data, Out, card, output

if TYPE_CHECKING:
    import torch

ORDER = 20
KIND, FILE = "folded", "{model}.folded.safetensors"
NEEDS = ("torch", "safetensors")
TOLERANCE = 1e-3  # the largest logit difference that is rounding, not a mistake


def run(checkpoint: Artifact, *, out: Out, data: Data) -> Artifact:
    """Fold BatchNorm, the normalisation and 1/255 into the convolutions, and drop Dropout.

    Computed in float64, stored in float32. Compared with the unfolded network on all test images.

    Raises CheckFailed if a logit differs by more than 1e-3.
    """
    import safetensors.torch

    model = checkpoint.facts["model"]
    unfolded = pytorch.network(checkpoint)
    layers = fold(unfolded.layers, mean=model["mean"], std=model["std"])
    description = pytorch.describe(layers)
    weights = {name: tensor.contiguous() for name, tensor in layers.state_dict().items()}
    rebuilt = pytorch.build(description)
    rebuilt.load_state_dict(weights)
    difference = _largest_difference(unfolded, pytorch.from_pixels(rebuilt), dataset.test(data).images)
    if not difference <= TOLERANCE:
        raise CheckFailed(
            f"{checkpoint.path}: folded, a logit differs by {difference:.3g}: expected at most {TOLERANCE}"
        )
    return artifact.write(
        output(out, FILE, checkpoint),
        safetensors.torch.save(weights),
        kind=KIND,
        parents=[checkpoint],
        versions=artifact.versions("torch", "safetensors"),
        facts={
            **card(checkpoint),
            "layers": description,
            "parameters": sum(tensor.numel() for tensor in weights.values()),
            "largest_logit_difference": difference,
        },
    )


def show(folded: Artifact) -> None:
    """The result of a folding in a line."""
    facts = folded.facts
    console.result(
        f"{facts['parameters']:,} parameters; largest logit difference to the checkpoint over the test set: "
        f"{facts['largest_logit_difference']:.2g}"
    )


def fold(layers: torch.nn.Sequential, *, mean: float, std: float) -> torch.nn.Sequential:
    """The same function with fewer layers, for raw pixels 0..255 instead of `(x / 255 - mean) / std`.

    1. Dropout does nothing at inference: it goes.
    2. BatchNorm2d after Conv2d: w' = w * g, b' = (b - running_mean) * g + beta, with g = gamma / sqrt(var + eps).
       Source: B. Jacob et al., arXiv:1712.05877, section 3.2.
    3. The normalisation before the first Conv2d: w' = w / (255 std), b' = b - sum(w) * mean / std. Exact only where
       that convolution doesn't pad, since padding adds zeros after the normalisation.

    Raises CheckFailed for a BatchNorm2d that doesn't follow a Conv2d, and where rule 3 isn't exact.
    """
    import torch
    from torch import nn

    kept = [layer for layer in layers if not isinstance(layer, nn.Dropout | nn.Dropout2d | nn.Identity)]  # 1
    folded: list[nn.Module] = []
    for layer in kept:
        if isinstance(layer, nn.BatchNorm2d):  # 2
            if not folded or type(folded[-1]) is not nn.Conv2d:
                raise CheckFailed("a BatchNorm2d that doesn't follow a Conv2d can't be folded")
            folded[-1] = _into_conv(folded[-1], *_scale_and_shift(layer))
        else:
            folded.append(_double(layer))
    first = next(iter(folded), None)  # 3
    if type(first) is not nn.Conv2d or first.padding not in ((0, 0), "valid"):
        raise CheckFailed("the normalisation folds into a first Conv2d without padding only")
    shift = (-mean / std) * first.weight.sum((1, 2, 3))
    with torch.no_grad():
        folded[0] = _into_conv(first, torch.ones_like(shift), shift)
        folded[0].weight /= 255 * std
    return nn.Sequential(*folded).float().eval()


def _double(layer: torch.nn.Module) -> torch.nn.Module:
    import copy

    return copy.deepcopy(layer).double()


def _scale_and_shift(norm: torch.nn.BatchNorm2d) -> tuple[torch.Tensor, torch.Tensor]:
    if norm.running_var is None:
        raise CheckFailed("a BatchNorm2d without running statistics can't be folded")
    norm = _double(norm)
    scale = (norm.running_var + norm.eps).rsqrt()
    shift = -norm.running_mean * scale
    return (scale * norm.weight, shift * norm.weight + norm.bias) if norm.affine else (scale, shift)


def _into_conv(conv: torch.nn.Conv2d, scale: torch.Tensor, shift: torch.Tensor) -> torch.nn.Conv2d:
    """The convolution whose output is `scale * conv(x) + shift`, a number each per output channel."""
    import torch

    result = pytorch.build([{**pytorch.describe([conv])[0], "bias": True}])[0].double()
    with torch.no_grad():
        result.weight.copy_(conv.weight * scale.view(-1, 1, 1, 1))
        result.bias.copy_((conv.bias * scale if conv.bias is not None else 0) + shift)
    return result


def _largest_difference(one: torch.nn.Module, other: torch.nn.Module, images) -> float:
    import torch

    with torch.inference_mode():
        parts = torch.from_numpy(images).split(1000)
        return torch.stack([(one(part) - other(part)).abs().max() for part in parts]).max().item()  # NaN stays NaN
