"""Snapshots of a training after an epoch, from which a killed training resumes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import console
from pipeline.errors import CheckFailed, UsageError
from pipeline.records import disk, manifest
from pipeline.training import models, trainer

if TYPE_CHECKING:
    import torch


def save(
    snapshot: Path, state: dict[str, torch.Tensor], options: dict[str, Any], history: list[dict[str, Any]]
) -> None:
    """Write what `resume` needs: the state after an epoch, the training's options and the figures so far."""
    import safetensors.torch

    notes = json.dumps({"options": options, "history": history, "versions": manifest.versions("torch")})
    disk.save(snapshot, safetensors.torch.save(state, {"notes": notes, "sha256": _digest(state, notes)}))


def resume(
    snapshot: Path, options: dict[str, Any], wanted: bool | None
) -> tuple[dict[str, torch.Tensor] | None, list[dict[str, Any]]]:
    """Return the state and history to continue from, or None and no history to start anew.

    If `wanted` is None, a snapshot is used if it belongs to a training with these options. Raises CheckFailed for an
    altered snapshot, UsageError for a file that isn't one and, if `wanted`, for another training's.
    """
    if wanted is False or not snapshot.is_file():
        if wanted:
            console.say(f"{snapshot} does not exist: nothing to resume, starting with epoch 1")
        return None, []
    state, notes = _read(snapshot)
    begun = {**notes["options"], **notes["versions"]}
    now = {**json.loads(json.dumps(options)), **manifest.versions("torch")}
    different = sorted(name for name in begun.keys() | now.keys() if begun.get(name) != now.get(name))
    if different and wanted:
        name = different[0]
        raise UsageError(
            f"{snapshot}: was begun with {name} {begun.get(name)}: expected {now.get(name)}; use that, or --no-resume"
        )
    if different:
        changes = ", ".join(f"{name} {begun.get(name)} instead of {now.get(name)}" for name in different)
        console.say(f"{snapshot}: an unfinished training is replaced, since it has {changes}")
        return None, []
    _check_shapes(snapshot, state, options)
    console.say(f"resuming after epoch {len(notes['history'])} of {options['epochs']} (--no-resume starts anew)")
    return state, notes["history"]


def _read(snapshot: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    import safetensors

    try:
        with safetensors.safe_open(snapshot, "pt") as file:
            metadata = file.metadata()
            expected, notes = metadata["sha256"], json.loads(metadata["notes"])
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no dict
    except (safetensors.SafetensorError, TypeError, KeyError, ValueError) as error:
        raise UsageError(f"{snapshot}: is not a snapshot of a training ({error}); delete it and train anew") from error
    if (received := _digest(state, metadata["notes"])) != expected:
        raise CheckFailed(
            f"{snapshot}: altered: expected sha256 {expected}, received {received}; delete it and train anew"
        )
    return state, notes


def _digest(state: dict[str, torch.Tensor], notes: str) -> str:
    """Return the sha256 of the notes and of the tensors as safetensors writes them, in one order and without notes."""
    import safetensors.torch

    return hashlib.sha256(notes.encode() + safetensors.torch.save(state)).hexdigest()


def _check_shapes(snapshot: Path, state: dict[str, torch.Tensor], options: dict[str, Any]) -> None:
    """Raise CheckFailed unless the snapshot's tensors are those of the model's network and its optimizer."""
    network = models.get(options["model"]).build(options["dropout"])
    wanted, received = (
        {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        for tensors in (trainer.state(network, network.parameters()), state)
    )
    for name in sorted(wanted.keys() | received.keys()):
        if wanted.get(name) != received.get(name):
            raise CheckFailed(
                f"{snapshot}: tensor {name}: expected {wanted.get(name, 'none')}, received {received.get(name, 'none')}"
                f"; {options['model']} has changed since: delete the snapshot and train anew"
            )
