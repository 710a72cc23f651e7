"""Images and a recipe in, a trained network out, epoch by epoch, each of which one can continue from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Trainer:
    """A recipe of a model, to be trained on a device ("cpu", "cuda") in a precision ("float32", "bfloat16")."""

    model: ModuleType
    recipe: Any
    seed: int
    device: str = "cpu"
    precision: str = "float32"

    def fit(
        self, images: np.ndarray, labels: np.ndarray, state: dict[str, Any] | None = None
    ) -> Iterator[tuple[torch.nn.Sequential, dict[str, float], dict[str, Any]]]:
        """Train on uint8 images `[n, c, h, w]` with integer labels `[n]`, one epoch a step.

        Yields after every epoch the network, that epoch's figures, and the state from which a later call
        continues as if it never had stopped: every epoch draws its random numbers from (seed, epoch) alone.
        """
        import torch

        _deterministic()
        recipe = self.recipe
        torch.manual_seed(self.seed)
        network = self.model.network(recipe.dropout).to(self.device, memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(network.parameters(), lr=recipe.lr, momentum=recipe.momentum)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, recipe.step_size, recipe.gamma)
        if state:
            network.load_state_dict(state["weights"])
            optimizer.load_state_dict({**optimizer.state_dict(), "state": state["momentum"]})
            optimizer.param_groups[0]["lr"] = state["scheduler"]["_last_lr"][0]
            scheduler.load_state_dict(state["scheduler"])
        pixels, targets = torch.from_numpy(images).to(self.device), torch.from_numpy(labels).long().to(self.device)
        for epoch in range(scheduler.last_epoch, recipe.epochs):
            figures = self._epoch(network, optimizer, pixels, targets, epoch)
            scheduler.step()
            momentum = optimizer.state_dict()["state"]
            now = {"weights": network.state_dict(), "momentum": momentum, "scheduler": scheduler.state_dict()}
            yield network, figures, now

    def _epoch(
        self,
        network: torch.nn.Sequential,
        optimizer: torch.optim.Optimizer,
        pixels: torch.Tensor,
        targets: torch.Tensor,
        epoch: int,
    ) -> dict[str, float]:
        """One pass over all images; gives its figures. Shows loss, batch, accuracy and it/s on the way."""
        import torch
        import torch.nn.functional as F

        torch.manual_seed((self.seed << 16) + epoch)  # dropout's
        size, n = self.recipe.batch_size, len(pixels)
        batches = -(-n // size)
        loss_sum, correct = (torch.zeros((), dtype=kind, device=self.device) for kind in (torch.float32, torch.int64))
        kind = torch.device(self.device).type
        network.train()
        with console.progress(batches, "it", f"epoch {epoch + 1}") as bar:
            for number, (x, y) in enumerate(self._batches(pixels, targets, epoch)):
                with torch.autocast(kind, torch.bfloat16, enabled=self.precision == "bfloat16"):
                    logits = network(x).flatten(1).float()
                loss = F.cross_entropy(logits, y, label_smoothing=self.recipe.label_smoothing)  # has the log-softmax
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                loss_sum += loss.detach() * len(y)
                correct += (logits.detach().argmax(1) == y).sum()
                if bar.update() or number + 1 == batches:
                    accuracy = 100 * correct.item() / min((number + 1) * size, n)
                    text = f"Loss={loss.item():.6f} Batch_id={number} Accuracy={accuracy:.2f}"
                    bar.set_description(text, refresh=False)
        return {
            "epoch": epoch + 1,
            "lr": optimizer.param_groups[0]["lr"],
            "train_loss": loss_sum.item() / n,
            "train_accuracy": correct.item() / n,
        }

    def _batches(
        self, pixels: torch.Tensor, targets: torch.Tensor, epoch: int
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Augmented, normalised float32 batches `[b, c, h, w]` and their targets `[b]`, in the epoch's own order.

        Augmented by the chunk, since one call a batch costs more.
        """
        import torch

        generator = torch.Generator().manual_seed((self.seed << 16) + epoch)
        strength = self.recipe.ease ** (epoch // self.recipe.step_size)
        order = torch.randperm(len(pixels), generator=generator).to(pixels.device)
        size = self.recipe.batch_size
        for chunk in order.split(CHUNK * size):
            x = pixels[chunk].float() / 255
            if strength > 0:
                x = self.model.augment(x, generator, self.recipe, strength)
            x = ((x - self.model.MEAN) / self.model.STD).contiguous(memory_format=torch.channels_last)
            yield from zip(x.split(size), targets[chunk].split(size), strict=True)


def _deterministic() -> None:
    """Float32 that is float32, and the same kernels every time, where there is a CUDA device."""
    import torch

    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


def measure(model: ModuleType, network: torch.nn.Module, test: Split, device: str) -> tuple[float, np.ndarray]:
    """Mean cross-entropy and predictions `[n]` of a network in evaluation mode, in float32."""
    import torch
    import torch.nn.functional as F

    _deterministic()
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
