"""Time prepared requests: warmed up, in turns, one after the other, with no outlier removed."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline import console
from pipeline.machine import jetson, power
from pipeline.measure import statistics
from pipeline.records.devices import Board
from pipeline.records.reports import Estimate, Timed

ROUNDS = 20  # turns of every subject, so that all meet the same noise
WINDOWS = 5  # of as many rounds each, whose median is the throughput; MLPerf Tiny rules
WARM_UP = (0.5, 3.0)  # seconds a subject, at least and at most
WINDOW = 0.1  # seconds whose medians are compared to tell whether a subject is warm
STEADY = 0.025  # relative difference of two windows' medians up to which it is
REQUESTS = 24_576  # at batch 1; what MLPerf's rules asked for a p90 before early stopping
SECONDS = (30.0, 2.0)  # that a subject's requests may take, at most; and if quick
ESTIMATED = (90.0, 99.0)  # percentiles that are estimated by early stopping
SOAK = (10.0, 180.0)  # seconds of load whose ends are compared to tell whether a board is warm, and at most
DRIFT = 1.0  # °C between those ends up to which it is
POWER = (0.5, 2.0)  # seconds before a board's power is sampled, and meanwhile
UNSTABLE = 0.05  # spread of the windows over which a run is called unstable


@dataclass
class Subject:
    """One form in one runtime at one batch size, and its times in seconds a request."""

    about: dict[str, Any]  # the fields of `Timed` that say what is run
    batch: int
    step: Callable[[], None]
    gpu_step: Callable[[], float] | None = None
    rounds: list[np.ndarray] = field(default_factory=list)
    gpu: list[float] = field(default_factory=list)  # on the GPU, without copies
    power: dict[str, Any] = field(default_factory=dict)  # the fields of `Timed` that say what the board took

    def timed(self, *, quick: bool = False) -> Timed:
        """Return the latencies of all rounds in microseconds, the throughput of the windows; no estimates if quick."""
        seconds = np.concatenate(self.rounds)
        rates = self.batch / seconds.reshape(WINDOWS, -1).mean(1)
        middle = float(np.median(rates))
        return Timed(
            **self.about,
            **self.power,
            batch=self.batch,
            requests=len(seconds),
            microseconds=_microseconds(seconds),
            estimates=[] if quick else [_estimate(seconds, percent) for percent in ESTIMATED],
            images_per_second=middle,
            round_medians=[float(np.median(times) * 1e6) for times in self.rounds],
            windows=rates.tolist(),
            spread=float(np.ptp(rates)) / middle,
            gpu_microseconds=_microseconds(np.array(self.gpu)) if self.gpu else None,
        )


@dataclass
class Conditions:
    """What a measurement took place under; of a Jetson alone."""

    board: list[Board] = field(default_factory=list)  # its state before the first round, and after each
    idle: dict[str, float] = field(default_factory=dict)  # watts by rail, before any load
    warm_up: float | None = None  # seconds of load until temperature and times stood still
    warnings: list[str] = field(default_factory=list)


def _microseconds(seconds: np.ndarray) -> dict[str, float]:
    return {name: value * 1e6 for name, value in statistics.percentiles(seconds).items()}


def _estimate(seconds: np.ndarray, percent: float) -> Estimate:
    discarded, value = statistics.early_stopping(seconds, percent) or (None, None)
    return Estimate(
        percent=percent,
        confidence=statistics.CONFIDENCE,
        needed=statistics.needed(percent),
        made=len(seconds),
        discarded=discarded,
        microseconds=value * 1e6 if value is not None else None,
    )


def measure(subjects: list[Subject], *, quick: bool = False) -> Conditions:
    """Time every subject, and on a Jetson measure its power; return the conditions.

    Batch 1 gets `REQUESTS`, larger batches as many as show as many images, and as many as the estimates need; if quick,
    a twelfth, at least 8 a round. A slow subject gets fewer, as many as fit into `SECONDS`, at least one a round. The
    board's state is read between the rounds; its power is sampled when idle before, and under each subject's load after
    them, so that reading it is in no request's time.
    """
    images = REQUESTS // 12 if quick else REQUESTS
    least = 8 if quick else -(-statistics.needed(max(ESTIMATED)) // ROUNDS)
    turns = []
    conditions, before = Conditions(), jetson.state()
    if before:
        conditions.board.append(before)
        conditions.idle = _power(lambda: time.sleep(0.01))[0]
    for subject in subjects:
        fitting = int(SECONDS[quick] / ROUNDS / max(_warm_up(subject.step), 1e-9))
        turns.append(max(1, min(fitting, max(least, -(-images // ROUNDS // subject.batch)))))
    if before and not quick:
        _soak(subjects, conditions)
    gc.collect()
    gc.disable()
    try:
        with console.progress(ROUNDS * len(subjects), "turn", "latency") as bar:
            for _ in range(ROUNDS):
                for subject, turn in zip(subjects, turns, strict=True):
                    subject.rounds.append(_turn(subject.step, turn))
                    if subject.gpu_step:
                        subject.gpu += [subject.gpu_step() for _ in range(turn)]
                    bar.update()
                if state := jetson.state():
                    conditions.board.append(state)
    finally:
        gc.enable()
    for subject in subjects if conditions.idle else ():
        rails, seconds = _power(subject.step)
        watts, idle = power.total(rails), power.total(conditions.idle)
        if watts is not None and idle is not None:
            millijoules = max(0.0, watts - idle) * seconds / subject.batch * 1e3
            subject.power = {"watts": watts, "rails": rails, "millijoules_per_image": millijoules}
    if conditions.board:
        conditions.warnings += jetson.warnings(conditions.board)
    return conditions


def _warm_up(step: Callable[[], None]) -> float:
    """Run until two windows' medians agree, and return the last, in seconds: clocks rise, kernels are compiled."""
    least, most = WARM_UP
    begun, last = time.perf_counter(), 0.0
    while (passed := time.perf_counter() - begun) < most:
        median = _window(step)
        if passed >= least and abs(median - last) <= STEADY * median:
            return median
        last = median
    return last


def _window(step: Callable[[], None]) -> float:
    """Return the median of the times of as many requests as fit into a window, at least one."""
    begun, times = time.perf_counter(), [float(_turn(step, 1)[0])]
    while time.perf_counter() - begun < WINDOW:
        times.append(float(_turn(step, 1)[0]))
    return float(np.median(times))


def _soak(subjects: list[Subject], conditions: Conditions) -> None:
    """Load the board, subject by subject, until its temperature and, on average, their medians stand still, or warn."""
    apart, most = SOAK
    begun, last, heat = time.perf_counter(), np.full(len(subjects), np.inf), jetson.hottest()
    if heat is None:
        conditions.warnings.append("temperature can't be read, so the board may not be warm")
        return
    console.say(f"warming up until temperature and times stand still, at most {most:.0f} s")
    while (passed := time.perf_counter() - begun) < most:
        medians = np.zeros(len(subjects))
        while time.perf_counter() - begun < passed + apart:
            medians = np.array([_window(subject.step) for subject in subjects])
        before, heat = heat, jetson.hottest() or heat
        conditions.warm_up = time.perf_counter() - begun
        if abs(heat - before) <= DRIFT and abs(float(np.mean(medians / last)) - 1) <= STEADY:
            return
        last = medians
    conditions.warnings.append(f"temperature or latency still moved after {most:.0f} s of load; improve the cooling")


def _power(step: Callable[[], None]) -> tuple[dict[str, float], float]:
    """Return the mean watts by rail while `step` is run again and again, and the seconds that each took."""
    settle, enough = POWER
    with power.sampled() as samples:
        begun, steps = time.perf_counter(), 0
        while time.perf_counter() - begun < settle:
            step()
        samples.clear()
        begun = time.perf_counter()
        while (passed := time.perf_counter() - begun) < enough:
            step()
            steps += 1
        return power.mean([*samples]), passed / steps


def _turn(step: Callable[[], None], requests: int) -> np.ndarray:
    step()  # brings back what another subject's turn has driven out of the caches
    clock, times = time.perf_counter, np.empty(requests)
    for index in range(requests):
        start = clock()
        step()
        times[index] = clock() - start
    return times
