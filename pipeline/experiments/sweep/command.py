"""The command `pipeline sweep`: held-out accuracy of each pair of learning rate and gamma, as table and heat map."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np

from pipeline import console
from pipeline.data import imagesets
from pipeline.errors import PipelineError, UsageError
from pipeline.experiments.sweep import heatmap
from pipeline.experiments.sweep.trials import Storage
from pipeline.experiments.sweep.workers import work
from pipeline.machine import host as machine
from pipeline.records import code, disk, manifest
from pipeline.records.experiments import Sweep, Trial
from pipeline.records.manifest import Artifact
from pipeline.records.reports import Picture
from pipeline.stages import Data, Out, check, train
from pipeline.training import models, recipe

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

KIND, FILE = "sweep", "{name}.json"
NEEDS = ("torch", "safetensors", "optuna", "matplotlib")
PICTURE, STORAGE = "{name}.png", "sweep.db"
LRS, GAMMAS = (0.01, 0.02, 0.03, 0.04, 0.05, 0.06), (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def run(
    model: str,
    *,
    out: Out,
    data: Data = None,
    sampler: Annotated[
        Literal["grid", "random", "tpe"], "How pairs are chosen: all (grid), at random, or adaptively (TPE)."
    ] = "grid",
    lr: Annotated[tuple[float, ...], "A learning rate of the grid; other samplers draw from the range."] = LRS,
    gamma: Annotated[tuple[float, ...], "A gamma of the grid; other samplers draw from the range."] = GAMMAS,
    trials: Annotated[int, "Number of random or tpe trials; a grid has one for each pair."] = 54,
    prune: Annotated[bool | None, "Stop trials below the median at their epoch, once gamma has acted."] = True,
    workers: Annotated[int | None, "Worker processes of one thread each; by default one for each core."] = None,
    storage: Annotated[str | None, "Optuna storage URL, which machines may share; by default a file in --out."] = None,
    name: Annotated[str, "Name of the sweep in the storage, and of its files."] = "sweep",
    grace: Annotated[int, "Seconds without a heartbeat after which a worker's pair is trained again."] = 60,
    seed: Annotated[int, "Seed of every training and of random draws; those of tpe are not repeatable."] = 0,
    epochs: Annotated[int | None, "Epochs of each trial; by default the recipe's."] = None,
    hold_out: Annotated[int, "Training images to measure on, not to train on; the test set is not used."] = 10_000,
    limit: Annotated[int | None, "Train on this many images only: for a try, not for a result."] = None,
) -> Artifact:
    """Search learning rate and gamma of StepLR, by accuracy on held-out training images.

    Prints a table and the best pair's training command, and draws a heat map. The same command resumes an interrupted
    sweep. Machines that share a storage share the sweep, and every pair is trained once. A pair whose worker dies is
    trained again; one whose training raises an error is tried three times.
    """
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise UsageError(f"--name {name!r}: expected letters, digits, '.', '-' and '_', as in a file name")
    lrs, gammas = sorted(set(lr)), sorted(set(gamma))
    plan = _plan(sampler, lrs, gammas, trials, seed)
    workers = machine.cores() if workers is None else workers
    counts = {"trials": len(plan), "workers": workers, "hold-out": hold_out, "grace": grace}
    for option, value in counts.items():
        if value < (least := 3 if option == "grace" else 1):  # databases count whole seconds
            raise UsageError(f"--{option}: expected {least} or more, received {value}")
    shared = {"seed": seed, "hold_out": hold_out, "limit": limit, "epochs": epochs}
    training = _training(model, shared, lrs, gammas)
    facts: dict[str, Any] = {"model": model, **shared, "sampler": sampler, "prune": bool(prune)}
    facts |= {"lr": lrs, "gamma": gammas, "trials": len(plan), "recipe": training}
    train.expect(data=data)
    checked = check.model(model)
    source = data or checked.data
    images = imagesets.load(source, "train", checked.input, checked.classes)
    if hold_out >= len(images):
        raise UsageError(f"--hold-out {hold_out}: expected fewer than the {len(images)} images of {images.name}")
    parents = images.digests
    digest = disk.digest(models.file(model))
    out.mkdir(parents=True, exist_ok=True)
    database = Storage(storage or f"sqlite:///{out / STORAGE}", name, grace)
    if training["epochs"] <= training["step_size"]:
        console.say(f"gamma has no effect: its first step is after {training['step_size']} epochs")
    import optuna
    import sqlalchemy.exc

    try:
        # The storage holds the digests, too: trials on other images or of another network are another sweep's.
        ended = work(database, {**facts, "images": parents, "model_file": digest}, plan, source, workers)
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.OptunaError) as error:
        raise PipelineError(f"{database}: the storage failed: {database.line(error)}") from error
    return _write(out, name, ended, parents, facts, data)


def _plan(sampler: str, lrs: list[float], gammas: list[float], trials: int, seed: int) -> list[dict[str, float]]:
    """Return the pairs to train; an empty one is drawn by TPE when its trial begins, from the results so far."""
    if sampler == "grid":
        return [{"lr": lr, "gamma": gamma} for lr in lrs for gamma in gammas]
    if sampler == "tpe":
        return [{}] * trials
    draws = np.random.default_rng(seed).uniform((lrs[0], gammas[0]), (lrs[-1], gammas[-1]), (max(trials, 0), 2))
    return [{"lr": float(lr), "gamma": float(gamma)} for lr, gamma in draws]


def _training(model: str, shared: dict[str, Any], lrs: list[float], gammas: list[float]) -> dict[str, Any]:
    """Return the training options that all trials share, after checking every learning rate and gamma."""
    for lr in lrs:
        options = recipe.options(model, train_threads=1, **shared, lr=lr)
    for gamma in gammas:
        options = recipe.options(model, train_threads=1, **shared, gamma=gamma)
    own = ("lr", "gamma", "model", "device", "precision")  # a trial's; the last two depend on the machine
    return {name: value for name, value in options.items() if name not in own}


def _write(
    out: Path, name: str, trials: list[FrozenTrial], parents: dict[str, str], facts: dict[str, Any], data: str | None
) -> Artifact:
    """Write the sweep's trials, the best first, and the picture of them."""
    rows = sorted(map(_row, trials), key=lambda row: (row.pruned, -row.accuracy))
    title = f"{facts['hold_out']} held-out training images"
    artifact = manifest.write(
        out / FILE.format(name=name),
        None,
        facts=Sweep(**facts, rows=rows, best=rows[0], command=_command(facts, rows[0], data), measured_on=title),
        parents=parents,
        options=facts,
        versions=manifest.versions("torch", "optuna", "numpy"),
        code=code.digest(__name__),
    )
    picture = heatmap.draw(rows, grid=facts["sampler"] == "grid", title=title)
    versions = manifest.versions("matplotlib")
    manifest.write(out / PICTURE.format(name=name), picture, facts=Picture(), parents=[artifact], versions=versions)
    return artifact


def _command(facts: dict[str, Any], best: Trial, data: str | None) -> str:
    """Return the command that trains a pair on all training images, with the sweep's seed and epochs."""
    given = {"lr": best.lr, "gamma": best.gamma, "seed": facts["seed"], "epochs": facts["epochs"]}
    words = [f"--{name} {value!r}" for name, value in given.items() if value is not None]
    words += ["--labels hard"]  # as the trials are trained: a teacher has seen the held-out images
    words += [f"--data {shlex.quote(data)}"] if data else []
    return " ".join(["pipeline train", facts["model"], *words])


def _row(trial: FrozenTrial) -> Trial:
    from optuna.trial import TrialState

    epochs = max(trial.intermediate_values)
    return Trial(
        **trial.params,
        accuracy=trial.intermediate_values[epochs],
        epochs=epochs,
        worker=trial.user_attrs["worker"],
        pruned=trial.state == TrialState.PRUNED,
    )


def show(sweep: Artifact) -> None:
    """Print every trial, the best first, and the command that trains the best pair."""
    rows = [
        [f"{row.lr:g}", f"{row.gamma:g}", f"{row.accuracy:.2%}", str(row.epochs), "pruned" if row.pruned else ""]
        for row in sweep.facts.rows
    ]
    console.table(["lr", "gamma", "accuracy", "epochs", ""], rows, title=sweep.facts.measured_on)
    if sweep.path:
        console.result(f"picture: {sweep.path.with_suffix('.png')}")
    console.result(f"best: {sweep.facts.command}")
