"""The facts of experiments about training: studies of many seeds, and sweeps."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from pipeline.records.devices import Machine
from pipeline.records.facts import (
    Amount,
    Bounds,
    Count,
    Facts,
    ModelName,
    Numbers,
    Part,
    Positive,
    Real,
    Sha256,
    Share,
    Versions,
    Words,
)


class Study(Facts, frozen=True):
    """The accuracies, in percent, of many seeds of a recipe, and what they sum up to."""

    recipe: Words
    numbers: Numbers
    measured_on: Words
    n: Positive
    gate: Share
    accuracies: Annotated[list[Real], Meta(min_length=1)]
    mean: Real
    mean_interval: Bounds
    deviation: Amount | None
    least: Real
    most: Real
    share_over_gate: Share
    wilson: Bounds
    checkpoints: list[Sha256]
    versions: Versions
    machine: Machine


class Trial(Part, frozen=True):
    """A trial of a sweep."""

    lr: Real
    gamma: Real
    accuracy: Share
    epochs: Positive
    pruned: bool
    worker: Words


class Sweep(Facts, frozen=True):
    """Held-out accuracy by learning rate and gamma."""

    model: ModelName
    seed: Count
    hold_out: Positive
    limit: Positive | None
    epochs: Positive | None
    sampler: Words
    prune: bool
    lr: list[Real]
    gamma: list[Real]
    trials: Positive
    recipe: Numbers
    rows: Annotated[list[Trial], Meta(min_length=1)]
    best: Trial
    command: Words
    measured_on: Words
