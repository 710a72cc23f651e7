"""The command `pipeline sweep`: trained in this process, except where processes are killed."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import UsageError
from pipeline.experiments.sweep import command as sweep
from pipeline.experiments.sweep import heatmap, trials, workers
from pipeline.records import manifest
from pipeline.records.experiments import Trial
from tests.support import command, one_line, started

PAIRS = [(lr, gamma) for lr in (0.02, 0.04) for gamma in (0.1, 0.5)]
SMALL = {"epochs": 1, "limit": 256, "hold_out": 500}
GRID = {**SMALL, "lr": (0.02, 0.04), "gamma": (0.1, 0.5), "prune": False, "grace": 3}


@pytest.fixture
def here(monkeypatch) -> None:
    """Sweeps that train in this process, as their only worker."""

    def work(storage, facts, plan, data, workers_asked):
        study = trials.begin(storage, facts)
        workers._worker(storage, facts, plan, data)
        return workers.finished(study, storage, plan)

    monkeypatch.setattr(sweep, "work", work)
    monkeypatch.setattr(workers.signal, "signal", lambda *_: None)


def start(few, out, **options: object) -> subprocess.Popen:
    """`pipeline sweep` in a process group of its own."""
    words = ["sweep", "--data", str(few), "--out", str(out)]
    for name, value in {**GRID, **options}.items():
        for each in value if isinstance(value, tuple) else (value,):
            flag = "--" + name.replace("_", "-")
            words += [flag.replace("--", "--no-")] if each is False else [flag, str(each)]
    return started(*words, text=True, start_new_session=True)


def ended(path: Path) -> dict[int, str]:
    """The number and worker of every trial that has ended, also while the storage is only being made."""
    ended = "SELECT number, value_json FROM trials NATURAL JOIN trial_user_attributes WHERE key = 'worker' AND state"
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", timeout=60, uri=True)) as connection:
            return dict(connection.execute(f"{ended} IN ('COMPLETE', 'PRUNED')").fetchall())
    except sqlite3.OperationalError:
        return {}


def process_of(trials: dict[int, str]) -> int:
    """The process of the worker that ended the first of these trials."""
    return int(trials[min(trials)].strip('"').rpartition(":")[2])


def until(process: subprocess.Popen, condition: Callable[[], object]) -> None:
    while not condition():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.1)


def pairs(rows) -> list[tuple[float, float]]:
    return sorted((row.lr, row.gamma) for row in rows)


@pytest.mark.exhaustive
def test_killed_and_restarted_ends_with_every_trial_once(few, tmp_path, here, capsys):
    process = start(few, tmp_path, workers=1, epochs=3)
    until(process, lambda: ended(tmp_path / "sweep.db"))
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = ended(tmp_path / "sweep.db").items()
    assert before and len(before) < len(PAIRS) and not (tmp_path / "sweep.json").exists()
    facts = sweep.run("mnist_cnn", out=tmp_path, data=str(few), **{**GRID, "epochs": 3}).facts
    assert before < ended(tmp_path / "sweep.db").items(), "what had ended isn't trained again"
    assert pairs(facts.rows) == PAIRS and {row.epochs for row in facts.rows} == {3}
    assert facts.best.accuracy == max(row.accuracy for row in facts.rows)
    assert facts.command.startswith("pipeline train mnist_cnn --lr 0.0") and " --labels hard" in facts.command
    assert manifest.read(tmp_path / "sweep.png").path.read_bytes().startswith(b"\x89PNG")
    assert "gamma has no effect" in capsys.readouterr().err
    with pytest.raises(UsageError, match="was begun with epochs 3: expected that, received 4"):
        sweep.run("mnist_cnn", out=tmp_path, data=str(few), **{**GRID, "epochs": 4})


@pytest.mark.exhaustive
def test_ctrl_c_leaves_one_line_and_what_is_finished(few, tmp_path):
    process = start(few, tmp_path, workers=1, lr=0.02, gamma=tuple(number / 50 for number in range(1, 31)))
    until(process, lambda: ended(tmp_path / "sweep.db"))
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in errors
    assert (
        errors.splitlines()[-1] == "error: interrupted; completed work is saved; run the same command again to continue"
    )
    finished = ended(tmp_path / "sweep.db")
    with pytest.raises(ProcessLookupError):
        os.kill(process_of(finished), 0)
    assert len(finished) < 30 and not (tmp_path / "sweep.json").exists()


@pytest.mark.exhaustive
def test_two_sweeps_on_one_storage_share_the_trials(few, tmp_path, here, monkeypatch):
    """One has two workers, of which the first that ends a trial is killed; this process waits for that, then helps."""
    path, training = tmp_path / "sweep.db", workers._training
    shared = {**GRID, "storage": f"sqlite:///{path}", "workers": 2}
    other = []

    def patient(*given):
        train = training(*given)

        def late(trial, pair):
            if not other:
                other.append(start(few, tmp_path / "other", **shared))
                until(other[0], lambda: ended(path))
                os.kill(process_of(ended(path)), signal.SIGKILL)
            return train(trial, pair)

        return late

    monkeypatch.setattr(workers, "_training", patient)
    mine = sweep.run("mnist_cnn", out=tmp_path / "mine", data=str(few), **shared).facts
    _, errors = other[0].communicate(timeout=60)
    assert other[0].returncode == 0, errors
    assert mine == manifest.read(tmp_path / "other" / "sweep.json").facts
    assert pairs(mine.rows) == PAIRS and len({row.worker for row in mine.rows}) >= 2


@pytest.mark.exhaustive
def test_the_whole_grid_killed_again_and_again_has_every_pair_once(few, tmp_path):
    whole = {"lr": sweep.LRS, "gamma": sweep.GAMMAS, "workers": 2}
    kills = 0
    while (process := start(few, tmp_path, **whole)).poll() is None:
        done = len(ended(tmp_path / "sweep.db"))
        until_more = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < until_more:
            if len(ended(tmp_path / "sweep.db")) >= done + 10:
                os.killpg(process.pid, signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.1)
        if process.wait() == 0:
            break
    facts = manifest.read(tmp_path / "sweep.json").facts
    assert kills >= 3 and pairs(facts.rows) == [(lr, gamma) for lr in sweep.LRS for gamma in sweep.GAMMAS]


@pytest.mark.exhaustive
def test_a_trial_with_a_bad_learning_rate_is_pruned(few, tmp_path, here):
    options = {**SMALL, "epochs": 3, "lr": (0.04, 100.0), "gamma": (0.1, 0.2, 0.3, 0.4, 0.5)}
    rows = sweep.run("mnist_cnn", out=tmp_path, data=str(few), **options).facts.rows
    assert {row.epochs for row in rows if row.lr == 0.04} == {3}
    assert [(row.lr, row.epochs) for row in rows if row.pruned] == [(100, 2)] * 5


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_drawn_sweep_ends(few, tmp_path, here, sampler):
    options = {**SMALL, "sampler": sampler, "trials": 3, "seed": 2}
    rows = sweep.run("mnist_cnn", out=tmp_path, data=str(few), **options).facts.rows
    assert len(rows) == 3 and len(set(pairs(rows))) == 3
    assert all(0.01 <= row.lr <= 0.06 and 0.1 <= row.gamma <= 0.9 for row in rows)
    if sampler == "random":
        plan, other = (sweep._plan("random", [0.01, 0.06], [0.1, 0.9], 3, seed) for seed in (2, 3))
        assert pairs(rows) == sorted((pair["lr"], pair["gamma"]) for pair in plan) and plan != other


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--trials", "0", "--sampler", "tpe"], "--trials: expected 1 or more"),
        (["--workers", "0"], "--workers: expected 1 or more"),
        (["--grace", "2"], "--grace: expected 3 or more"),
        (["--lr", "-1"], "--lr: expected"),
        (["--seed", "65536"], "--seed: expected 0 to 65535"),
        (["--gamma", "2"], "--gamma: expected 0 to 1"),
        (["--hold-out", "0"], "--hold-out: expected 1 or more"),
        (["--hold-out", "60000"], "--hold-out 60000: expected fewer than the"),
        (["--storage", "nonsense"], "--storage nonsense: cannot be used"),
        (["--storage", "postgresql://me:secret@localhost:1/x"], "--storage postgresql://localhost:1/x: cannot"),
        (["--storage", "postgresql://me:a/secret:b@host:port/x?password=secret"], "cannot be used"),
        (["--storage", "sqlite://"], "an in-memory database cannot be shared"),
        (["--storage", "mongodb://host/x"], "expected an existing database"),
        (["--name", "../x"], "--name '../x': expected letters"),
        (["--name", ""], "expected a value, received nothing"),
        (["--sampler", "luck"], "luck"),
    ],
)
def test_wrong_use_is_one_line(few, tmp_path, arguments, text):
    error = one_line(command("sweep", "--data", few, "--out", tmp_path, "--hold-out", "100", *arguments), 2)
    assert text in error and "secret" not in error


def test_names_have_files_of_their_own(few, tmp_path, here, monkeypatch, capsys):
    options = {**SMALL, "out": tmp_path, "data": str(few), "lr": (0.02,), "gamma": (0.5,)}
    for name in ("one", "two"):
        made = sweep.run("mnist_cnn", name=name, **options)
        sweep.show(made)
        assert made.path == tmp_path / f"{name}.json" and "best: pipeline train" in capsys.readouterr().out
    names = {path.name for path in tmp_path.iterdir()}
    assert {f"{name}.{end}" for name in ("one", "two") for end in ("json", "png")} < names
    monkeypatch.setattr(sweep, "work", workers.work)  # with processes for what is missing: none
    assert sweep.run("mnist_cnn", name="two", **options).facts == made.facts
    assert "1 of 1 trials are on record" in capsys.readouterr().err
    assert made.facts.command.endswith(f"--data {few}")
    with np.load(few) as file:
        np.savez(tmp_path / "other.npz", **{**file, "train_labels": np.roll(file["train_labels"], 1)})
    with pytest.raises(UsageError, match="was begun with images"):
        sweep.run("mnist_cnn", name="two", **{**options, "data": str(tmp_path / "other.npz")})


def picture(monkeypatch, rows, grid: bool):
    """The axes that were drawn."""
    from matplotlib import pyplot as plt

    with monkeypatch.context() as patched:
        patched.setattr(plt, "close", lambda figure: None)
        assert heatmap.draw(rows, grid=grid, title="held out").startswith(b"\x89PNG")
    axes = plt.gcf().axes[0]
    plt.close("all")
    return axes


def test_the_picture_shows_grids_draws_and_what_was_pruned(monkeypatch):
    rows = [
        Trial(lr=lr, gamma=gamma, accuracy=0.98 + lr * gamma, pruned=gamma > 0.4, epochs=3, worker="host:1")
        for lr, gamma in ((0.04, 0.1), (0.02, 0.1), (0.04, 0.5), (0.02, 0.5))
    ]
    axes = picture(monkeypatch, rows, grid=True)
    texts = {text.get_position(): (text.get_text(), text.get_style()) for text in axes.texts}
    assert (texts[0, 0], texts[1, 0]) == (("98.20", "normal"), ("98.40", "normal"))
    assert (texts[0, 1], texts[1, 1]) == (("99.00", "italic"), ("100.00", "italic"))
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0.02", "0.04"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0.1", "0.5"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("learning rate", "gamma of StepLR")
    assert axes.images[0].get_array().mask.tolist() == [[False, False], [True, True]]
    assert axes.get_title() == "held out; best 98.40% at lr 0.04, gamma 0.1"
    pruned, whole, best = picture(monkeypatch, rows, grid=False).collections
    assert pruned.get_offsets().tolist() == [[0.04, 0.5], [0.02, 0.5]]
    assert whole.get_offsets().tolist() == [[0.04, 0.1], [0.02, 0.1]]
    assert best.get_offsets().tolist() == [[0.04, 0.1]]
    assert picture(monkeypatch, rows[:1], grid=True).texts[0].get_text() == "98.40"
