"""Train a network epoch by epoch; training can continue after any of them."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from pipeline import console
from pipeline.data.imagesets import ImageSet
from pipeline.errors import CheckFailed, reason
from pipeline.graph import run
from pipeline.machine import host as machine
from pipeline.training import models
from pipeline.training.augmentation import augment
from pipeline.training.model import Model, Recipe

if TYPE_CHECKING:
    import numpy as np
    import torch

    from pipeline.training.loss import Loss

    Step = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None, float], tuple[torch.Tensor, torch.Tensor]]

# Images augmented at once: large enough to be fast, small enough to stay in tens of megabytes.
CHUNK, VALUES = 6144, 6144 * 28 * 28


@dataclass(frozen=True)
class Trainer:
    """A recipe of a model, to be trained on a device ("cpu", "cuda") in a precision ("float32", "bfloat16")."""

    model: Model
    recipe: Recipe
    seed: int
    device: str = "cpu"
    precision: str = "float32"
    threads: int = 1  # of the processor; another number sums in another order
    quiet: bool = False  # no progress bar

    @classmethod
    def of(cls, options: Mapping[str, Any], *, quiet: bool = False) -> Trainer:
        """Return the trainer for complete options, as `recipe.options` or an earlier version's record has them."""
        recipe = Recipe(**{field.name: options[field.name] for field in fields(Recipe) if field.name in options})
        seed, device, precision = options["seed"], options["device"], options["precision"]
        return cls(models.get(options["model"]), recipe, seed, device, precision, options["train_threads"], quiet)

    def fit(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        teacher: np.ndarray | None = None,
        begun: Mapping[str, torch.Tensor] | None = None,
        done: int = 0,
    ) -> Iterator[tuple[torch.nn.Module, dict[str, float], dict[str, torch.Tensor]]]:
        """Train on uint8 images `[n, c, h, w]` with integer labels `[n]`, one epoch a step.

        `teacher` has a teacher's float32 logits `[n, classes]` for them, if the loss is to use those, too.

        Yields after every epoch the network, that epoch's figures, and a copy of the state. With it (`begun`) and the
        number of epochs `done`, a later call continues as if training had never stopped: every epoch draws its random
        numbers from (seed, epoch) alone.
        """
        import torch

        from pipeline.training import onednn
        from pipeline.training.loss import Loss

        _deterministic()
        machine.keep_freed_memory()
        torch.set_num_threads(self.threads)
        torch.manual_seed(self.seed)
        network = self.model.build(self.recipe.dropout).to(self.device)
        kind = getattr(torch, self.precision)
        how = network, kind, self.recipe.momentum, Loss(self.recipe)
        general = self.device != "cpu" or not onednn.usable(network, kind)
        step = _Step(*how, self._layout) if general else onednn.Step(*how)
        if begun:
            for name, tensor in state(network, step.momentum).items():
                tensor.copy_(begun[name])
        pixels, targets = torch.from_numpy(images).to(self.device), torch.from_numpy(labels).long().to(self.device)
        answers = None if teacher is None else torch.from_numpy(teacher).to(self.device)
        for epoch in range(done, self.recipe.epochs):
            network.train()
            figures = self._epoch(step, pixels, targets, answers, epoch)
            yield network, figures, copied(state(network, step.momentum))

    @functools.cached_property
    def _layout(self) -> torch.memory_format:
        """How images and weights lie in memory: the same for all epochs, so it is tried once, on another network."""
        return models.memory_format(self.model.build(), self.model.input)

    def _epoch(
        self, step: Step, pixels: torch.Tensor, targets: torch.Tensor, teacher: torch.Tensor | None, epoch: int
    ) -> dict[str, float]:
        """Pass over all images once, with loss, batch, accuracy and it/s in a bar, and return the epoch's figures."""
        import torch

        torch.manual_seed((self.seed << 16) + epoch)  # dropout's
        size, n = self.recipe.batch_size, len(pixels)
        batches = -(-n // size) - (n > size and n % size == 1)
        loss_sum, correct = (torch.zeros((), dtype=kind, device=self.device) for kind in (torch.float32, torch.int64))
        with console.progress(batches, "it", f"epoch {epoch + 1}", quiet=self.quiet) as bar:
            for number, (x, y, answers) in enumerate(self._batches(pixels, targets, teacher, epoch)):
                loss, logits = step(x, y, answers, learning_rate(self.recipe, epoch + number / batches))
                loss_sum += loss * len(y)
                correct += (logits.argmax(1) == y).sum()
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

    def _batches(
        self, pixels: torch.Tensor, targets: torch.Tensor, teacher: torch.Tensor | None, epoch: int
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]]:
        """Yield augmented, normalised float32 batches `[b, c, h, w]`, their targets `[b]` and their teacher's logits.

        Images come in the epoch's own order.
        Many whole batches are augmented in one call, since one call per batch costs more.
        """
        import torch

        generator = torch.Generator().manual_seed((self.seed << 16) + epoch)
        strength = augmentation(self.recipe, epoch)
        order = torch.randperm(len(pixels), generator=generator).to(pixels.device)
        size = self.recipe.batch_size
        for chunk in order.split(max(1, min(CHUNK, VALUES // pixels[0].numel()) // size) * size):
            x = pixels[chunk].float() / 255
            if strength > 0:
                x = (self.model.augment or augment)(x, generator, self.recipe, strength)
            x = normalised(x, self.model)
            answers = itertools.repeat(None) if teacher is None else _split(teacher[chunk], size)
            yield from zip(_split(x, size), _split(targets[chunk], size), answers, strict=False)

    def measure(self, network: torch.nn.Module, test: ImageSet) -> tuple[float, np.ndarray]:
        """Return mean cross-entropy and predictions `[n]` of a network in evaluation mode, in float32."""
        import torch
        import torch.nn.functional as F

        def ready(images: torch.Tensor) -> torch.Tensor:
            return normalised(images.to(self.device).float() / 255, self.model).contiguous(memory_format=self._layout)

        _deterministic()
        network.eval()
        with torch.inference_mode():
            parts = torch.from_numpy(test.images).split(run.batch_size(test.images))
            logits = torch.cat([network(ready(part)).flatten(1).cpu() for part in parts])
            return F.cross_entropy(logits, torch.from_numpy(test.labels)).item(), logits.argmax(1).numpy()


class _Step:
    """A step as `onednn.Step` takes it, by autograd, for any network and device."""

    def __init__(
        self, network: torch.nn.Module, kind: torch.dtype, momentum: float, loss: Loss, layout: torch.memory_format
    ) -> None:
        import torch

        self._network, self._kind, self._loss, self._layout = network.to(memory_format=layout), kind, loss, layout
        self._optimizer = torch.optim.SGD(network.parameters(), lr=0.0, momentum=momentum)
        self.momentum = [torch.zeros_like(parameter) for parameter in network.parameters()]
        for parameter, buffer in zip(network.parameters(), self.momentum, strict=True):
            self._optimizer.state[parameter]["momentum_buffer"] = buffer  # else made at the first step

    def __call__(
        self, images: torch.Tensor, labels: torch.Tensor, teacher: torch.Tensor | None, lr: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        self._optimizer.param_groups[0]["lr"] = lr
        try:
            with torch.autocast(images.device.type, self._kind, enabled=self._kind is not torch.float32):
                logits = self._network(images.contiguous(memory_format=self._layout)).flatten(1).float()
        except (RuntimeError, TypeError, ValueError, SystemExit) as error:  # in evaluation mode and float32 it ran
            raise CheckFailed(f"the network fails in training, in {self._kind}: {reason(error)}") from error
        loss, gradient = self._loss(logits.detach(), labels, teacher)
        self._optimizer.zero_grad()
        logits.backward(gradient)
        self._optimizer.step()
        return loss, logits.detach()


def learning_rate(recipe: Recipe, epochs: float) -> float:
    """Return the learning rate after so many epochs (with a fraction).

    "step" is PyTorch's StepLR; "linear" goes up from 0 over the share `warmup` of the training, then down to 0.
    """
    if recipe.schedule == "step":
        return recipe.lr * recipe.gamma ** (int(epochs) // recipe.step_size)
    done = epochs / recipe.epochs
    return recipe.lr * (done / recipe.warmup if done < recipe.warmup else (1 - done) / (1 - recipe.warmup))


def augmentation(recipe: Recipe, epoch: int) -> float:
    """Return how much of the recipe's augmentation an epoch gets.

    It is `ease` times as much after each learning-rate step, or, with the linear schedule, less from epoch to epoch
    until the last one has `ease` of it.
    """
    if recipe.schedule == "step":
        return recipe.ease ** (epoch // recipe.step_size)
    return 1 - (1 - recipe.ease) * epoch / max(recipe.epochs - 1, 1)


def _deterministic() -> None:
    """Have CUDA devices compute float32 in float32, with the same kernels every time."""
    import torch

    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


def normalised(pixels: torch.Tensor, model: Model) -> torch.Tensor:
    """Subtract the model's mean from float32 pixels `[n, c, h, w]` from 0 to 1, and divide by its std, in place."""
    import torch

    card = model.card("model")
    mean, std = (torch.tensor(each, device=pixels.device).view(-1, 1, 1) for each in (card.mean, card.std))
    return pixels.sub_(mean).div_(std)


def _split(values: torch.Tensor, size: int) -> list[torch.Tensor]:
    """Split into batches; one image that would be left alone joins the last, since BatchNorm can't train on one."""
    parts = list(values.split(size))
    if len(parts) > 1 and len(parts[-1]) == 1:
        parts[-2:] = [values[(len(parts) - 2) * size :]]
    return parts


def state(network: torch.nn.Module, momentum: Iterable[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors of a training by name: the network's parameters and statistics, and SGD's momentum."""
    weights = {f"weights.{name}": tensor for name, tensor in network.state_dict().items()}
    return weights | {f"momentum.{index}": tensor for index, tensor in enumerate(momentum)}


def copied(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return copies on the CPU, each in memory of its own, as safetensors wants it."""
    import torch

    layout = torch.contiguous_format
    return {name: tensor.detach().cpu().clone(memory_format=layout) for name, tensor in tensors.items()}
