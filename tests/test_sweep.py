from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import optuna
import pytest
from conftest import ROOT, command, one_line

from pipeline import artifact, heatmap, trials
from pipeline.errors import PipelineError, UsageError

PAIRS = [(lr, gamma) for lr in (0.02, 0.04) for gamma in (0.1, 0.5)]
GRID = ["--lr", "0.02", "--lr", "0.04", "--gamma", "0.1", "--gamma", "0.5", "--epochs", "3", "--limit", "2560"]


def line(data, out, *more: str) -> list[str]:
    return [sys.executable, "-m", "pipeline", "sweep", "--data", str(data), "--out", str(out), *GRID, *more]


def start(words: list[str], grace: int = 4) -> subprocess.Popen:
    """A sweep in a process group of its own, with dead workers noticed sooner than a minute."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = [*words, "--grace", str(grace)]
    return subprocess.Popen(words, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)


def ended(out) -> list:
    meeting = trials.Meeting(f"sqlite:///{out / 'sweep.db'}", "sweep")
    return trials.ended(trials.load(meeting, {"prune": True}))


def pairs(rows) -> list[tuple[float, float]]:
    return sorted((row["lr"], row["gamma"]) for row in rows)


def test_killed_and_restarted_ends_with_every_trial_once(data, tmp_path):
    process = start(line(data, tmp_path, "--workers", "2", "--no-prune"))
    while not (tmp_path / "sweep.db").exists() or not ended(tmp_path):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.3)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = {(trial.params["lr"], trial.params["gamma"]) for trial in ended(tmp_path)}
    assert before and len(before) < len(PAIRS) and not (tmp_path / "sweep.json").exists()
    again = start(line(data, tmp_path, "--workers", "2", "--no-prune"))
    _, errors = again.communicate(timeout=300)
    assert again.returncode == 0 and "gamma has no effect" in errors, errors
    made = artifact.read(tmp_path / "sweep.json")
    assert pairs(made.facts["rows"]) == PAIRS and {row["epochs"] for row in made.facts["rows"]} == {3}
    best = max(made.facts["rows"], key=lambda row: row["accuracy"])
    assert made.facts["best"]["accuracy"] == best["accuracy"]
    assert made.facts["command"].startswith("pipeline train mnist_cnn --lr 0.0")
    assert artifact.read(tmp_path / "sweep.png").path.read_bytes().startswith(b"\x89PNG")
    other = one_line(command("sweep", "--data", data, "--out", tmp_path, *GRID, "--epochs", "4"), 2)
    assert "was begun with epochs 3" in other


def test_two_sweeps_on_one_storage_share_the_trials(data, tmp_path):
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    words = ["--workers", "1", "--storage", url, "--no-prune"]
    both = [start(line(data, tmp_path / name, *words), grace=60) for name in ("one", "other")]
    for process in both:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    found = [json.loads((tmp_path / name / "sweep.json").read_text())["rows"] for name in ("one", "other")]
    assert found[0] == found[1] and pairs(found[0]) == PAIRS
    workers = {row["worker"] for row in found[0]}
    assert len(workers) == 2, "each did some"


@pytest.mark.filterwarnings("ignore:Heartbeat of storage")
def test_a_trial_whose_worker_failed_is_trained_again_and_given_up_after_three_times(tmp_path):
    meeting = trials.Meeting(f"sqlite:///{tmp_path / 'x.db'}", "x", grace=1)
    facts = {"prune": False, "trials": 2}
    for _ in range(2):  # whoever comes second plans nothing
        trials.plan(meeting, [{"lr": 0.1, "gamma": 0.5}, {"lr": 0.2, "gamma": 0.5}], facts)
    study = trials.load(meeting, facts)
    assert len(study.trials) == 2 and trials._queue(study, facts, 1)
    numbers = []
    for attempt in range(5):
        trial = study.ask()
        numbers.append((trial.user_attrs["plan"], trial.suggest_float("lr", 0.1, 0.2)))
        if attempt == 0:
            trial.report(0.9, 1)
            study.tell(trial, 0.9)
        elif attempt == 1:  # died between taking it and its first heartbeat
            time.sleep(1.1)
        else:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
        if attempt < 3:
            assert trials._queue(study, facts, 1)
        else:
            break
    assert numbers == [(0, 0.1), (1, 0.2), (1, 0.2), (1, 0.2)]
    with pytest.raises(PipelineError, match="trial 1 of the plan failed 3 times"):
        trials._queue(study, facts, 1)
    assert [trial.params["lr"] for trial in trials.ended(study)] == [0.1]
    stranger = trials.Meeting(meeting.url, "other")
    optuna.create_study(storage=meeting.url, study_name="other").enqueue_trial({"lr": 0.1})
    with pytest.raises(UsageError, match="was begun with"):
        trials.plan(trials.Meeting(stranger.url, "other", grace=1), [], facts)


def test_a_drawn_sweep_prunes_and_ends(data, tmp_path):
    words = ["--sampler", "tpe", "--trials", "7", "--epochs", "4", "--limit", "1280", "--workers", "1", "--json"]
    result = command("sweep", "--data", data, "--out", tmp_path, *words)
    assert result.returncode == 0, result.stderr
    rows = json.loads(result.stdout)["facts"]["rows"]
    assert len(rows) == 7 and len(set(pairs(rows))) == 7
    assert all(0.01 <= row["lr"] <= 0.06 and 0.1 <= row["gamma"] <= 0.9 for row in rows)
    assert all(row["epochs"] == 4 or row["pruned"] for row in rows)


@pytest.mark.parametrize(
    "wrong",
    [
        (["--trials", "0", "--sampler", "tpe"], "--trials: expected 1 or more"),
        (["--lr", "-1"], "--lr: expected"),
        (["--gamma", "2"], "--gamma: expected 0 to 1"),
        (["--hold-out", "0"], "--hold-out: expected 1 or more"),
        (["--storage", "nonsense"], "--storage nonsense: cannot be used"),
        (["--storage", "postgresql://me:secret@localhost:1/x"], "--storage postgresql://localhost:1/x: cannot"),
        (["--storage", "postgresql://me:a/secret:b@host:port/x?password=secret"], "cannot be used"),
        (["--sampler", "luck"], "luck"),
    ],
)
def test_wrong_use_is_one_line(data, tmp_path, wrong):
    arguments, text = wrong
    error = one_line(command("sweep", "--data", data, "--out", tmp_path, *arguments), 2)
    assert text in error and "secret" not in error


def test_the_picture_shows_grids_draws_and_what_was_pruned():
    rows = [
        {"lr": lr, "gamma": gamma, "accuracy": 0.98 + lr * gamma, "pruned": gamma > 0.4, "epochs": 3}
        for lr, gamma in PAIRS
    ]
    for grid in (True, False):
        assert heatmap.draw(rows, grid=grid, title="x") == heatmap.draw(rows, grid=grid, title="x")
    assert heatmap.draw(rows[:1], grid=True, title="x").startswith(b"\x89PNG")
