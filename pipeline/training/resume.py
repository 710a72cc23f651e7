"""A training's state after an epoch, to a file and back, so that a killed training goes on where it was."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import console
from pipeline.errors import CheckFailed, UsageError
from pipeline.records import disk, manifest
from pipeline.training import models

if TYPE_CHECKING:
    import torch


def save(snapshot: Path, state: dict[str, Any], asked: dict[str, Any], history: list[dict[str, Any]]) -> None:
    """Write what `resume` needs: the state after an epoch, the options it was made with and the figures so far."""
    import safetensors.torch

    tensors = {f"{part}.{name}": tensor for part in ("weights", "momentum") for name, tensor in state[part].items()}
    notes = {"options": asked, "history": history, "versions": manifest.versions("torch")}
    metadata = {"notes": json.dumps(notes)}
    metadata["sha256"] = _digest(tensors, metadata["notes"])
    disk.save(snapshot, safetensors.torch.save(tensors, metadata))


def resume(snapshot: Path, asked: dict[str, Any], wanted: bool | None) -> tuple[dict[str, Any] | None, list]:
    """The state and history to continue from, if there is one and it is wanted.

    Raises CheckFailed for a snapshot that was altered, UsageError for what is none or, if `wanted`, another training's.
    """
    if wanted is False or not snapshot.is_file():
        if wanted:
            console.say(f"{snapshot} is not there: nothing to resume, starting with epoch 1")
        return None, []
    tensors, notes = _read_snapshot(snapshot)
    begun = {**notes["options"], **notes["versions"]}
    now = {**json.loads(json.dumps(asked)), **manifest.versions("torch")}
    other = sorted(name for name in begun.keys() | now.keys() if begun.get(name) != now.get(name))
    if other and wanted:
        name = other[0]
        raise UsageError(
            f"{snapshot}: was begun with {name} {begun.get(name)}: expected {now.get(name)}; use that, or --no-resume"
        )
    if other:
        differ = ", ".join(f"{name} {begun.get(name)} instead of {now.get(name)}" for name in other)
        console.say(f"{snapshot}: an unfinished training is replaced, since it has {differ}")
        return None, []
    _check_fit(snapshot, tensors, asked)
    done = len(notes["history"])
    console.say(f"resuming after epoch {done} of {asked['epochs']} (--no-resume starts anew)")
    momentum = {int(name[9:]): tensor for name, tensor in tensors.items() if name.startswith("momentum.")}
    weights = {name[8:]: tensor for name, tensor in tensors.items() if name.startswith("weights.")}
    return {"weights": weights, "momentum": momentum, "epoch": done}, notes["history"]


def _read_snapshot(snapshot: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    import safetensors

    try:
        with safetensors.safe_open(snapshot, "pt") as file:
            metadata = file.metadata()
            expected, notes = metadata["sha256"], json.loads(metadata["notes"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no dict
    except (safetensors.SafetensorError, TypeError, KeyError, ValueError) as error:
        raise UsageError(f"{snapshot}: is no training to resume ({error}); delete it and train anew") from error
    if (received := _digest(tensors, metadata["notes"])) != expected:
        raise CheckFailed(
            f"{snapshot}: altered: expected sha256 {expected}, received {received}; delete it and train anew"
        )
    return tensors, notes


def _digest(tensors: dict[str, torch.Tensor], notes: str) -> str:
    """sha256 over the notes and, in the order of their names, the tensors: what they are called and their bytes."""
    import torch

    sha = hashlib.sha256(notes.encode())
    for name, tensor in sorted(tensors.items()):
        sha.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        sha.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def _check_fit(snapshot: Path, tensors: dict[str, torch.Tensor], asked: dict[str, Any]) -> None:
    """CheckFailed unless the snapshot has the very tensors that the model's network and its optimizer have."""
    network = models.get(asked["model"]).build(asked["dropout"])
    wanted = {f"weights.{name}": tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    wanted |= {f"momentum.{index}": tuple(each.shape) for index, each in enumerate(network.parameters())}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise CheckFailed(
                f"{snapshot}: tensor {name}: expected {wanted.get(name, 'none')}, received {found.get(name, 'none')}; "
                f"{asked['model']} has changed since: delete the snapshot and train anew"
            )
