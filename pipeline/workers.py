"""A sweep's queue in, its trials trained, by processes each of which takes one after the other.

A worker says every few seconds that it lives. One that is killed leaves a trial that others take; an error of a
training is put down with the trial, and the worker takes the next one.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import platform
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

import models
from pipeline import console, dataset, recipe, trials
from pipeline import meeting as meetings
from pipeline.errors import PipelineError
from pipeline.meeting import Meeting
from pipeline.training import Trainer, measure

if TYPE_CHECKING:
    import optuna

BEATS = 6  # of a worker, within the time after which it counts as dead


def work(meeting: Meeting, facts: dict[str, Any], data: Path, workers: int) -> None:
    """So many processes that take one trial after the other until none is left; a bar of the trials that ended."""
    study, context = trials.load(meeting, facts), multiprocessing.get_context("spawn")
    before = trials.errors(study)  # those of an earlier run, after which somebody may have mended it
    given = (meeting, facts, data, os.getpid(), before)
    crew = [context.Process(target=_worker, args=given, daemon=True) for _ in range(workers)]
    for process in crew:
        process.start()
    try:
        if there := len(trials.ended(study)):
            console.say(f"{meeting}: {there} of {facts['trials']} trials are on record")
        with console.progress(facts["trials"], "trial", "sweep") as bar:
            while alive := [process.sentinel for process in crew if process.is_alive()]:
                bar.update(len(trials.ended(study)) - bar.n)
                wait(alive, 1)
                time.sleep(0.2)
            bar.update(len(trials.ended(study)) - bar.n)
    finally:
        for process in crew:
            process.terminate()
    if len(trials.ended(study)) < facts["trials"]:
        raise PipelineError(f"{meeting}: {_unfinished(study, before, meeting.name)}")


def _unfinished(study: optuna.Study, before: Mapping[int, int], name: str) -> str:
    """Why a sweep isn't done: which trial keeps failing, or that no worker is left."""
    failing = trials.given_up(study, before)
    if not failing:
        return f"the workers of sweep {name!r} gave up; run it again to go on"
    number, last = next(iter(failing.items()))
    pair = ", ".join(f"{name} {value:g}" for name, value in last.params.items()) or "nothing drawn yet"
    more = f" (and {len(failing) - 1} more)" if len(failing) > 1 else ""
    return (
        f"trial {number} of sweep {name!r}, {pair}, failed {trials.TRIES} times{more}, at last with: "
        f"{last.user_attrs['error']}; mend that and run the sweep again: only what is missing is trained"
    )


def _worker(meeting: Meeting, facts: dict[str, Any], data: Path, parent: int, before: Mapping[int, int]) -> None:
    """Take trials until all have ended, waiting for those of others, which may yet turn out to be dead."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then ends this process
    try:
        study, watch = trials.load(meeting, facts), trials.Watch(meeting.grace)
        training = _Training(facts, data, parent)
        while os.getppid() == parent and _left(study, facts, before):
            if trials.queue(study, watch, before):
                one(study, meeting, training.accuracy)
            else:
                time.sleep(1)
    except Exception as error:  # whatever it is, and the trial is queued again
        console.say(f"worker {os.getpid()}: {meetings.line(error, meeting)}")
        raise SystemExit(1) from None


def _left(study: optuna.Study, facts: dict[str, Any], before: Mapping[int, int]) -> int:
    return facts["trials"] - len(trials.ended(study)) - len(trials.given_up(study, before))


def one(study: optuna.Study, meeting: Meeting, accuracy: Callable[[optuna.Trial], float]) -> None:
    """Take a trial and train it. An error is put down with it: this is what its tries are counted by."""
    import optuna
    import sqlalchemy.exc

    trial = study.ask()
    outcome: dict[str, Any] = {"state": optuna.trial.TrialState.FAIL}
    try:
        if not trials.surplus(study, trial):
            with _beating(trial, meeting.grace / BEATS):
                outcome = {"values": accuracy(trial)}
    except optuna.TrialPruned:
        outcome = {"state": optuna.trial.TrialState.PRUNED}
    except (optuna.exceptions.UpdateFinishedTrialError, _Orphaned):
        pass  # others took this worker for dead, or its sweep is gone
    except (optuna.exceptions.OptunaError, sqlalchemy.exc.SQLAlchemyError):
        raise  # the storage's failure, not the trial's
    except Exception as error:
        text = meetings.line(error, meeting)
        trial.set_user_attr("error", text)
        console.say(f"worker {os.getpid()}: trial {trial.user_attrs['plan']}: {text}")
    trials.tell(study, trial.number, **outcome)


@contextmanager
def _beating(trial: optuna.Trial, seconds: float) -> Iterator[None]:
    """Say every so many seconds that somebody is at this trial: a count, since clocks differ between machines."""
    import optuna
    import sqlalchemy.exc

    over = threading.Event()

    def beat() -> None:
        for number in itertools.count(1):
            if over.wait(seconds):
                return
            try:
                trial.set_user_attr("beat", number)
            except optuna.exceptions.UpdateFinishedTrialError:
                return
            except (optuna.exceptions.OptunaError, sqlalchemy.exc.SQLAlchemyError):
                continue  # the next one may get through; if not, the training ends with it

    trial.set_user_attr("beat", 0)  # there before the thread: optuna copies these while it only changes one
    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


class _Orphaned(Exception):
    """The sweep that a worker belonged to is gone."""


class _Training:
    """What one process trains: the images are read once."""

    def __init__(self, facts: dict[str, Any], data: Path, parent: int) -> None:
        self.model, self.facts, self.parent = models.get(facts["model"]), facts, parent
        self.images, self.held_out = dataset.split(data, facts["hold_out"], facts["limit"])
        self.space = {name: (min(facts[name]), max(facts[name])) for name in ("lr", "gamma")}

    def accuracy(self, trial: optuna.Trial) -> float:
        """Held-out accuracy after the last epoch. Raises TrialPruned for a trial that the pruner gives up."""
        import optuna

        trial.set_user_attr("worker", f"{platform.node()}:{os.getpid()}")
        numbers = {name: trial.suggest_float(name, *bounds) for name, bounds in self.space.items()}
        asked = trials.options(self.facts, **numbers)
        chosen = recipe.numbers(self.facts["model"], "default", asked)
        how = {"threads": asked["train_threads"], "quiet": True}
        trainer = Trainer(self.model, chosen, asked["seed"], asked["device"], asked["precision"], **how)
        for network, figures, _ in trainer.fit(self.images.images, self.images.labels):
            _, predictions = measure(self.model, network, self.held_out, asked["device"])
            accuracy = float((predictions == self.held_out.labels).mean())
            trial.report(accuracy, int(figures["epoch"]))
            if os.getppid() != self.parent:
                raise _Orphaned
            if figures["epoch"] < chosen.epochs and trial.should_prune():
                raise optuna.TrialPruned
        return accuracy
