"""Recipe in, checkpoint out: trains a model with its given schedule and keeps the last epoch's weights."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, Literal

import models
from pipeline import artifact, console, dataset
from pipeline.artifact import Artifact
from pipeline.dataset import Split
from pipeline.errors import UsageError
from pipeline.stages import Data, Out

if TYPE_CHECKING:
    import numpy as np
    import torch

ORDER = 10
KIND, FILE = "checkpoint", "{model}.safetensors"
SNAPSHOT, HISTORY = "{model}.training.safetensors", "{model}.history.csv"
CHUNK = 96  # batches augmented at once: large enough to be fast, small enough to stay in tens of megabytes


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
    epochs: Annotated[int | None, "Passes over the training images. This and the numbers below: by default the recipe's."] = None,
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
    import safetensors.torch

    given = {name: value for name, value in locals().items() if name not in ("safetensors",)}
    asked = options(**given)
    recipe, place = _recipe(**given), _device(device)
    train, test = dataset.train(data), dataset.test(data)
    snapshot = out / SNAPSHOT.format(model=model)
    state, history = _resume(snapshot, asked, resume)
    definition = models.get(model)
    settings = {"seed": seed, "device": place, "precision": asked["precision"], "state": state}
    for network, figures, state in fit(definition, recipe, train.images, train.labels, **settings):
        loss, predictions = measure(definition, network, test, place)
        correct = int((predictions == test.labels).sum())
        console.say(f"Test set: Average loss: {loss:.4f}, Accuracy: {correct}/{len(test)} ({correct / len(test):.2%})\n")
        history.append({**figures, "test_loss": loss, "test_accuracy": correct / len(test)})
        _save(snapshot, state, asked, history)
    made = artifact.write(
        out / FILE.format(model=model),
        safetensors.torch.save(_weights(network)),
        kind=KIND,
        parents=train.digests | test.digests,
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


def options(model: str, *, seed: int, device: str, precision: str, **numbers: Any) -> dict[str, Any]:
    """What a checkpoint depends on: the recipe with the numbers that were given, the seed, the arithmetic."""
    recipe = dataclasses.asdict(_recipe(model, **numbers))
    return {"model": model, "seed": seed, "precision": _precision(precision, _device(device)), **recipe}


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


def measure(model: ModuleType, network: torch.nn.Module, test: Split, device: str) -> tuple[float, np.ndarray]:
    """Mean cross-entropy and predictions `[n]` of a network in evaluation mode, in float32."""
    import torch
    import torch.nn.functional as F

    network.eval()
    with torch.inference_mode():
        parts = torch.from_numpy(test.images).split(1000)
        logits = [network((part.to(device).float() / 255 - model.MEAN) / model.STD).flatten(1).cpu() for part in parts]
        joined = torch.cat(logits)
        return F.cross_entropy(joined, torch.from_numpy(test.labels)).item(), joined.argmax(1).numpy()


def _weights(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}


def _save(snapshot: Path, state: dict[str, Any], asked: dict[str, Any], history: list[dict[str, Any]]) -> None:
    import safetensors.torch

    tensors = {f"weights.{name}": tensor.cpu().contiguous() for name, tensor in state["weights"].items()}
    for index, entry in state["momentum"].items():
        tensors[f"momentum.{index}"] = entry["momentum_buffer"].cpu().contiguous()
    notes = {"options": asked, "history": history, "scheduler": state["scheduler"]}
    artifact.save(snapshot, safetensors.torch.save(tensors, {"notes": json.dumps(notes)}))


def _resume(snapshot: Path, asked: dict[str, Any], resume: bool | None) -> tuple[dict[str, Any] | None, list]:
    """The state and history to continue from, if there is one and it is wanted."""
    if resume is False or not snapshot.is_file():
        if resume:
            console.say(f"{snapshot} is not there: nothing to resume, starting with epoch 1")
        return None, []
    tensors, notes = _read_snapshot(snapshot)
    other = {name: value for name, value in notes["options"].items() if asked.get(name) != value}
    if other and resume:
        name, value = next(iter(other.items()))
        raise UsageError(f"{snapshot}: was begun with {name} {value}: expected {asked.get(name)}; use that, or --no-resume")
    if other:
        return None, []
    done = len(notes["history"])
    console.say(f"resuming after epoch {done} of {asked['epochs']} (--no-resume starts anew)")
    momentum = {int(name[9:]): {"momentum_buffer": t} for name, t in tensors.items() if name.startswith("momentum.")}
    weights = {name[8:]: tensor for name, tensor in tensors.items() if name.startswith("weights.")}
    return {"weights": weights, "momentum": momentum, "scheduler": notes["scheduler"]}, notes["history"]


def _read_snapshot(snapshot: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    import safetensors

    try:
        with safetensors.safe_open(snapshot, "pt") as file:
            notes = json.loads(file.metadata()["notes"])
            return {name: file.get_tensor(name) for name in file.keys()}, notes
    except (safetensors.SafetensorError, TypeError, KeyError, ValueError) as error:
        raise UsageError(f"{snapshot}: is no training to resume ({error}); delete it and train anew") from error


def _write_history(path: Path, history: list[dict[str, Any]], checkpoint: Artifact) -> None:
    text = io.StringIO()
    table = csv.DictWriter(text, list(history[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(history)
    artifact.write(path, text.getvalue().encode(), kind="history", parents=[checkpoint])


def show(checkpoint: Artifact) -> None:
    """The result of a training in a line."""
    found = checkpoint.facts["reference"]
    console.result(
        f"{checkpoint.facts['parameters']:,} parameters, last epoch: train accuracy {checkpoint.facts['train_accuracy']:.2%}, "
        f"test accuracy {found['correct']}/{found['n']} ({found['correct'] / found['n']:.2%})"
    )


def fit(
    model: ModuleType,
    recipe: Any,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    seed: int,
    device: str = "cpu",
    precision: str = "float32",
    state: dict[str, Any] | None = None,
) -> Iterator[tuple[torch.nn.Sequential, dict[str, float], dict[str, Any]]]:
    """Train on uint8 `[n, c, h, w]` images with integer labels `[n]`, one epoch a step.

    Yields after every epoch the network, that epoch's figures, and the state from which a later call
    continues as if it never had stopped: every epoch draws its random numbers from (seed, epoch) alone.
    """
    import torch

    torch.manual_seed(seed)
    network = model.network(recipe.dropout).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), lr=recipe.lr, momentum=recipe.momentum)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, recipe.step_size, recipe.gamma)
    if state:
        network.load_state_dict(state["weights"])
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state["momentum"]})
        optimizer.param_groups[0]["lr"] = state["scheduler"]["_last_lr"][0]
        scheduler.load_state_dict(state["scheduler"])
    pixels, targets = torch.from_numpy(images).to(device), torch.from_numpy(labels).long().to(device)
    for epoch in range(scheduler.last_epoch, recipe.epochs):
        figures = _epoch(model, recipe, network, optimizer, pixels, targets, seed, epoch, device, precision)
        scheduler.step()
        momentum = optimizer.state_dict()["state"]
        yield network, figures, {
            "weights": network.state_dict(),
            "momentum": momentum,
            "scheduler": scheduler.state_dict(),
        }


def _epoch(model, recipe, network, optimizer, pixels, targets, seed, epoch, device, precision) -> dict[str, float]:
    import torch
    import torch.nn.functional as F

    torch.manual_seed((seed << 16) + epoch)  # dropout's
    generator = torch.Generator().manual_seed((seed << 16) + epoch)
    strength = recipe.ease ** (epoch // recipe.step_size)
    order = torch.randperm(len(pixels), generator=generator)
    total_loss, correct = torch.zeros((), device=device), torch.zeros((), dtype=torch.int64, device=device)
    network.train()
    batches = -(-len(order) // recipe.batch_size)
    with console.progress(batches, "it", f"epoch {epoch + 1}") as bar:
        for number, (x, y) in enumerate(_batches(model, recipe, pixels, targets, order, generator, strength)):
            with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bfloat16"):
                logits = network(x).flatten(1).float()
            loss = F.cross_entropy(logits, y, label_smoothing=recipe.label_smoothing)  # includes the log-softmax
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total_loss += loss.detach() * len(y)
            correct += (logits.detach().argmax(1) == y).sum()
            if bar.update() or number + 1 == batches:
                seen = min((number + 1) * recipe.batch_size, len(order))
                accuracy = 100 * correct.item() / seen
                bar.set_description(f"Loss={loss.item():.6f} Batch_id={number} Accuracy={accuracy:.2f}", refresh=False)
    return {
        "epoch": epoch + 1,
        "lr": optimizer.param_groups[0]["lr"],
        "train_loss": total_loss.item() / len(order),
        "train_accuracy": correct.item() / len(order),
        "seconds": bar.format_dict["elapsed"],
    }


def _batches(model, recipe, pixels, targets, order, generator, strength) -> Iterator[tuple]:
    """Augmented, normalised batches in the given order; augmented by the chunk, since one call a batch costs more."""
    import torch

    for chunk in order.to(pixels.device).split(CHUNK * recipe.batch_size):
        x = pixels[chunk].float() / 255
        if strength > 0:
            x = model.augment(x, generator, recipe, strength)
        x = ((x - model.MEAN) / model.STD).contiguous(memory_format=torch.channels_last)
        yield from zip(x.split(recipe.batch_size), targets[chunk].split(recipe.batch_size), strict=True)
