"""A plan of trials in, each of them trained once, by any number of workers on any number of machines.

An Optuna storage is where workers meet. Every trial of the plan is queued when the sweep is created; a worker takes one
after the other, and says every few seconds that it lives. What a dead one was at is queued again by the others.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import re
import signal
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import models
from pipeline import console, dataset, recipe
from pipeline.errors import PipelineError, UsageError
from pipeline.stages import train
from pipeline.training import Trainer, measure

if TYPE_CHECKING:
    import optuna

SHARED = ("seed", "hold_out", "limit", "epochs")  # a sweep's facts that every trial's training is given


@dataclass(frozen=True)
class Meeting:
    """Where workers meet: an Optuna storage URL, the sweep's name in it, and the seconds of silence after which one of
    them counts as dead."""

    url: str
    name: str
    grace: int = 60

    def __str__(self) -> str:
        """The URL for people: without a password in it."""
        return re.sub(r"(?<=:)[^:/@]+(?=@)", "***", self.url)


def options(facts: dict[str, Any], **numbers: float) -> dict[str, Any]:
    """A trial's training options, complete and checked: the default recipe with this learning rate and gamma."""
    how = {"recipe": "default", "device": "auto", "precision": "auto", "train_threads": 1}
    return recipe.options(facts["model"], **how, **{name: facts[name] for name in SHARED}, **numbers)


def _storage(meeting: Meeting) -> optuna.storages.RDBStorage:
    """The storage, with heartbeats: a trial whose worker has been silent for too long is queued again."""
    import optuna
    import sqlalchemy.exc

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    again = optuna.storages.RetryHeartbeatStaleTrialCallback()
    wait = {"connect_args": {"timeout": 60}} if meeting.url.startswith("sqlite") else {}
    beats = {"heartbeat_interval": max(1, meeting.grace // 6), "grace_period": meeting.grace}
    try:
        return optuna.storages.RDBStorage(
            meeting.url, engine_kwargs=wait, heartbeat_stale_trial_callback=again, **beats
        )
    except (sqlalchemy.exc.SQLAlchemyError, ImportError, RuntimeError) as error:
        line = " ".join(str(error).replace(meeting.url, str(meeting)).split())[:200]
        raise UsageError(f"--storage {meeting}: cannot be used: {line}; expected one as sqlite:///x.db") from error


def plan(meeting: Meeting, pairs: list[dict[str, float]], facts: dict[str, Any]) -> None:
    """Queue every trial, once: whoever creates the study does, others wait for it; a stranger's plan is refused."""
    import optuna

    storage = _storage(meeting)
    try:
        study = optuna.create_study(storage=storage, study_name=meeting.name, direction="maximize")
    except optuna.exceptions.DuplicatedStudyError:
        study = optuna.load_study(storage=storage, study_name=meeting.name)
        deadline = time.monotonic() + meeting.grace
        while "planned" not in study.user_attrs and time.monotonic() < deadline:
            time.sleep(0.5)
    begun = study.user_attrs.get("facts", facts)
    if other := [key for key in facts if begun.get(key) != facts[key]]:
        key = other[0]
        raise UsageError(
            f"{meeting}: sweep {meeting.name!r} was begun with {key} {begun.get(key)}: expected {facts[key]}; "
            "use that, or give this one another --name"
        )
    if "planned" in study.user_attrs:
        return
    study.set_user_attr("facts", facts)
    there = len(study.trials)  # what one who was killed while planning left
    for pair in pairs[there:]:
        study.enqueue_trial(pair, user_attrs={"planned": True})
    study.set_user_attr("planned", True)


def load(meeting: Meeting, facts: dict[str, Any]) -> optuna.Study:
    """The sweep in its storage, with the sampler and the pruner that its facts name."""
    import optuna

    kinds = {"random": optuna.samplers.RandomSampler, "tpe": optuna.samplers.TPESampler}
    sampler = kinds.get(facts["sampler"], optuna.samplers.RandomSampler)(seed=facts["seed"])
    pruner = optuna.pruners.MedianPruner(n_warmup_steps=2) if facts["prune"] else optuna.pruners.NopPruner()
    return optuna.load_study(storage=_storage(meeting), study_name=meeting.name, sampler=sampler, pruner=pruner)


def work(meeting: Meeting, facts: dict[str, Any], data: Path, workers: int) -> None:
    """So many processes that take one trial after the other until none is left; a bar of the trials that ended."""
    study, context = load(meeting, facts), multiprocessing.get_context("spawn")
    crew = [context.Process(target=_worker, args=(meeting, facts, data, n), daemon=True) for n in range(workers)]
    for process in crew:
        process.start()
    try:
        with console.progress(facts["trials"], "trial", "sweep") as bar:
            while any(process.is_alive() for process in crew):
                bar.update(len(ended(study)) - bar.n)
                crew[0].join(1)
            bar.update(len(ended(study)) - bar.n)
    finally:
        for process in crew:
            process.terminate()
    if len(ended(study)) < facts["trials"]:
        codes = ", ".join(str(process.exitcode) for process in crew)
        raise PipelineError(
            f"sweep {meeting.name!r}: its workers ended early (exit codes {codes}); run it again to go on"
        )


def _worker(meeting: Meeting, facts: dict[str, Any], data: Path, number: int) -> None:
    """Take trials until all have ended, waiting for those of others, which may yet turn out to be dead."""
    import optuna

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then ends this process
    try:
        study, trainer = load(meeting, {**facts, "seed": facts["seed"] + number}), _Trials(facts, data)
        while len(ended(study)) < facts["trials"]:
            if study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.WAITING,)):
                study.optimize(trainer.accuracy, n_trials=1, catch=(_Surplus,))
            else:
                optuna.storages.fail_stale_trials(study)
                time.sleep(1)
    except Exception as error:  # whatever it is, the parent reports it; the trial is queued again
        console.say(f"worker {number}: {' '.join(str(error).split())}")
        raise SystemExit(1) from None


def ended(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """The trials that were trained to their end or pruned."""
    import optuna

    states = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
    return study.get_trials(deepcopy=False, states=states)


class _Surplus(Exception):
    """Another worker took the last trial between this one's looking and asking."""


class _Trials:
    """What one process trains: the images are read once."""

    def __init__(self, facts: dict[str, Any], data: Path) -> None:
        self.model, self.facts = models.get(facts["model"]), facts
        self.space = {name: (min(facts[name]), max(facts[name])) for name in ("lr", "gamma")}
        self.images, self.held_out = train.split(dataset.train(data), facts, data)

    def accuracy(self, trial: optuna.Trial) -> float:
        """Held-out accuracy after the last epoch. Raises TrialPruned for a trial that the pruner gives up."""
        import optuna

        if not trial.user_attrs.get("planned"):
            raise _Surplus
        trial.set_user_attr("worker", f"{platform.node()}:{os.getpid()}")
        numbers = {name: trial.suggest_float(name, *bounds) for name, bounds in self.space.items()}
        asked = options(self.facts, **numbers)
        chosen = recipe.numbers(self.facts["model"], "default", asked)
        trainer = Trainer(self.model, chosen, asked["seed"], asked["device"], asked["precision"], quiet=True)
        parent = os.getppid()
        for network, figures, _ in trainer.fit(self.images.images, self.images.labels):
            _, predictions = measure(self.model, network, self.held_out, asked["device"])
            accuracy = float((predictions == self.held_out.labels).mean())
            trial.report(accuracy, int(figures["epoch"]))
            if os.getppid() != parent:
                raise SystemExit("the sweep that this worker belongs to is gone")
            if figures["epoch"] < chosen.epochs and trial.should_prune():
                raise optuna.TrialPruned
        return accuracy
