"""A sweep's worker processes, each of which trains one pair after the other."""

from __future__ import annotations

import multiprocessing
import os
import platform
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pipeline import console
from pipeline.data import imagesets
from pipeline.errors import PipelineError
from pipeline.experiments.sweep import trials
from pipeline.training import models, recipe
from pipeline.training.trainer import Trainer

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

    Plan = list[dict[str, float]]
    Train = Callable[[optuna.Trial, dict[str, float]], float]


def work(storage: trials.Storage, facts: dict[str, Any], plan: Plan, data: str, workers: int) -> list[FrozenTrial]:
    """Train every pair of the plan in so many processes, under a progress bar, and return the trials."""
    study, context = trials.begin(storage, facts), multiprocessing.get_context("spawn")
    recorded = len(trials.progress(study, plan).ended)
    if recorded:
        console.say(f"{storage}: {recorded} of {len(plan)} trials are on record")
    given = storage, facts, plan, data
    crew = [context.Process(target=_worker, args=given, daemon=True) for _ in range(min(workers, len(plan) - recorded))]
    try:
        with console.progress(len(plan), "trial", "sweep") as bar:
            for process in crew:
                process.start()
            bar.update(recorded)
            while running := [process for process in crew if process.is_alive()]:
                running[0].join(1)
                bar.update(len(trials.progress(study, plan).ended) - bar.n)
    finally:
        for process in crew:
            if process.is_alive():
                process.terminate()
    return finished(study, storage, plan)


def finished(study: optuna.Study, storage: trials.Storage, plan: Plan) -> list[FrozenTrial]:
    """Return the trials of all pairs. Raises PipelineError if some are missing, naming one that keeps failing."""
    now, why = trials.progress(study, plan), "all its workers ended early; run it again to go on"
    if len(now.ended) == len(plan):
        return list(now.ended.values())
    for number, last in now.given_up.items():
        pair = ", ".join(f"{name} {value:g}" for name, value in last.params.items())
        why = (
            f"trial {number}, {pair}, failed {trials.TRIES} times, at last with: {last.user_attrs['error']}; fix that "
            "and run it again: only what is missing is trained"
        )
    raise PipelineError(f"{storage}: sweep {storage.name!r} is not finished: {why}")


def _orphaned() -> bool:
    """Return whether this is a worker process whose parent has ended."""
    parent = multiprocessing.parent_process()
    return parent is not None and not parent.is_alive()


def _worker(storage: trials.Storage, facts: dict[str, Any], plan: Plan, data: str) -> None:
    """Train pairs until all have ended. Waits for those of other workers, since these may die."""
    import optuna
    from tqdm import tqdm

    tqdm.set_lock(threading.RLock())  # its own is a semaphore, which a terminated process leaks, with a warning
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then ends this process
    try:
        study, train = trials.load(storage, facts), _training(facts, data)
        while not _orphaned():
            optuna.storages.fail_stale_trials(study)
            now = trials.progress(study, plan)
            if now.missing:
                one(study, storage, plan, train)
            elif len(now.ended) + len(now.given_up) < len(plan):
                time.sleep(1)
            else:
                return
    except Exception as error:  # whatever it is, another worker will train the pair
        console.say(f"worker {os.getpid()}: {storage.line(error)}")
        raise SystemExit(1) from None


class _Abandoned(Exception):
    """The end of a trial without a result. If its pair is still needed, another trial claims it."""


def one(study: optuna.Study, storage: trials.Storage, plan: Plan, train: Train) -> None:
    """Claim a pair and train it. An error of the training is recorded with the trial."""
    import optuna
    import sqlalchemy.exc

    def objective(trial: optuna.Trial) -> float:
        if (pair := trials.claim(study, plan, trial)) is None:
            raise _Abandoned
        try:
            return train(trial, pair)
        except (_Abandoned, optuna.exceptions.OptunaError, sqlalchemy.exc.SQLAlchemyError):
            raise  # pruned, or the storage failed
        except Exception as error:
            trial.set_user_attr("error", storage.line(error))
            console.say(f"worker {os.getpid()}: trial {trial.user_attrs['plan']}: {storage.line(error)}")
            raise _Abandoned from error

    # When others took this worker for dead, Optuna raises one of these three, and the pair is theirs.
    with suppress(optuna.exceptions.UpdateFinishedTrialError, ValueError, AssertionError):
        study.optimize(objective, n_trials=1, catch=(_Abandoned,))


def _training(facts: dict[str, Any], data: str) -> Train:
    """Read the images, and return a function that trains a pair and returns its accuracy after the last epoch."""
    import optuna

    model = models.get(facts["model"])
    images, held_out = imagesets.split(data, model.input, model.classes, facts["hold_out"], facts["limit"])

    def train(trial: optuna.Trial, pair: dict[str, float]) -> float:
        trial.set_user_attr("worker", f"{platform.node()}:{os.getpid()}")
        for name in ("lr", "gamma"):
            values = [pair[name]] if name in pair else facts[name]
            trial.suggest_float(name, min(values), max(values))
        trainer = Trainer.of(recipe.options(facts["model"], **{**facts["recipe"], **trial.params}), quiet=True)
        for network, figures, _ in trainer.fit(images.images, images.labels):
            _, predictions = trainer.measure(network, held_out)
            accuracy = float((predictions == held_out.labels).mean())
            trial.report(accuracy, int(figures["epoch"]))
            if _orphaned():
                raise _Abandoned
            if figures["epoch"] < trainer.recipe.epochs and trial.should_prune():
                raise optuna.TrialPruned
        return accuracy

    return train
