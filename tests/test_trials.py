"""A sweep's queue and its workers, without training anything."""

from __future__ import annotations

import statistics
import time
from dataclasses import replace

import optuna
import pytest

from models import mnist_cnn
from pipeline import trials, workers
from pipeline.errors import UsageError
from pipeline.experiments import sweep as sweeps
from pipeline.meeting import Meeting
from pipeline.training import learning_rate

WAITING, RUNNING, FAIL = (getattr(optuna.trial.TrialState, name) for name in ("WAITING", "RUNNING", "FAIL"))


@pytest.fixture
def sweep(tmp_path):
    """A planned sweep of two trials: where it meets, its facts, and its study."""
    meeting = Meeting(f"sqlite:///{tmp_path / 'x.db'}", "x", grace=1)
    facts = {"prune": False, "trials": 2}
    for _ in range(2):  # whoever comes second plans nothing
        trials.plan(meeting, [{"lr": 0.1, "gamma": 0.5}, {"lr": 0.2, "gamma": 0.5}], facts)
    study = trials.load(meeting, facts)
    assert [trial.user_attrs["plan"] for trial in study.trials] == [0, 1]
    return meeting, facts, study


def take(sweep, outcome, lrs: list[float]) -> None:
    """Take a trial as a worker does; its training notes the learning rate and ends with the outcome."""

    def accuracy(trial: optuna.Trial) -> float:
        lrs.append(trial.suggest_float("lr", 0.1, 0.2))
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    workers.one(sweep[2], sweep[0], accuracy)


def test_what_is_killed_is_trained_again_for_ever_and_what_raises_is_tried_three_times(sweep, capsys):
    _, _, study = sweep
    for _ in range(2 * trials.TRIES):  # Ctrl-C, again and again
        trials.tell(study, study.ask().number, state=FAIL)
        assert trials.queue(study, trials.Watch(60), {})
    lrs: list[float] = []
    outcomes = [0.9, ValueError("no memory"), ValueError("no memory"), ValueError("no memory at\nall")]
    for outcome in outcomes:
        assert trials.queue(study, trials.Watch(60), {})
        take(sweep, outcome, lrs)
    good, bad = lrs[0], 0.3 - lrs[0]  # in whichever order they were queued again
    assert lrs == pytest.approx([good, bad, bad, bad])
    assert not trials.queue(study, trials.Watch(60), {}), "the other one has ended and this one isn't tried for ever"
    (number,) = trials.given_up(study, {})
    text = workers._unfinished(study, {}, "x")
    assert text.startswith(f"trial {number} of sweep 'x', lr {bad:g}, failed 3 times, at last with: no memory at all; ")
    before = trials.errors(study)
    assert before == {number: 3} and not trials.given_up(study, before)
    assert trials.queue(study, trials.Watch(60), before), "started again, it is tried again"
    take(sweep, 0.8, lrs)
    assert len(trials.ended(study)) == 2 and not trials.given_up(study, {})
    assert capsys.readouterr().err.count("no memory") == 3


def test_a_worker_without_a_new_beat_is_dead_by_the_watchers_own_clock(sweep, monkeypatch):
    _, _, study = sweep
    now = [0.0]
    monkeypatch.setattr(trials.time, "monotonic", lambda: now[0])
    watches = trials.Watch(10), trials.Watch(10)
    trial = study.ask()  # died before its first beat
    beating = study.ask()
    for second in range(15):
        now[0] = second
        beating.set_user_attr("beat", second)
        for watch in watches:
            trials.queue(study, watch, {})
        assert study.trials[trial.number].state == (RUNNING if second <= 10 else FAIL)
    assert study.trials[beating.number].state == RUNNING
    assert [each.user_attrs["plan"] for each in study.trials] == [0, 1, 0], "queued again once"
    trials.tell(study, trial.number, state=FAIL)  # the other watcher had noticed it at the same time
    assert study.trials[trial.number].params == {}


def test_a_worker_beats_and_whom_others_took_for_dead_takes_the_next_trial(sweep):
    meeting, _, study = sweep

    def accuracy(trial: optuna.Trial) -> float:
        before = study.trials[trial.number].user_attrs["beat"]
        time.sleep(1)
        assert study.trials[trial.number].user_attrs["beat"] > before
        trials.tell(study, trial.number, state=FAIL)
        trial.report(0.5, 1)
        raise AssertionError("what is over can't be reported on")

    workers.one(study, meeting, accuracy)
    assert [trial.state for trial in study.trials] == [FAIL, WAITING] and not trials.errors(study)


def test_a_trial_queued_twice_is_trained_once(sweep):
    _, _, study = sweep
    lrs: list[float] = []
    take(sweep, 0.9, lrs)
    study.enqueue_trial({"lr": 0.1, "gamma": 0.5}, user_attrs={"plan": 0})  # done
    study.enqueue_trial({"lr": 0.2, "gamma": 0.5}, user_attrs={"plan": 1})  # another worker is at it
    at_it = study.ask()
    for _ in range(3):  # both, and one that is none of the plan
        take(sweep, 0.8, lrs)
    assert lrs == [0.1] and [trial.state for trial in study.trials[2:]] == [FAIL] * 3
    assert not trials.queue(study, trials.Watch(60), {}) and not trials.errors(study)
    trials.tell(study, at_it.number, state=FAIL)
    assert trials.queue(study, trials.Watch(60), {})
    take(sweep, 0.7, lrs)
    assert [trial.params["lr"] for trial in trials.ended(study)] == lrs == [0.1, 0.2]


def test_a_pair_half_drawn_is_queued_again_whole(sweep):
    _, _, study = sweep
    trial = study.ask()
    trial.suggest_float("lr", 0.1, 0.2)
    trials.tell(study, trial.number, state=FAIL)
    trials.queue(study, trials.Watch(60), {})
    assert study.trials[-1].system_attrs["fixed_params"] == {"lr": 0.1, "gamma": 0.5}


def test_a_sweep_that_somebody_else_began_is_refused_and_one_that_nobody_did_is_planned(sweep):
    meeting, facts, _ = sweep
    optuna.create_study(storage=meeting.url, study_name="other").enqueue_trial({"lr": 0.1})
    with pytest.raises(UsageError, match="another program's study"):
        trials.plan(Meeting(meeting.url, "other", grace=1), [], facts)
    optuna.create_study(storage=meeting.url, study_name="unclaimed", direction="maximize")  # killed right after
    unclaimed = Meeting(meeting.url, "unclaimed", grace=1)
    trials.plan(unclaimed, [{"lr": 0.1}], facts)
    assert len(trials.load(unclaimed, facts).trials) == 1


def drawn(tmp_path, facts, pairs) -> optuna.Study:
    meeting = Meeting(f"sqlite:///{tmp_path / 'x.db'}", "x")
    trials.plan(meeting, pairs, facts)
    return trials.load(meeting, facts)


@pytest.mark.parametrize(("epochs", "first"), [(15, 7), (7, 7), (6, 2)])
def test_a_trial_is_pruned_when_gamma_has_acted_for_an_epoch(tmp_path, epochs, first):
    shared = {"schedule": "step", "step_size": 6, "epochs": epochs}
    facts = {"prune": True, "trials": 6, "recipe": shared}
    study = drawn(tmp_path, facts, [{}] * 6)
    recipe = replace(mnist_cnn.Recipe(), epochs=epochs, step_size=6)
    for accuracy in (0.9, 0.9, 0.9, 0.9, 0.9, 0.1):
        trial, asked_for = study.ask(), []
        for epoch in range(1, epochs + 1):
            trial.report(accuracy, epoch)
            if trial.should_prune():
                asked_for.append(epoch)
        trials.tell(study, trial.number, values=accuracy)
    assert asked_for == list(range(first, epochs + 1))
    if first > 2:  # epoch 1 is the one at learning_rate(recipe, 0)
        rates = [learning_rate(recipe, epoch - 1) for epoch in asked_for]
        assert rates[0] == learning_rate(recipe, first - 1) < learning_rate(recipe, first - 2)


def test_tpe_draws_where_it_pays(tmp_path):
    facts = {"prune": False, "trials": 80}
    study = drawn(tmp_path, facts, sweeps._plan("tpe", [0.01, 0.06], [0.1, 0.9], 80, 0))
    assert isinstance(study.sampler, optuna.samplers.TPESampler)
    for _ in range(80):
        trial = study.ask()
        lr, gamma = trial.suggest_float("lr", 0.01, 0.06), trial.suggest_float("gamma", 0.1, 0.9)
        trials.tell(study, trial.number, values=-((lr - 0.05) ** 2) - 1e-6 * gamma)
    distances = [abs(trial.params["lr"] - 0.05) for trial in trials.ended(study)]
    assert len(distances) == 80 and statistics.median(distances[30:]) < 0.009  # drawn evenly, about 0.015
    assert all(0.01 <= trial.params["lr"] <= 0.06 and 0.1 <= trial.params["gamma"] <= 0.9 for trial in study.trials)
