"""Learning rates and gammas in, held-out accuracy of each pair out: the table, the heat map and the best pair."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np

from pipeline import artifact, console, dataset, heatmap, machine, meeting
from pipeline import trials as queue
from pipeline import workers as crew
from pipeline.artifact import Artifact
from pipeline.errors import UsageError
from pipeline.stages import Data, Out

if TYPE_CHECKING:
    import optuna

KIND, FILE = "sweep", "{name}.json"
NEEDS = ("torch", "safetensors", "optuna", "matplotlib")
PICTURE, STORAGE = "{name}.png", "sweep.db"
LRS, GAMMAS = (0.01, 0.02, 0.03, 0.04, 0.05, 0.06), (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def run(
    model: str,
    *,
    out: Out,
    data: Data,
    sampler: Annotated[
        Literal["grid", "random", "tpe"], "Which pairs: all, or drawn, or drawn where it pays."
    ] = "grid",
    lr: Annotated[tuple[float, ...], "A learning rate of the grid; random and tpe draw from least to most."] = LRS,
    gamma: Annotated[tuple[float, ...], "A gamma of the grid; random and tpe draw from least to most."] = GAMMAS,
    trials: Annotated[int, "How many random or tpe draws in all; a grid has as many as it has pairs."] = 54,
    prune: Annotated[
        bool | None, "Stop a trial under the median of the others after the same epoch, once gamma acted."
    ] = True,
    workers: Annotated[int | None, "Trainings at once, one processor thread each; by default as many as cores."] = None,
    storage: Annotated[str | None, "Optuna storage URL, for many machines; by default a file in the folder."] = None,
    name: Annotated[
        str, "Name of the sweep in the storage, and of its files: workers with it share its trials."
    ] = "sweep",
    grace: Annotated[int, "Seconds of silence after which a worker counts as dead and its trial is queued again."] = 60,
    seed: Annotated[int, "Seed of every training and of random draws (with tpe, they aren't repeatable)."] = 0,
    epochs: Annotated[int | None, "Epochs a trial; by default the recipe's."] = None,
    hold_out: Annotated[int, "Training images that trials are measured on; the test set is not looked at."] = 10_000,
    limit: Annotated[int | None, "Train on the first so many images only: for a try, not for a result."] = None,
) -> Artifact:
    """Sweep learning rate and gamma of StepLR over the seed's grid, measured on held-out training images.

    A sweep that was killed goes on where it was, and workers on several machines share one storage: every pair is
    trained once. A trial whose worker died is tried again. Ends with a table, a heat map and the best pair.
    """
    lrs, gammas = sorted(set(lr)), sorted(set(gamma))
    plan = _plan(sampler, lrs, gammas, trials, seed)
    asked = {"model": model, "seed": seed, "hold_out": hold_out, "limit": limit, "epochs": epochs}
    facts = {**asked, "sampler": sampler, "prune": bool(prune), "lr": lrs, "gamma": gammas, "trials": len(plan)}
    workers = machine.cores() if workers is None else workers
    shared = facts["recipe"] = _checked(facts, workers, grace)
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise UsageError(f"--name {name!r}: expected letters, digits, '.', '-' and '_': files are named by it, too")
    dataset.train(data)
    out.mkdir(parents=True, exist_ok=True)
    place = meeting.Meeting(storage or f"sqlite:///{out / STORAGE}", name, grace)
    with meeting.reported(place):
        queue.plan(place, plan, facts)
        if shared["epochs"] <= shared["step_size"]:
            console.say(f"gamma has no effect: the learning rate steps after {shared['step_size']} epochs, not before")
        crew.work(place, facts, data, workers)
        ended = queue.ended(queue.load(place, facts))
    return _write(out, name, ended, data, facts)


def _plan(sampler: str, lrs: list[float], gammas: list[float], trials: int, seed: int) -> list[dict[str, float]]:
    """The pairs to train; an empty one is drawn by TPE when its turn comes, from what is known by then."""
    if sampler == "grid":
        return [{"lr": lr, "gamma": gamma} for lr in lrs for gamma in gammas]
    if sampler == "tpe":
        return [{}] * trials
    draws = np.random.default_rng(seed).uniform((lrs[0], gammas[0]), (lrs[-1], gammas[-1]), (max(trials, 0), 2))
    return [{"lr": float(lr), "gamma": float(gamma)} for lr, gamma in draws]


def _checked(facts: dict[str, Any], workers: int, grace: int) -> dict[str, Any]:
    """The numbers that all trials share, after every number of the sweep was checked."""
    counts = {"trials": facts["trials"], "workers": workers, "hold-out": facts["hold_out"], "grace": grace}
    for name, value in counts.items():
        if value < 1:
            raise UsageError(f"--{name}: expected 1 or more, received {value}")
    for name in ("lr", "gamma"):
        for value in facts[name]:
            complete = queue.options(facts, **{name: value})
    other = ("lr", "gamma", "model", "device", "precision")  # the last two are each worker's own
    return {name: value for name, value in complete.items() if name not in other}


def _write(out: Path, name: str, trials: list[optuna.trial.FrozenTrial], data: Path, facts: dict[str, Any]) -> Artifact:
    """The sweep's trials and its best pair, with the picture beside it."""
    rows = [_row(trial) for trial in trials]
    rows.sort(key=lambda row: (row["pruned"], -row["accuracy"]))
    best = rows[0]
    found = {
        **facts,
        "rows": rows,
        "best": best,
        "command": _command(facts, best),
        "measured_on": f"{facts['hold_out']} held-out training images",
    }
    pixels = dataset.train(data).digests
    versions = artifact.versions("torch", "optuna", "numpy")
    content = (json.dumps(found, indent=1) + "\n").encode()
    path = out / FILE.format(name=name)
    made = artifact.write(path, content, kind=KIND, parents=pixels, options=facts, versions=versions, facts=found)
    picture = heatmap.draw(rows, grid=facts["sampler"] == "grid", title=found["measured_on"])
    drawn_with = artifact.versions("matplotlib")
    artifact.write(out / PICTURE.format(name=name), picture, kind="picture", parents=[made], versions=drawn_with)
    return made


def _command(facts: dict[str, Any], best: dict[str, Any]) -> str:
    """How to train with a pair on all training images, with what else the sweep was given."""
    given = {"lr": best["lr"], "gamma": best["gamma"], "seed": facts["seed"], "epochs": facts["epochs"]}
    words = [f"--{name} {value!r}" for name, value in given.items() if value is not None]
    return " ".join(["pipeline train", facts["model"], *words])


def _row(trial: optuna.trial.FrozenTrial) -> dict[str, Any]:
    import optuna

    pruned = trial.state == optuna.trial.TrialState.PRUNED
    last = max(trial.intermediate_values)
    accuracy = trial.intermediate_values[last]
    worker = trial.user_attrs["worker"]
    return {**trial.params, "accuracy": accuracy, "epochs": last, "pruned": pruned, "worker": worker}


def show(sweep: Artifact) -> None:
    """Every trial, best first, and how to train with the best pair."""
    rows = [[f"{row['lr']:g}", f"{row['gamma']:g}", *_result(row)] for row in sweep.facts["rows"]]
    console.table(["lr", "gamma", "accuracy", "epochs", ""], rows, title=sweep.facts["measured_on"])
    what = "heat map" if sweep.facts["sampler"] == "grid" else "picture"
    console.result(f"{what}: {sweep.path.with_suffix('.png')}")
    console.result(f"best: {sweep.facts['command']}")


def _result(row: dict[str, Any]) -> list[str]:
    return [f"{row['accuracy']:.2%}", str(row["epochs"]), "pruned" if row["pruned"] else ""]
