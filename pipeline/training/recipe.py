"""Merge a recipe with command-line overrides and validate the result."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from pipeline.errors import UsageError
from pipeline.machine import host as machine
from pipeline.training import models

LIMITS = {  # least and most; for every other number, 0 and no limit
    # A random stream is (seed << 16) + epoch, and PyTorch's generator on a CPU keeps 32 bits of it: seed 65,536 would
    # be seed 0 once more, and epoch 65,536 the next seed's first one.
    "seed": (0, 2**16 - 1),
    "epochs": (1, 2**16 - 1),
    "train_threads": (1, 64),
    "limit": (2, math.inf),
    "hold_out": (0, 50_000),
    "batch_size": (1, math.inf),
    "lr": (1e-9, 1e3),
    "step_size": (1, math.inf),
    "momentum": (0, 1),
    "gamma": (0, 1),
    "warmup": (0, 1),
    "dropout": (0, 1),
    "label_smoothing": (0, 1),
    "ease": (0, 1),
}
SCHEDULES = ("step", "linear")
NO_SAY = {"out", "data", "resume"}  # what `train` is also given; a checkpoint doesn't depend on it


def options(
    model: str,
    *,
    recipe: str,
    seed: int,
    device: str,
    precision: str,
    train_threads: int | None,
    limit: int | None,
    hold_out: int,
    **given: Any,
) -> dict[str, Any]:
    """What a checkpoint depends on: the recipe's numbers or those given instead, images, seed, device, arithmetic.

    Raises UsageError for a recipe that there isn't or a number that isn't in it or out of its range.
    """
    chosen = dataclasses.asdict(models.recipe(model, recipe))
    numbers = {name for name, value in given.items() if value is not None} - NO_SAY
    if unknown := sorted(numbers - chosen.keys()):
        raise UsageError(
            f"--{unknown[0].replace('_', '-')}: {model} has no such number: expected one of {', '.join(chosen)}"
        )
    chosen = {name: value if given.get(name) is None else given[name] for name, value in chosen.items()}
    threads = train_threads if train_threads is not None else min(2, machine.cores())
    asked = {"seed": seed, "train_threads": threads, "limit": limit, "hold_out": hold_out, **chosen}
    for name, value in asked.items():
        least, most = LIMITS.get(name, (0, math.inf))
        if isinstance(value, int | float) and not (least <= value <= most and math.isfinite(value)):
            expected = f"{least:g} to {most:g}" if math.isfinite(most) else f"{least:g} or more"
            raise UsageError(f"--{name.replace('_', '-')}: expected {expected}, received {value}")
    if chosen["schedule"] not in SCHEDULES:
        raise UsageError(f"--schedule: expected {' or '.join(SCHEDULES)}, received {chosen['schedule']}")
    place = _device(device)
    return {"model": model, "device": place, "precision": _precision(precision, place), **asked}


def numbers(model: str, recipe: str, asked: dict[str, Any]) -> Any:
    """The recipe with the numbers of complete options in it."""
    chosen = models.recipe(model, recipe)
    return dataclasses.replace(chosen, **{field.name: asked[field.name] for field in dataclasses.fields(chosen)})


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
    native = capabilities.get("avx512_bf16", False)
    if device == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    return "bfloat16" if native else "float32"
