"""Merge a recipe with command-line overrides and validate the result."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from pipeline.errors import UsageError
from pipeline.machine import host as machine
from pipeline.training import models

SHARES = ("momentum", "gamma", "warmup", "dropout", "label_smoothing", "teacher_weight", "ease")
LIMITS = {  # least and most; for every other number, 0 and no limit
    # A random stream is (seed << 16) + epoch, and PyTorch's generator on a CPU keeps 32 bits of it: seed 65,536 would
    # be seed 0 once more, and epoch 65,536 the next seed's first one.
    "seed": (0, 2**16 - 1),
    "epochs": (1, 2**16 - 1),
    "train_threads": (1, 64),
    "limit": (2, math.inf),
    "hold_out": (0, math.inf),
    "batch_size": (1, math.inf),
    "lr": (1e-9, 1e3),
    "step_size": (1, math.inf),
    "temperature": (0.1, 100),
    **dict.fromkeys(SHARES, (0, 1)),
}
SCHEDULES = {"step": ("step_size", "gamma"), "linear": ("warmup",)}  # and the numbers that only it uses
WITHOUT_EFFECT = {"out", "data", "resume", "labels"}  # options of `train` that are no numbers of a recipe


def options(
    model: str,
    *,
    recipe: str = "default",
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
    train_threads: int | None = None,
    limit: int | None = None,
    hold_out: int = 0,
    **numbers: Any,
) -> dict[str, Any]:
    """Return all options that a checkpoint depends on: the recipe's numbers or those given instead, seed, device...

    Raises UsageError for an unknown recipe, and for a number that the recipe doesn't have or that is out of range.
    """
    recipes = models.get(model).recipes
    if recipe not in recipes:
        raise UsageError(f"--recipe: {model} has none called {recipe!r}: expected one of {', '.join(recipes)}")
    chosen = dataclasses.asdict(recipes[recipe])
    given = {name: value for name, value in numbers.items() if value is not None and name not in WITHOUT_EFFECT}
    if unknown := sorted(given.keys() - chosen.keys()):
        option = unknown[0].replace("_", "-")
        raise UsageError(f"--{option}: {model} has no such number: expected one of {', '.join(chosen)}")
    threads = min(2, machine.cores()) if train_threads is None else train_threads
    checked = {"seed": seed, "train_threads": threads, "limit": limit, "hold_out": hold_out, **chosen, **given}
    for name, value in checked.items():
        least, most = LIMITS.get(name, (0, math.inf))
        if isinstance(value, int | float) and not (least <= value <= most and math.isfinite(value)):
            expected = f"{least:g} to {most:g}" if math.isfinite(most) else f"{least:g} or more"
            raise UsageError(f"--{name.replace('_', '-')}: expected {expected}, received {value}")
    if checked["schedule"] not in SCHEDULES:
        raise UsageError(f"--schedule: expected {' or '.join(SCHEDULES)}, received {checked['schedule']}")
    for schedule, names in SCHEDULES.items():
        changed = [name for name in names if given.get(name, chosen[name]) != chosen[name]]
        if changed and schedule != checked["schedule"]:
            option, used = changed[0].replace("_", "-"), checked["schedule"]
            raise UsageError(f"--{option}: has no effect with a {used} schedule, only with a {schedule} one")
    return {"model": model, **_arithmetic(device, precision), **checked}


def _arithmetic(device: str, precision: str) -> dict[str, str]:
    """Replace "auto": by CUDA where there is a device, and by bfloat16 where that is native; emulated, it is slower."""
    import torch

    cuda = torch.cuda.is_available()
    if device == "cuda" and not cuda:
        raise UsageError("--device cuda: PyTorch sees no CUDA device; expected one, or --device cpu")
    if device == "auto":
        device = "cuda" if cuda else "cpu"
    if precision == "auto":
        if device == "cuda":
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            native = torch.cpu.get_capabilities().get("avx512_bf16", False)
        precision = "bfloat16" if native else "float32"
    return {"device": device, "precision": precision}
