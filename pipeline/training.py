"""Images and a recipe in, a trained network out, epoch by epoch, each of which one can continue from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pipeline import console, machine
from pipeline.dataset import Split

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
    threads: int = 1  # of the processor; another number sums in another order
    quiet: bool = False  # no progress bar

    def fit(
        self, images: np.ndarray, labels: np.ndarray, state: dict[str, Any] | None = None
    ) -> Iterator[tuple[torch.nn.Sequential, dict[str, float], dict[str, Any]]]:
        """Train on uint8 images `[n, c, h, w]` with integer labels `[n]`, one epoch a step.

        Yields after every epoch the network, that epoch's figures, and the state from which a later call
        continues as if it never had stopped: every epoch draws its random numbers from (seed, epoch) alone.
        """
        import torch

        from pipeline import onednn

        _deterministic()
        machine.keep_freed_memory()
        torch.set_num_threads(self.threads)
        torch.manual_seed(self.seed)
        network = self.model.network(self.recipe.dropout).to(self.device)
        fast = self.device == "cpu" and onednn.usable(network, getattr(torch, self.precision))
        if not fast:
            network.to(memory_format=torch.channels_last)
        # On the CPU, the fused optimizer takes memory as it lies: right for weights and gradients of one layout only.
        how = {"lr": self.recipe.lr, "momentum": self.recipe.momentum, "fused": fast}
        optimizer = torch.optim.SGD(network.parameters(), **how)
        if state:
            network.load_state_dict(state["weights"])
            optimizer.load_state_dict({**optimizer.state_dict(), "state": state["momentum"]})
        pixels, targets = torch.from_numpy(images).to(self.device), torch.from_numpy(labels).long().to(self.device)
        for epoch in range(state["epoch"] if state else 0, self.recipe.epochs):
            figures = self._epoch(network, optimizer, pixels, targets, epoch, fast)
            momentum = optimizer.state_dict()["state"]
            yield network, figures, {"weights": network.state_dict(), "momentum": momentum, "epoch": epoch + 1}

    def _epoch(
        self,
        network: torch.nn.Sequential,
        optimizer: torch.optim.Optimizer,
        pixels: torch.Tensor,
        targets: torch.Tensor,
        epoch: int,
        fast: bool,
    ) -> dict[str, float]:
        """One pass over all images; gives its figures. Shows loss, batch, accuracy and it/s on the way."""
        import torch
        import torch.nn.functional as F

        torch.manual_seed((self.seed << 16) + epoch)  # dropout's
        size, n = self.recipe.batch_size, len(pixels)
        batches = -(-n // size)
        loss_sum, correct = (torch.zeros((), dtype=kind, device=self.device) for kind in (torch.float32, torch.int64))
        forward = self._forward(network.train(), fast)
        with console.progress(batches, "it", f"epoch {epoch + 1}", quiet=self.quiet) as bar:
            for number, (x, y) in enumerate(self._batches(pixels, targets, epoch)):
                optimizer.param_groups[0]["lr"] = learning_rate(self.recipe, epoch + number / batches)
                logits = forward(x)
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
            "lr": learning_rate(self.recipe, epoch),
            "train_loss": loss_sum.item() / n,
            "train_accuracy": correct.item() / n,
        }

    def _forward(self, network: torch.nn.Sequential, fast: bool) -> Callable[[torch.Tensor], torch.Tensor]:
        """The network as a function from normalised float32 images `[b, c, h, w]` to float32 logits `[b, classes]`."""
        import torch

        from pipeline import onednn

        kind = getattr(torch, self.precision)
        if fast:
            return lambda images: onednn.forward(network, images, kind)

        def general(images: torch.Tensor) -> torch.Tensor:
            with torch.autocast(torch.device(self.device).type, kind, enabled=kind is not torch.float32):
                return network(images.contiguous(memory_format=torch.channels_last)).flatten(1).float()

        return general

    def _batches(
        self, pixels: torch.Tensor, targets: torch.Tensor, epoch: int
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Augmented, normalised float32 batches `[b, c, h, w]` and their targets `[b]`, in the epoch's own order.

        Augmented by the chunk, since one call a batch costs more.
        """
        import torch

        generator = torch.Generator().manual_seed((self.seed << 16) + epoch)
        strength = augmentation(self.recipe, epoch)
        order = torch.randperm(len(pixels), generator=generator).to(pixels.device)
        size = self.recipe.batch_size
        for chunk in order.split(CHUNK * size):
            x = pixels[chunk].float() / 255
            if strength > 0:
                x = self.model.augment(x, generator, self.recipe, strength)
            x = x.sub_(self.model.MEAN).div_(self.model.STD)
            yield from zip(x.split(size), targets[chunk].split(size), strict=True)


def learning_rate(recipe: Any, epochs: float) -> float:
    """The learning rate after so many epochs (with a fraction). Schedule "step": PyTorch's StepLR; "linear": up from 0
    over the share `warmup` of the training, then down to 0."""
    if recipe.schedule == "step":
        return recipe.lr * recipe.gamma ** (int(epochs) // recipe.step_size)
    done = epochs / recipe.epochs
    return recipe.lr * (done / recipe.warmup if done < recipe.warmup else (1 - done) / (1 - recipe.warmup))


def augmentation(recipe: Any, epoch: int) -> float:
    """How much of the recipe's augmentation an epoch gets: `ease` times as much after each learning-rate step, or,
    with the linear schedule, less from epoch to epoch until the last one has `ease` of it."""
    if recipe.schedule == "step":
        return recipe.ease ** (epoch // recipe.step_size)
    return 1 - (1 - recipe.ease) * epoch / max(recipe.epochs - 1, 1)


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
