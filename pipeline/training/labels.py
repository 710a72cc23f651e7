"""A teacher's answers for the training images, in a file beside the model's, and whether a training uses them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.imagesets import ImageSet
from pipeline.errors import CheckFailed, UsageError, reason
from pipeline.records import manifest
from pipeline.records.manifest import Artifact
from pipeline.training import models

FILE = "{model}.labels.safetensors"
TENSOR, STEPS = "below-largest", 8  # a number is how far a logit lies below its image's largest, in eighths
AUTO, HARD = "auto", "hard"


def beside(model: str) -> Path:
    """Return where a model's labels lie: in the folder of its file."""
    return models.file(model).with_name(FILE.format(model=model))


def pack(logits: np.ndarray) -> bytes:
    """Return a file of logits `[n, classes]`, as uint8: what counts is a row's differences, up to 255 eighths."""
    from safetensors.numpy import save

    below = (logits.max(1, keepdims=True) - logits) * STEPS
    return save({TENSOR: below.round().clip(0, 255).astype(np.uint8)})


def unpack(labels: Artifact) -> np.ndarray:
    """Return a teacher's logits, float32 `[n, classes]` with 0 for a row's largest. CheckFailed for another content."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    facts = labels.facts
    try:
        below = load(manifest.content(labels))[TENSOR]
    except (SafetensorError, KeyError) as error:
        raise CheckFailed(f"{labels.path}: holds no labels: {reason(error)}; `pipeline teach` makes them") from error
    if below.dtype != np.uint8 or below.shape != (facts.images, facts.classes):
        expected = f"expected uint8 [{facts.images}, {facts.classes}]"
        raise CheckFailed(f"{labels.path}: holds {below.dtype} {list(below.shape)}: {expected}")
    return below.astype(np.float32) / -STEPS


def find(
    model: str, given: str, images: ImageSet, numbers: Mapping[str, Any] | None = None
) -> tuple[Artifact | None, str]:
    """Return the labels that a model is to be trained with on these images, and why they aren't used if there are some.

    `given` is "auto" (those beside the model's file, if they are for these images), "hard" (the images' own) or a file.
    Raises UsageError for a file with labels of other images or classes, and for numbers of a recipe that have no effect
    without labels if there are none; CheckFailed for an altered file.
    """
    found, unused = _find(model, given, images)
    for name in ("teacher_weight", "temperature"):
        if not found and (numbers or {}).get(name) is not None:
            raise UsageError(
                f"--{name.replace('_', '-')}: has no effect without a teacher's labels: "
                f"expected --labels FILE, as `pipeline teach {model}` makes them"
            )
    return found, unused


def _find(model: str, given: str, images: ImageSet) -> tuple[Artifact | None, str]:
    path = beside(model) if given == AUTO else Path(given)
    if given == HARD or (given == AUTO and not path.is_file()):
        return None, ""
    if not path.exists():
        raise UsageError(f"--labels {path}: no such file: expected auto, hard, or what `pipeline teach {model}` made")
    labels = manifest.read(path)
    if labels.kind != "labels":
        raise UsageError(f"{path}: holds {labels.kind}: expected labels, as `pipeline teach {model}` makes them")
    if labels.facts.classes != (classes := len(models.get(model).classes)):
        raise UsageError(f"{path}: labels with {labels.facts.classes} classes: expected {model}'s {classes}")
    if images.digests.items() <= labels.parents.items():
        return labels, ""
    other = f"{path}: labels of other images than these {len(images)} of {images.name}"
    if given == AUTO:
        return None, f"{other}: not used"
    raise UsageError(f"{other}: expected sha256 {', '.join(images.digests.values())}; see `pipeline teach -h`")
