"""A training's state after an epoch, to a file and back, so that a killed training goes on where it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import artifact, console
from pipeline.errors import UsageError

if TYPE_CHECKING:
    import torch


def save(snapshot: Path, state: dict[str, Any], asked: dict[str, Any], history: list[dict[str, Any]]) -> None:
    """Write what `resume` needs: the state after an epoch, the options it was made with and the figures so far."""
    import safetensors.torch

    tensors = {f"{part}.{name}": tensor for part in ("weights", "momentum") for name, tensor in state[part].items()}
    notes = {"options": asked, "history": history, "versions": artifact.versions("torch")}
    artifact.save(snapshot, safetensors.torch.save(tensors, {"notes": json.dumps(notes)}))


def resume(snapshot: Path, asked: dict[str, Any], wanted: bool | None) -> tuple[dict[str, Any] | None, list]:
    """The state and history to continue from, if there is one and it is wanted."""
    if wanted is False or not snapshot.is_file():
        if wanted:
            console.say(f"{snapshot} is not there: nothing to resume, starting with epoch 1")
        return None, []
    tensors, notes = _read_snapshot(snapshot)
    begun = {**notes["options"], **notes.get("versions", {})}
    now = {**asked, **artifact.versions("torch")}
    other = {name: begun.get(name) for name in begun.keys() | now.keys() if begun.get(name) != now.get(name)}
    if other and wanted:
        name, value = next(iter(other.items()))
        raise UsageError(
            f"{snapshot}: was begun with {name} {value}: expected {now.get(name)}; use that, or --no-resume"
        )
    if other:
        return None, []
    done = len(notes["history"])
    console.say(f"resuming after epoch {done} of {asked['epochs']} (--no-resume starts anew)")
    momentum = {int(name[9:]): tensor for name, tensor in tensors.items() if name.startswith("momentum.")}
    weights = {name[8:]: tensor for name, tensor in tensors.items() if name.startswith("weights.")}
    return {"weights": weights, "momentum": momentum, "epoch": done}, notes["history"]


def _read_snapshot(snapshot: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    import safetensors

    try:
        with safetensors.safe_open(snapshot, "pt") as file:
            notes = json.loads(file.metadata()["notes"])
            return {name: file.get_tensor(name) for name in file.keys()}, notes  # noqa: SIM118, it is no dict
    except (safetensors.SafetensorError, TypeError, KeyError, ValueError) as error:
        raise UsageError(f"{snapshot}: is no training to resume ({error}); delete it and train anew") from error
