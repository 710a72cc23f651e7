"""A sweep's study and its workers, without training anything."""

from __future__ import annotations

import statistics
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import optuna
import pytest
import sqlalchemy

from pipeline import Recipe
from pipeline.errors import PipelineError, UsageError
from pipeline.experiments.sweep import command, trials, workers
from pipeline.experiments.sweep.trials import Storage
from pipeline.training.trainer import learning_rate

COMPLETE, RUNNING, FAIL = (getattr(optuna.trial.TrialState, name) for name in ("COMPLETE", "RUNNING", "FAIL"))
PLAN = [{"lr": 0.1, "gamma": 0.5}, {"lr": 0.2, "gamma": 0.5}]
FACTS = {"prune": False, "recipe": {}, "seed": 0}

# What is killed here has no optimize.
pytestmark = pytest.mark.filterwarnings("ignore:Heartbeat of storage is supposed")


@pytest.fixture
def storage(tmp_path) -> Storage:
    return Storage(f"sqlite:///{tmp_path / 'x.db'}", "x")


@pytest.fixture
def study(storage) -> optuna.Study:
    return trials.begin(storage, FACTS)


def take(study, storage, outcome, plan=PLAN) -> list[float]:
    """Claim and train a pair as a worker does; the training notes its learning rate and ends with the outcome."""
    lrs = []

    def train(trial: optuna.Trial, pair: dict[str, float]) -> float:
        lrs.append(trial.suggest_float("lr", pair["lr"], pair["lr"]))
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    workers.one(study, storage, plan, train)
    return lrs


def ask(study, plan=PLAN) -> tuple[optuna.Trial, dict[str, float] | None]:
    """A trial as a worker begins it, which is then killed."""
    trial = study.ask()
    return trial, trials.claim(study, plan, trial)


def silence(study, storage, seconds: int = 61) -> None:
    """Let the last heartbeats be this old, and Optuna look at them."""
    aged = sqlalchemy.text(f"UPDATE trial_heartbeats SET heartbeat = datetime('now', '-{seconds} seconds')")
    with sqlalchemy.create_engine(storage.url).begin() as connection:
        connection.execute(aged)
    optuna.storages.fail_stale_trials(study)


def test_errors_are_tried_three_times_and_kills_for_ever(study, storage, capsys):
    with pytest.raises(PipelineError, match="sweep 'x' is not finished: all its workers ended early"):
        workers.finished(study, storage, PLAN)
    for _ in range(2 * trials.TRIES):
        for _ in PLAN:
            assert ask(study)[1]
        silence(study, storage)
    outcomes = [0.9, ValueError("no memory"), ValueError("no memory"), ValueError("no memory at\nall")]
    lrs = [lr for outcome in outcomes for lr in take(study, storage, outcome)]
    good, bad = lrs[:2]
    assert lrs == [good, bad, bad, bad] and {good, bad} == {0.1, 0.2}
    assert take(study, storage, 0.7) == [], "one has ended and the other one isn't tried for ever"
    number = int(bad == 0.2)
    assert list(trials.progress(study, PLAN).given_up) == [number]
    with pytest.raises(PipelineError) as error:
        workers.finished(study, storage, PLAN)
    last = f"trial {number}, lr {bad:g}, failed 3 times, at last with: no memory at all;"
    assert f"sweep 'x' is not finished: {last}" in str(error.value)
    assert capsys.readouterr().err.count("no memory") == 3
    trials.begin(storage, FACTS)
    assert take(study, storage, ValueError("again")) == [bad], "started again, it is tried again"
    assert take(study, storage, 0.8) == [bad]
    assert [trial.value for trial in workers.finished(study, storage, PLAN)] == ([0.9, 0.8] if number else [0.8, 0.9])


def test_a_worker_without_a_heartbeat_is_dead_and_its_pair_is_claimed_again(study, storage):
    trial, pair = ask(study)
    trial.suggest_float("lr", 0.15, 0.15)  # as if TPE had drawn it
    for seconds, state in ((59, RUNNING), (61, FAIL)):
        silence(study, storage, seconds)
        assert study.trials[trial.number].state == state
    assert pair == PLAN[0] and trials.progress(study, PLAN).missing == {0: {"lr": 0.15, "gamma": 0.5}, 1: PLAN[1]}


def test_whoever_was_taken_for_dead_leaves_the_pair_to_others(study, storage):
    def train(trial: optuna.Trial, pair: dict[str, float]) -> float:
        silence(study, storage)
        if trial.user_attrs["plan"] == 0:
            trial.report(0.5, 1)
            raise AssertionError("a trial that has ended can't be reported on")
        return 0.5

    for number in range(2):  # noticed during the training, and after it
        workers.one(study, storage, PLAN[: number + 1], train)
        silence(study, storage)
    assert [trial.state for trial in study.trials].count(COMPLETE) == 0
    assert list(trials.progress(study, PLAN).missing) == [0, 1]
    assert not any("error" in trial.user_attrs for trial in study.trials)


def test_the_storages_failure_is_not_the_trials(study, storage):
    with pytest.raises(sqlalchemy.exc.OperationalError):
        take(study, storage, sqlalchemy.exc.OperationalError("SELECT", {}, Exception("no connection")))
    assert list(trials.progress(study, PLAN).missing) == [0, 1] and "error" not in study.trials[-1].user_attrs


def test_of_two_trials_with_one_pair_at_most_one_goes_on(study, monkeypatch):
    one, two = study.ask(), study.ask()
    before = trials.progress(study, PLAN[:1])
    with monkeypatch.context() as patch:
        patch.setattr(trials, "progress", lambda *_: before)  # neither knows of the other when it chooses
        assert trials.claim(study, PLAN[:1], one) == PLAN[0]
        assert trials.claim(study, PLAN[:1], two) is None
    study.tell(two, state=FAIL)
    assert ask(study, PLAN[:1])[1] is None, "another worker is training it"
    study.tell(one, 0.5)
    assert ask(study, PLAN[:1])[1] is None, "it has ended"


def test_many_workers_train_every_pair_once(study, storage):
    plan = [{"lr": number, "gamma": 0.5} for number in range(8)]

    def work(_: int) -> list[float]:
        mine, lrs = trials.load(storage, FACTS), []
        while trials.progress(mine, plan).missing:
            lrs += take(mine, storage, 0.9, plan)
        return lrs

    with ThreadPoolExecutor(4) as pool:
        trained = Counter(lr for lrs in pool.map(work, range(4)) for lr in lrs)
    assert trained == Counter(range(8))


def test_another_programs_study_and_other_facts_are_refused(study, storage, monkeypatch):
    optuna.create_study(storage=storage.url, study_name="other").enqueue_trial({"lr": 0.1})
    with pytest.raises(UsageError, match="another program's study"):
        trials.begin(Storage(storage.url, "other"), FACTS)
    assert len(optuna.load_study(storage=storage.url, study_name="other").trials) == 1
    with pytest.raises(UsageError, match="begun with seed 0: expected that, received 1"):
        trials.begin(storage, {**FACTS, "seed": 1})
    assert len(study.trials) == 2, "whoever is refused leaves nothing"
    optuna.create_study(storage=storage.url, study_name="unclaimed", direction="maximize")  # killed right after
    assert trials.begin(Storage(storage.url, "unclaimed"), FACTS)
    # To whoever begins at the same moment, it still looks empty.
    looks = iter([[], study.trials])
    monkeypatch.setattr(optuna.Study, "get_trials", lambda *_, **__: next(looks))
    with pytest.raises(UsageError, match="begun with seed 0"):
        trials.begin(storage, {**FACTS, "seed": 1})


def test_a_storage_without_its_password():
    storage = Storage("postgresql+psycopg://me:a/secret:b@host/x?password=secret", "x")
    assert str(storage) == "postgresql+psycopg://host/x"
    error = ValueError(f"could not\n  connect to {storage.url}\n[SQL: SELECT 1]\n(Background on this error at …)")
    assert storage.line(error) == f"could not connect to {storage}"


@pytest.mark.parametrize(("epochs", "first"), [(15, 7), (7, 7), (6, 2)])
def test_a_trial_is_pruned_when_gamma_has_acted_for_an_epoch(storage, epochs, first):
    study = trials.begin(storage, {"prune": True, "recipe": {"schedule": "step", "step_size": 6, "epochs": epochs}})
    recipe = Recipe(epochs=epochs, step_size=6)
    for accuracy in (0.9, 0.9, 0.9, 0.9, 0.9, 0.1):
        trial, pruned = study.ask(), []
        for epoch in range(1, epochs + 1):
            trial.report(accuracy, epoch)
            if trial.should_prune():
                pruned.append(epoch)
        study.tell(trial, accuracy)
    assert pruned == list(range(first, epochs + 1))
    if first > 2:  # epoch 1 is the one at learning_rate(recipe, 0)
        assert learning_rate(recipe, first - 1) < learning_rate(recipe, first - 2)


def test_tpe_draws_where_it_pays(storage):
    study, plan = trials.begin(storage, FACTS), command._plan("tpe", [0.01, 0.06], [0.1, 0.9], 50, 0)
    assert plan == [{}] * 50 and isinstance(study.sampler, optuna.samplers.TPESampler)
    study = optuna.create_study(sampler=study.sampler, direction="maximize")  # in memory, which is faster
    for _ in plan:
        trial = study.ask()
        lr, gamma = trial.suggest_float("lr", 0.01, 0.06), trial.suggest_float("gamma", 0.1, 0.9)
        study.tell(trial, -((lr - 0.05) ** 2) - 1e-6 * gamma)
    distances = [abs(trial.params["lr"] - 0.05) for trial in study.trials]
    assert statistics.median(distances[25:]) < 0.009  # drawn evenly, about 0.015
