"""Recipe in, checkpoint out: trains a model with its given schedule and keeps the last epoch's weights."""

from __future__ import annotations

import csv
import dataclasses
import io
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import models
from pipeline import artifact, console, dataset, training
from pipeline.artifact import Artifact
from pipeline.dataset import Split
from pipeline.errors import UsageError
from pipeline.stages import Data, Out

if TYPE_CHECKING:
    import numpy as np

ORDER = 10
KIND, FILE = "checkpoint", "{model}.safetensors"
SNAPSHOT, HISTORY = "{model}.training.safetensors", "{model}.history.csv"


def run(
    model: str,
    *,
    out: Out,
    data: Data,
    seed: Annotated[int, "Seed of everything that is random."] = 0,
    device: Annotated[Literal["auto", "cpu", "cuda"], "Where to train."] = "auto",
    precision: Annotated[
        Literal["auto", "float32", "bfloat16"], "Arithmetic of the training; auto: bfloat16 where the device has it."
    ] = "auto",
    resume: Annotated[
        bool | None, "Continue an interrupted training; by default if there is one with the same options."
    ] = None,
    limit: Annotated[int | None, "Train on the first so many images only: for a try, not for a result."] = None,
    epochs: Annotated[
        int | None, "Passes over the training images. This and the numbers below: by default the recipe's."
    ] = None,
    batch_size: Annotated[int | None, "Images a step."] = None,
    lr: Annotated[float | None, "Learning rate of SGD."] = None,
    momentum: Annotated[float | None, "Momentum of SGD."] = None,
    step_size: Annotated[int | None, "Epochs between learning-rate steps (StepLR)."] = None,
    gamma: Annotated[float | None, "Factor of a learning-rate step (StepLR)."] = None,
    dropout: Annotated[float | None, "Share of activations dropped."] = None,
    label_smoothing: Annotated[float | None, "Share of the target spread over all classes."] = None,
    rotation: Annotated[float | None, "Augmentation: degrees, either way."] = None,
    shift: Annotated[float | None, "Augmentation: pixels, either way."] = None,
    scale: Annotated[float | None, "Augmentation: relative, either way."] = None,
    shear: Annotated[float | None, "Augmentation: degrees, either way."] = None,
    elastic: Annotated[float | None, "Augmentation: pixels, standard deviation of a smooth field."] = None,
    ease: Annotated[float | None, "Augmentation: factor on all of it at a learning-rate step."] = None,
) -> Artifact:
    """Train a model with its recipe; the last epoch's weights are the result.

    After every epoch the test set is measured for the log; nothing is chosen by it. An interrupted training continues
    after its last whole epoch and ends with the same weights as an undisturbed one.
    """
    given = dict(locals())
    import safetensors.torch

    asked = options(**given)
    recipe, place = _recipe(**given), _device(device)
    train, test = dataset.train(data), dataset.test(data)
    snapshot = out / SNAPSHOT.format(model=model)
    state, history = training.resume(snapshot, asked, resume)
    definition = models.get(model)
    images, labels = train.images[:limit], train.labels[:limit]
    settings = {"seed": seed, "device": place, "precision": asked["precision"], "state": state}
    for network, figures, state in training.fit(definition, recipe, images, labels, **settings):
        loss, predictions = training.measure(definition, network, test, place)
        correct = int((predictions == test.labels).sum())
        console.say(
            f"Test set: Average loss: {loss:.4f}, Accuracy: {correct}/{len(test)} ({correct / len(test):.2%})\n"
        )
        history.append({**figures, "test_loss": loss, "test_accuracy": correct / len(test)})
        if len(history) < recipe.epochs:
            training.save(snapshot, state, asked, history)
    made = artifact.write(
        out / FILE.format(model=model),
        safetensors.torch.save(training.weights(network)),
        kind=KIND,
        parents=train.digests,
        options=asked,
        versions=artifact.versions("torch", "safetensors", "numpy"),
        facts={
            "model": models.card(model),
            "reference": reference(test, predictions),
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "device": place,
            "train_accuracy": history[-1]["train_accuracy"],
            "test_accuracy": history[-1]["test_accuracy"],
        },
    )
    _write_history(out / HISTORY.format(model=model), history, made)
    snapshot.unlink(missing_ok=True)
    return made


def options(
    model: str, *, seed: int, device: str, precision: str, limit: int | None = None, **numbers: Any
) -> dict[str, Any]:
    """What a checkpoint depends on: the recipe with the numbers that were given, the seed, the arithmetic."""
    if limit is not None and limit < 2:
        raise UsageError(f"--limit: expected at least 2 images, received {limit}")
    recipe = dataclasses.asdict(_recipe(model, **numbers))
    arithmetic = _precision(precision, _device(device))
    return {"model": model, "seed": seed, "precision": arithmetic, "limit": limit, **recipe}


def _recipe(model: str, **given: Any) -> Any:
    """The model's recipe with the numbers that were given in place of its own; UsageError for one out of range."""
    recipe = models.get(model).RECIPE
    names = {field.name for field in dataclasses.fields(recipe)}
    recipe = dataclasses.replace(recipe, **{k: v for k, v in given.items() if k in names and v is not None})
    positive = ("epochs", "batch_size", "lr", "step_size")
    for name, value in dataclasses.asdict(recipe).items():
        least = 1 if isinstance(value, int) and name in positive else 0
        most = 1 if name in ("dropout", "label_smoothing", "momentum", "gamma", "ease") else float("inf")
        if not least <= value <= most or (name in positive and value == 0):
            raise UsageError(f"--{name.replace('_', '-')}: expected {least} to {most:g}, received {value}")
    return recipe


def _device(device: str) -> str:
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: PyTorch sees no CUDA device; expected one, or --device cpu")
    return device


def _precision(precision: str, device: str) -> str:
    """bfloat16 only where it is arithmetic of the device's own: emulated, it is slower than float32."""
    import torch

    if precision != "auto":
        return precision
    capabilities = torch.cpu.get_capabilities() if device == "cpu" else {}
    native = torch.cuda.is_bf16_supported() if device == "cuda" else capabilities.get("avx512_bf16", False)
    return "bfloat16" if native else "float32"


def reference(test: Split, predictions: np.ndarray) -> dict[str, Any]:
    """The answers that every later form is held against: with the labels, the wrong ones tell all of them."""
    wrong = (predictions != test.labels).nonzero()[0]
    return {
        "name": test.name,
        "sha256": test.digests,
        "n": len(test),
        "correct": len(test) - len(wrong),
        "wrong": {str(index): int(predictions[index]) for index in wrong},
    }


def _write_history(path: Path, history: list[dict[str, Any]], checkpoint: Artifact) -> None:
    text = io.StringIO()
    table = csv.DictWriter(text, list(history[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(history)
    artifact.write(path, text.getvalue().encode(), kind="history", parents=[checkpoint], options=checkpoint.options)


def show(checkpoint: Artifact) -> None:
    """The result of a training in a line."""
    facts = checkpoint.facts
    console.result(
        f"{facts['parameters']:,} parameters; last epoch: train accuracy {facts['train_accuracy']:.2%}, "
        f"test accuracy {facts['test_accuracy']:.2%}"
    )
