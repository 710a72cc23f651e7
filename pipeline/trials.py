"""A plan of trials in, each of them trained once, by any number of workers on any number of machines.

An Optuna storage is where workers meet. The plan is queued when the sweep is created; a worker takes one trial after
the other and says every few seconds that it lives. A trial of the plan that nobody is at any more is queued again.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import signal
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

import models
from pipeline import console, dataset, recipe
from pipeline.errors import PipelineError, UsageError
from pipeline.training import Trainer, measure

if TYPE_CHECKING:
    import optuna

SHARED = ("seed", "hold_out", "limit", "epochs")  # a sweep's facts that every trial's training is given
TRIES = 3  # of one trial of the plan


@dataclass(frozen=True)
class Meeting:
    """Where workers meet: an Optuna storage URL, the sweep's name in it, and the seconds of silence after which one of
    them counts as dead."""

    url: str
    name: str
    grace: int = 60

    def __str__(self) -> str:
        """The storage for people: no user, password or query, which is where passwords may stand."""
        kind, _, rest = self.url.partition("://")
        return f"{kind}://{rest.partition('?')[0].rpartition('@')[2]}" if rest else self.url


def options(facts: dict[str, Any], **numbers: float) -> dict[str, Any]:
    """A trial's training options, complete and checked: the default recipe with this learning rate and gamma."""
    how = {"recipe": "default", "device": "auto", "precision": "auto", "train_threads": 1}
    return recipe.options(facts["model"], **how, **{name: facts[name] for name in SHARED}, **numbers)


def plan(meeting: Meeting, pairs: list[dict[str, float]], facts: dict[str, Any]) -> None:
    """Queue every trial, once: whoever creates the study does, others wait for it. A stranger's study is refused."""
    import optuna

    storage = _storage(meeting)
    try:
        study = optuna.create_study(storage=storage, study_name=meeting.name, direction="maximize")
        study.set_user_attr("facts", facts)
    except optuna.exceptions.DuplicatedStudyError:
        study = optuna.load_study(storage=storage, study_name=meeting.name)
        there, since = -1, 0.0  # wait as long as its creator gets on with it
        while ("planned" not in study.user_attrs and time.monotonic() - since < meeting.grace) or there < 0:
            if len(study.get_trials(deepcopy=False)) > there:
                there, since = len(study.get_trials(deepcopy=False)), time.monotonic()
            time.sleep(0.5)
    begun = study.user_attrs.get("facts", {})
    if other := [key for key in facts if begun.get(key) != facts[key]]:
        raise UsageError(
            f"{meeting}: sweep {meeting.name!r} was begun with {other[0]} {begun.get(other[0])}: expected "
            f"{facts[other[0]]}; use that, or give this one another --name"
        )
    if "planned" not in study.user_attrs:
        queued = {trial.user_attrs.get("plan") for trial in study.get_trials(deepcopy=False)}
        for number, pair in enumerate(pairs):
            if number not in queued:
                study.enqueue_trial(pair, user_attrs={"plan": number})
        study.set_user_attr("planned", True)


def load(meeting: Meeting, facts: dict[str, Any]) -> optuna.Study:
    """The sweep in its storage, with the pruner that its facts name and, for what isn't drawn beforehand, TPE."""
    import optuna

    pruner = optuna.pruners.MedianPruner(n_warmup_steps=2) if facts["prune"] else optuna.pruners.NopPruner()
    sampler = optuna.samplers.TPESampler()  # no seed: on every machine it would begin with the same draws
    return optuna.load_study(storage=_storage(meeting), study_name=meeting.name, sampler=sampler, pruner=pruner)


def ended(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """The trials of the plan that were trained to their end or pruned, each once."""
    import optuna

    states = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
    found = study.get_trials(deepcopy=False, states=states)
    first = {trial.user_attrs["plan"]: trial for trial in reversed(found) if "plan" in trial.user_attrs}
    return [first[number] for number in sorted(first)]


def work(meeting: Meeting, facts: dict[str, Any], data: Path, workers: int) -> None:
    """So many processes that take one trial after the other until none is left; a bar of the trials that ended."""
    study, context = load(meeting, facts), multiprocessing.get_context("spawn")
    given = (meeting, facts, data, os.getpid())
    crew = [context.Process(target=_worker, args=given, daemon=True) for _ in range(workers)]
    for process in crew:
        process.start()
    try:
        with console.progress(facts["trials"], "trial", "sweep") as bar:
            while alive := [process.sentinel for process in crew if process.is_alive()]:
                bar.update(len(ended(study)) - bar.n)
                wait(alive, 1)
                time.sleep(0.2)
            bar.update(len(ended(study)) - bar.n)
    finally:
        for process in crew:
            process.terminate()
    if len(ended(study)) < facts["trials"]:
        raise PipelineError(f"{meeting}: the workers of sweep {meeting.name!r} gave up; run it again to go on")


@contextmanager
def reported(meeting: Meeting) -> Iterator[None]:
    """Whatever a storage or its database fails with, as one line."""
    import optuna
    import sqlalchemy.exc

    try:
        yield
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.OptunaError) as error:
        raise PipelineError(f"{meeting}: the storage failed: {_line(error, meeting)}") from error


def _storage(meeting: Meeting) -> optuna.storages.RDBStorage:
    """The storage, with heartbeats: a trial whose worker has been silent for too long has failed."""
    import optuna
    import sqlalchemy.exc

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    wait_for_lock = {"connect_args": {"timeout": 60}} if meeting.url.startswith("sqlite") else {}
    beats = {"heartbeat_interval": max(1, meeting.grace // 6), "grace_period": meeting.grace}
    for attempt in range(TRIES):
        try:
            return optuna.storages.RDBStorage(meeting.url, engine_kwargs=wait_for_lock, **beats)
        except (sqlalchemy.exc.SQLAlchemyError, ImportError, RuntimeError, ValueError) as error:
            raced = "already exists" in str(error) or isinstance(error, sqlalchemy.exc.IntegrityError)
            if raced and attempt + 1 < TRIES:  # two sweeps made one storage's tables at once
                time.sleep(1)
                continue
            line = _line(error, meeting)
            raise UsageError(f"--storage {meeting}: cannot be used: {line}; expected one as sqlite:///x.db") from error


def _line(error: Exception, meeting: Meeting) -> str:
    return " ".join(str(error).replace(meeting.url, str(meeting)).split())[:200]


def _worker(meeting: Meeting, facts: dict[str, Any], data: Path, parent: int) -> None:
    """Take trials until all have ended, waiting for those of others, which may yet turn out to be dead."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then ends this process
    try:
        study, trainer = load(meeting, facts), _Trials(facts, data, parent)
        while len(ended(study)) < facts["trials"] and os.getppid() == parent:
            if not _queue(study, facts, meeting.grace):
                time.sleep(1)
                continue
            study.optimize(trainer.accuracy, n_trials=1, catch=(_Surplus,))
    except Exception as error:  # whatever it is, and the trial is queued again
        console.say(f"worker {os.getpid()}: {_line(error, meeting)}")
        raise SystemExit(1) from None


def _queue(study: optuna.Study, facts: dict[str, Any], grace: int) -> bool:
    """Whether a trial waits to be taken, after those of the plan that nobody is at were queued again."""
    import optuna

    state = optuna.trial.TrialState
    optuna.storages.fail_stale_trials(study)
    for trial in study.get_trials(deepcopy=False):  # taken by a worker that died before its first heartbeat
        silent = trial.state == state.RUNNING and "worker" not in trial.user_attrs
        if silent and (datetime.now() - trial.datetime_start).total_seconds() > grace:
            study.tell(trial.number, state=state.FAIL)
    trials = study.get_trials(deepcopy=False)
    there = {trial.user_attrs.get("plan"): trial for trial in trials if trial.state != state.FAIL}
    failed = Counter(trial.user_attrs.get("plan") for trial in trials if trial.state == state.FAIL)
    for trial in trials:
        number = trial.user_attrs.get("plan")
        if trial.state != state.FAIL or number is None or number in there:
            continue
        if failed[number] >= TRIES:
            raise PipelineError(f"trial {number} of the plan failed {TRIES} times")
        there[number] = trial
        study.enqueue_trial(trial.params or trial.system_attrs["fixed_params"], user_attrs={"plan": number})
    return bool(study.get_trials(deepcopy=False, states=(state.WAITING,)))


class _Surplus(Exception):
    """Another worker took the last trial between this one's looking and asking."""


class _Trials:
    """What one process trains: the images are read once."""

    def __init__(self, facts: dict[str, Any], data: Path, parent: int) -> None:
        self.model, self.facts, self.parent = models.get(facts["model"]), facts, parent
        self.images, self.held_out = dataset.split(data, facts["hold_out"], facts["limit"])
        self.space = {name: (min(facts[name]), max(facts[name])) for name in ("lr", "gamma")}

    def accuracy(self, trial: optuna.Trial) -> float:
        """Held-out accuracy after the last epoch. Raises TrialPruned for a trial that the pruner gives up."""
        import optuna

        if "plan" not in trial.user_attrs:
            raise _Surplus
        trial.set_user_attr("worker", f"{platform.node()}:{os.getpid()}")
        numbers = {name: trial.suggest_float(name, *bounds) for name, bounds in self.space.items()}
        asked = options(self.facts, **numbers)
        chosen = recipe.numbers(self.facts["model"], "default", asked)
        trainer = Trainer(self.model, chosen, asked["seed"], asked["device"], asked["precision"], quiet=True)
        for network, figures, _ in trainer.fit(self.images.images, self.images.labels):
            _, predictions = measure(self.model, network, self.held_out, asked["device"])
            accuracy = float((predictions == self.held_out.labels).mean())
            trial.report(accuracy, int(figures["epoch"]))
            if os.getppid() != self.parent:
                raise RuntimeError("the sweep that this worker belonged to is gone")
            if figures["epoch"] < chosen.epochs and trial.should_prune():
                raise optuna.TrialPruned
        return accuracy
