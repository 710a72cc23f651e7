"""Check a model file in seconds, before any data is touched: its fields, a forward pass, export and operators."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any

import msgspec

from pipeline import console
from pipeline.errors import CheckFailed, reason
from pipeline.graph import adopt, load, passes
from pipeline.records import manifest
from pipeline.records.forms import Check, ModelCard
from pipeline.records.manifest import Artifact
from pipeline.stages import export
from pipeline.training import models
from pipeline.training.model import Model

if TYPE_CHECKING:
    import torch

NEEDS = ("torch", "onnxscript", "onnxruntime")


def run(model: str) -> Artifact:
    """Check that a model file can be trained and taken through the chain, in seconds and without its data.

    The fields of its MODEL are there, a batch passes forward and gives logits for each class, PyTorch exports it with a
    free batch, and every operator is a standard one. `train`, `study`, `sweep` and `run` begin with the same check.

    Raises UsageError for the model file, CheckFailed for the network, naming what stands in the way.
    """
    return manifest.write(None, None, facts=facts(model))


def model(name: str) -> Model:
    """The model called `name`, after it was checked."""
    facts(name)
    return models.get(name)


def facts(name: str) -> Check:
    """What a check finds out about a model."""
    path = models.file(name)
    return _facts(name, str(path), path.stat().st_mtime_ns)


@functools.cache
def _facts(name: str, path: str, _: int) -> Check:
    loaded = models.get(name)
    card = loaded.card(name)
    network = _built(loaded, path)
    _forward(network, card, path)
    _augments(loaded, path)
    graph = export.export(network, card, 18, path)
    if activation := adopt.last_activation(graph):
        console.say(f"{path}: ends with {activation}, but the loss takes logits: expected none; training suffers")
    found = Check(
        model=card,
        layers=models.layers(network, card.input),
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        batch_norms=passes.batch_norms(graph),
        operators=load.operators(graph),
    )
    try:
        return msgspec.convert(msgspec.to_builtins(found), Check)
    except msgspec.ValidationError as error:
        raise CheckFailed(f"{path}: can't be put on record: {reason(error)}") from error


def _built(loaded: Model, path: str) -> torch.nn.Module:
    import torch

    if isinstance(loaded.network, torch.nn.Module):
        raise CheckFailed(f"{path}: network is a module: expected a class or function that makes one")
    try:
        network = loaded.build()
    except (Exception, SystemExit) as error:  # whatever a model file does wrong
        raise CheckFailed(f"{path}: network() fails: {reason(error)}") from error
    if not isinstance(network, torch.nn.Module):
        raise CheckFailed(f"{path}: network() gives {type(network).__name__}: expected a torch.nn.Module")
    for name, layer in network.named_modules():
        if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm) and layer.running_var is None:
            raise CheckFailed(f"{path}: {name} is a BatchNorm without running statistics: expected track_running_stats")
    taken = inspect.signature(network.forward).parameters.values()
    needed = [each.name for each in taken if each.default is each.empty and each.kind < each.VAR_POSITIONAL]
    if len(needed) > 1:
        raise CheckFailed(f"{path}: the network takes {', '.join(needed)}: expected one input, the images")
    if not any(parameter.numel() for parameter in network.parameters()):
        raise CheckFailed(f"{path}: the network has no parameters: expected one that can be trained")
    return network.eval()


def _forward(network: torch.nn.Module, card: ModelCard, path: str) -> None:
    """CheckFailed unless two images get logits `[2, classes]`, or `[2, classes, 1, 1]`, and one alone the same."""
    import torch

    images, n = torch.randn(2, *card.input, generator=torch.Generator().manual_seed(0)), 2
    try:
        with torch.inference_mode():
            output: Any = network(images)
            n = 1
            alone: Any = network(images[:1])
    except (Exception, SystemExit) as error:
        raise CheckFailed(f"{path}: a batch [{n}, {', '.join(map(str, card.input))}] fails: {reason(error)}") from error
    expected = f"expected logits [2, {len(card.classes)}], one for each class"
    if not isinstance(output, torch.Tensor):
        several = isinstance(output, tuple | list | dict)
        kind = f"a {type(output).__name__} of {len(output)}" if several else type(output).__name__
        raise CheckFailed(f"{path}: the network gives {kind}: {expected}")
    shape = list(output.shape)
    if shape[:2] != [2, len(card.classes)] or any(edge != 1 for edge in shape[2:]):
        what = (
            " (a map for each class, as for segmentation)" if len(shape) > 2 and shape[1] == len(card.classes) else ""
        )
        what = " (one number, as for regression)" if shape == [2, 1] else what
        raise CheckFailed(f"{path}: the network gives {shape}{what}: {expected}")
    if list(alone.shape) != (single := [1, *shape[1:]]):
        raise CheckFailed(f"{path}: one image alone gives {list(alone.shape)}: expected {single}")
    if not output.isfinite().all():
        raise CheckFailed(f"{path}: the network, untrained, gives logits that are not finite numbers")
    if not torch.allclose(output[:1], alone, rtol=0, atol=1e-3 * float(output.abs().max())):
        raise CheckFailed(f"{path}: an answer depends on the batch's other images, or on chance: expected neither")


def _augments(loaded: Model, path: str) -> None:
    """CheckFailed unless a model's own augmentation takes two images, and gives as many of the same shape."""
    import torch

    if loaded.augment is None:
        return
    images = torch.rand(2, *loaded.input)
    try:
        shape = list(loaded.augment(images.clone(), torch.Generator(), loaded.recipes["default"], 1.0).shape)
    except (Exception, SystemExit) as error:
        taken = "expected augment(pixels, generator, recipe, strength)"
        raise CheckFailed(f"{path}: augment fails: {reason(error)}: {taken}") from error
    if shape != list(images.shape):
        raise CheckFailed(f"{path}: augment gives {shape}: expected {list(images.shape)}")


def show(check: Artifact) -> None:
    """The layer table and what the graph is made of."""
    facts = check.facts
    rows = [[each.layer, str(each.output), f"{each.parameters:,}"] for each in facts.layers]
    console.table(["layer", "output shape", "parameters"], rows, title=facts.model.title)
    console.result(f"{facts.parameters:,} parameters, {facts.batch_norms} BatchNorm")
    console.result(f"operators: {', '.join(f'{count} {name}' for name, count in facts.operators.items())}")
    console.result(f"{facts.model.name} can be trained and taken through the chain")
