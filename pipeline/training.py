"""Images and a recipe in, a trained network out, epoch by epoch, each of which one can continue from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pipeline import artifact, console
from pipeline.dataset import Split
from pipeline.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    import torch

CHUNK = 96  # batches augmented at once: large enough to be fast, small enough to stay in tens of megabytes


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
        yield (
            network,
            figures,
            {
                "weights": network.state_dict(),
                "momentum": momentum,
                "scheduler": scheduler.state_dict(),
            },
        )


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


def weights(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A network's parameters and statistics by name, on the CPU."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}


def save(snapshot: Path, state: dict[str, Any], asked: dict[str, Any], history: list[dict[str, Any]]) -> None:
    """Write what `resume` needs: the state after an epoch, the options it was made with and the figures so far."""
    import safetensors.torch

    tensors = {f"weights.{name}": tensor.cpu().contiguous() for name, tensor in state["weights"].items()}
    for index, entry in state["momentum"].items():
        tensors[f"momentum.{index}"] = entry["momentum_buffer"].cpu().contiguous()
    notes = {"options": asked, "history": history, "scheduler": state["scheduler"]}
    artifact.save(snapshot, safetensors.torch.save(tensors, {"notes": json.dumps(notes)}))


def resume(snapshot: Path, asked: dict[str, Any], wanted: bool | None) -> tuple[dict[str, Any] | None, list]:
    """The state and history to continue from, if there is one and it is wanted."""
    if wanted is False or not snapshot.is_file():
        if wanted:
            console.say(f"{snapshot} is not there: nothing to resume, starting with epoch 1")
        return None, []
    tensors, notes = _read_snapshot(snapshot)
    other = {name: value for name, value in notes["options"].items() if asked.get(name) != value}
    if other and wanted:
        name, value = next(iter(other.items()))
        raise UsageError(
            f"{snapshot}: was begun with {name} {value}: expected {asked.get(name)}; use that, or --no-resume"
        )
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
            return {name: file.get_tensor(name) for name in file.keys()}, notes  # noqa: SIM118, it is no dict
    except (safetensors.SafetensorError, TypeError, KeyError, ValueError) as error:
        raise UsageError(f"{snapshot}: is no training to resume ({error}); delete it and train anew") from error
