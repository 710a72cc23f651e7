"""A sweep's plan in, each trial of it in the queue of an Optuna storage until it has ended or keeps failing.

The plan is queued when the sweep is created. A trial of it that nobody is at any more is queued again; one whose
training raises an error is tried so many times. Workers, on any number of machines, call `queue` and then take one.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pipeline import meeting as meetings
from pipeline import recipe
from pipeline.errors import UsageError
from pipeline.meeting import Meeting

if TYPE_CHECKING:
    import optuna

SHARED = ("seed", "hold_out", "limit", "epochs")  # a sweep's facts that every trial's training is given
TRIES = 3  # of a trial whose training raises an error


def options(facts: dict[str, Any], **numbers: float) -> dict[str, Any]:
    """A trial's training options, complete and checked: the default recipe with this learning rate and gamma."""
    how = {"recipe": "default", "device": "auto", "precision": "auto", "train_threads": 1}
    return recipe.options(facts["model"], **how, **{name: facts[name] for name in SHARED}, **numbers)


def plan(meeting: Meeting, pairs: list[dict[str, float]], facts: dict[str, Any]) -> None:
    """Queue every trial, once: whoever creates the study does, others wait for it. A stranger's study is refused."""
    import optuna

    storage = meetings.storage(meeting)
    try:
        study = optuna.create_study(storage=storage, study_name=meeting.name, direction="maximize")
        study.set_user_attr("facts", facts)
    except optuna.exceptions.DuplicatedStudyError:
        study = optuna.load_study(storage=storage, study_name=meeting.name)
        _refuse_another_programs(study, meeting)
        _wait_for_its_plan(study, meeting.grace)
        if "facts" not in study.user_attrs and not study.get_trials(deepcopy=False):
            study.set_user_attr("facts", facts)  # its creator died before it could say what it wanted
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


def _refuse_another_programs(study: optuna.Study, meeting: Meeting) -> None:
    strange = any("plan" not in trial.user_attrs for trial in study.get_trials(deepcopy=False))
    if strange and "facts" not in study.user_attrs:
        raise UsageError(f"{meeting}: {meeting.name!r} is another program's study; give this sweep another --name")


def _wait_for_its_plan(study: optuna.Study, grace: float) -> None:
    """Until all trials are queued, as long as their creator gets on with it."""
    there, since = len(study.get_trials(deepcopy=False)), time.monotonic()
    while "planned" not in study.user_attrs and time.monotonic() - since < grace:
        time.sleep(0.5)
        if (now := len(study.get_trials(deepcopy=False))) > there:
            there, since = now, time.monotonic()


def load(meeting: Meeting, facts: dict[str, Any]) -> optuna.Study:
    """The sweep in its storage, with the pruner that its facts name and, for what isn't drawn beforehand, TPE."""
    import optuna

    pruners = optuna.pruners
    pruner = pruners.MedianPruner(n_warmup_steps=_first(facts)) if facts["prune"] else pruners.NopPruner()
    sampler = optuna.samplers.TPESampler()  # no seed: on every machine it would begin with the same draws
    return optuna.load_study(storage=meetings.storage(meeting), study_name=meeting.name, sampler=sampler, pruner=pruner)


def _first(facts: dict[str, Any]) -> int:
    """The epoch, counted from 1, after which a trial may first be pruned: gamma is to have acted for one epoch, or
    trials with one learning rate would be told apart by nothing. Without a step, the second."""
    numbers = facts["recipe"]
    steps = numbers["schedule"] == "step" and numbers["step_size"] < numbers["epochs"]
    return numbers["step_size"] + 1 if steps else 2


def ended(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """The trials of the plan that were trained to their end or pruned, each once."""
    import optuna

    states = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
    found = study.get_trials(deepcopy=False, states=states)
    first = {trial.user_attrs["plan"]: trial for trial in reversed(found) if "plan" in trial.user_attrs}
    return [first[number] for number in sorted(first)]


def errors(study: optuna.Study) -> Counter[int]:
    """How many times each trial of the plan raised an error. One whose worker was killed didn't."""
    return Counter(trial.user_attrs["plan"] for trial in _raised(study))


def given_up(study: optuna.Study, before: Mapping[int, int]) -> dict[int, optuna.trial.FrozenTrial]:
    """The trials of the plan that raised an error in all tries since there were `before` of them: the last try each."""
    done = {trial.user_attrs["plan"] for trial in ended(study)}
    last = {trial.user_attrs["plan"]: trial for trial in _raised(study)}
    tried = errors(study)
    return {n: last[n] for n in sorted(last) if n not in done and tried[n] - before.get(n, 0) >= TRIES}


def _raised(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    import optuna

    failed = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.FAIL,))
    return [trial for trial in failed if {"error", "plan"} <= trial.user_attrs.keys()]


class Watch:
    """Notices trials whose worker has died: what was put down with them stays the same for longer than `grace`.

    By this process's own clock, from when it first saw that: the machines' clocks and time zones may differ.
    """

    def __init__(self, grace: float) -> None:
        self._grace = grace
        self._seen: dict[int, tuple[dict[str, Any], float]] = {}

    def silent(self, trial: optuna.trial.FrozenTrial) -> bool:
        """Whether a running trial shows no sign of life."""
        signs, since = self._seen.get(trial.number, (None, 0.0))
        if signs != trial.user_attrs:  # its worker counts up a beat in them
            signs, since = dict(trial.user_attrs), time.monotonic()
            self._seen[trial.number] = signs, since
        return time.monotonic() - since > self._grace


def queue(study: optuna.Study, watch: Watch, before: Mapping[int, int]) -> bool:
    """Whether a trial waits to be taken, after those of the plan that nobody is at were queued again."""
    import optuna

    state = optuna.trial.TrialState
    for trial in study.get_trials(deepcopy=False, states=(state.RUNNING,)):
        if watch.silent(trial):
            tell(study, trial.number, state=state.FAIL)
    trials = study.get_trials(deepcopy=False)
    there = {trial.user_attrs.get("plan") for trial in trials if trial.state != state.FAIL}
    there |= {None, *given_up(study, before)}
    for trial in trials:
        number = trial.user_attrs.get("plan")
        if number not in there:
            there.add(number)
            pair = {**trial.system_attrs["fixed_params"], **trial.params}
            study.enqueue_trial(pair, user_attrs={"plan": number})
    return bool(study.get_trials(deepcopy=False, states=(state.WAITING,)))


def surplus(study: optuna.Study, trial: optuna.Trial) -> bool:
    """Whether a trial just taken isn't needed: it is none of the plan, made because another worker took the last one,
    or two workers queued it again at once and the other one is done or is older."""
    import optuna

    state, number = optuna.trial.TrialState, trial.user_attrs.get("plan")
    others = [other for other in study.get_trials(deepcopy=False) if other.user_attrs.get("plan") == number]
    return number is None or any(
        other.state in (state.COMPLETE, state.PRUNED) or (other.number < trial.number and other.state != state.FAIL)
        for other in others
    )


def tell(study: optuna.Study, number: int, **outcome: Any) -> None:
    """What became of a trial, unless another worker was first to say it."""
    import optuna

    with suppress(optuna.exceptions.UpdateFinishedTrialError):
        study.tell(number, skip_if_finished=True, **outcome)
