from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
from conftest import ROOT, command, one_line

from pipeline import artifact, heatmap, trials
from pipeline.experiments import sweep as sweeps
from pipeline.meeting import Meeting

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
    meeting = Meeting(f"sqlite:///{out / 'sweep.db'}", "sweep")
    try:
        return trials.ended(trials.load(meeting, {"prune": False}))
    except KeyError:  # the storage is there, the sweep in it not yet
        return []


def until(process: subprocess.Popen, there: Callable[[], object]) -> None:
    while not there():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.2)


def pairs(rows) -> list[tuple[float, float]]:
    return sorted((row["lr"], row["gamma"]) for row in rows)


def test_killed_and_restarted_ends_with_every_trial_once(data, tmp_path):
    process = start(line(data, tmp_path, "--workers", "2", "--no-prune"))
    until(process, lambda: (tmp_path / "sweep.db").exists() and ended(tmp_path))
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


def stopped_outside_the_storage(process: subprocess.Popen, path) -> None:
    """Stop a sweep when it holds no lock, or nobody else could go on."""
    for _ in range(100):
        os.killpg(process.pid, signal.SIGSTOP)
        try:
            sqlite3.connect(path, timeout=0.5).execute("BEGIN EXCLUSIVE").connection.close()
            return
        except sqlite3.OperationalError:
            os.killpg(process.pid, signal.SIGCONT)
            time.sleep(0.1)
    raise AssertionError(f"{path} is always locked")


def test_two_sweeps_on_one_storage_share_the_trials(data, tmp_path):
    words = ["--workers", "1", "--storage", f"sqlite:///{tmp_path / 'sweep.db'}", "--no-prune"]
    one = start(line(data, tmp_path / "one", *words), grace=300)
    until(one, lambda: (tmp_path / "sweep.db").exists() and ended(tmp_path))
    stopped_outside_the_storage(one, tmp_path / "sweep.db")  # until the other one has done some, too
    other = start(line(data, tmp_path / "other", *words), grace=300)
    try:
        until(other, lambda: len({trial.user_attrs["worker"] for trial in ended(tmp_path)}) == 2)
    finally:
        os.killpg(one.pid, signal.SIGCONT)
    for process in (one, other):
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    found = [json.loads((tmp_path / name / "sweep.json").read_text())["rows"] for name in ("one", "other")]
    assert found[0] == found[1] and pairs(found[0]) == PAIRS


def test_a_trial_with_a_bad_learning_rate_is_pruned(data, tmp_path):
    words = ["--epochs", "3", "--limit", "1280", "--workers", "1", "--json", "--lr", "0.04", "--lr", "100"]
    words += [word for gamma in ("0.1", "0.2", "0.3", "0.4", "0.5") for word in ("--gamma", gamma)]
    result = command("sweep", "--data", data, "--out", tmp_path, *words)
    assert result.returncode == 0, result.stderr
    rows = json.loads(result.stdout)["facts"]["rows"]
    assert {row["epochs"] for row in rows if row["lr"] == 0.04} == {3}
    assert [(row["lr"], row["epochs"]) for row in rows if row["pruned"]] == [(100, 2)] * 5


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_drawn_sweep_ends(data, tmp_path, sampler):
    words = ["--sampler", sampler, "--trials", "3", "--epochs", "1", "--limit", "1280", "--workers", "1", "--json"]
    result = command("sweep", "--data", data, "--out", tmp_path, *words, "--seed", "2")
    assert result.returncode == 0, result.stderr
    rows = json.loads(result.stdout)["facts"]["rows"]
    assert len(rows) == 3 and len(set(pairs(rows))) == 3
    assert all(0.01 <= row["lr"] <= 0.06 and 0.1 <= row["gamma"] <= 0.9 for row in rows)
    if sampler == "random":
        plan = sweeps._plan("random", [0.01, 0.06], [0.1, 0.9], 3, seed=2)
        assert pairs(rows) == pairs(plan) != pairs(sweeps._plan("random", [0.01, 0.06], [0.1, 0.9], 3, seed=3))


@pytest.mark.parametrize(
    "wrong",
    [
        (["--trials", "0", "--sampler", "tpe"], "--trials: expected 1 or more"),
        (["--lr", "-1"], "--lr: expected"),
        (["--seed", "65536"], "--seed: expected 0 to 65535"),
        (["--gamma", "2"], "--gamma: expected 0 to 1"),
        (["--hold-out", "0"], "--hold-out: expected 1 or more"),
        (["--storage", "nonsense"], "--storage nonsense: cannot be used"),
        (["--storage", "postgresql://me:secret@localhost:1/x"], "--storage postgresql://localhost:1/x: cannot"),
        (["--storage", "postgresql://me:a/secret:b@host:port/x?password=secret"], "cannot be used"),
        (["--storage", "sqlite://"], "is in one process's memory"),
        (["--storage", "mongodb://host/x"], "expected a database that is there"),
        (["--name", "../x"], "--name '../x': expected letters"),
        (["--name", ""], "--name '': expected letters"),
        (["--sampler", "luck"], "luck"),
    ],
)
def test_wrong_use_is_one_line(data, tmp_path, wrong):
    arguments, text = wrong
    error = one_line(command("sweep", "--data", data, "--out", tmp_path, *arguments), 2)
    assert text in error and "secret" not in error


def test_another_programs_study_is_refused_at_once(data, tmp_path):
    import optuna

    storage = f"sqlite:///{tmp_path / 'theirs.db'}"
    theirs = optuna.create_study(storage=storage, study_name="mine")
    theirs.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    line = ["sweep", "--data", data, "--out", tmp_path / "out", "--storage", storage, "--name", "mine"]
    assert "'mine' is another program's study" in one_line(command(*line), 2)
    assert len(optuna.load_study(storage=storage, study_name="mine").trials) == 2


def test_names_have_files_of_their_own(data, tmp_path):
    line = ["sweep", "--data", data, "--out", tmp_path, "--lr", "0.02", "--gamma", "0.5", "--workers", "1"]
    line += ["--epochs", "1", "--limit", "640", "--hold-out", "500"]
    for name in ("one", "two"):
        result = command(*line, "--name", name)
        assert result.returncode == 0 and f"{name}.json" in result.stdout, result.stderr
    assert {f"{name}.{end}" for name in ("one", "two") for end in ("json", "png")} < {
        p.name for p in tmp_path.iterdir()
    }
    assert "1 of 1 trials are on record" in command(*line, "--name", "two").stderr


def picture(monkeypatch, rows, grid: bool):
    """The axes that were drawn."""
    from matplotlib import pyplot as plt

    monkeypatch.setattr(plt, "close", lambda figure: None)
    assert heatmap.draw(rows, grid=grid, title="held out").startswith(b"\x89PNG")
    axes = plt.gcf().axes[0]
    monkeypatch.undo()
    plt.close("all")
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("learning rate", "gamma of StepLR")
    return axes


def test_the_picture_shows_grids_draws_and_what_was_pruned(monkeypatch):
    rows = [
        {"lr": lr, "gamma": gamma, "accuracy": 0.98 + lr * gamma, "pruned": gamma > 0.4, "epochs": 3}
        for lr, gamma in PAIRS
    ]
    axes = picture(monkeypatch, rows, grid=True)
    texts = {text.get_position(): (text.get_text(), text.get_style()) for text in axes.texts}
    assert texts == {
        (0, 0): ("98.20", "normal"),
        (1, 0): ("98.40", "normal"),
        (0, 1): ("99.00", "italic"),
        (1, 1): ("100.00", "italic"),
    }
    assert [[label.get_text() for label in axis.get_ticklabels()] for axis in (axes.xaxis, axes.yaxis)] == [
        ["0.02", "0.04"],
        ["0.1", "0.5"],
    ]
    assert axes.images[0].get_array().mask.tolist() == [[False, False], [True, True]]
    assert axes.get_title() == "held out; best 98.40% at lr 0.04, gamma 0.1"
    pruned, whole, best = picture(monkeypatch, rows, grid=False).collections
    assert pruned.get_offsets().tolist() == [[0.02, 0.5], [0.04, 0.5]]
    assert whole.get_offsets().tolist() == [[0.02, 0.1], [0.04, 0.1]]
    assert best.get_offsets().tolist() == [[0.04, 0.1]]
    assert picture(monkeypatch, rows[:1], grid=True).texts[0].get_text() == "98.20"
