"""Time prepared requests: warmed up, in turns, one after the other, with no outlier removed."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline import console
from pipeline.machine import jetson
from pipeline.measure import statistics
from pipeline.records.devices import Board
from pipeline.records.reports import Estimate, Timed

ROUNDS = 20  # turns of every subject, so that all meet the same noise
WINDOWS = 5  # of as many rounds each, whose median is the throughput; MLPerf Tiny rules
WARM_UP = (0.5, 3.0)  # seconds a subject, at least and at most
WINDOW = 0.1  # seconds whose medians are compared to tell whether a subject is warm
STEADY = 0.025  # relative difference of two windows' medians up to which it is
REQUESTS = 24_576  # at batch 1; what MLPerf's rules asked for a p90 before early stopping
ESTIMATED = (90.0, 99.0)  # percentiles that are estimated by early stopping
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
    watts: list[float] = field(default_factory=list)

    def timed(self, *, quick: bool = False) -> Timed:
        """Return the latencies of all rounds in microseconds, the throughput of the windows; no estimates if quick."""
        seconds = np.concatenate(self.rounds)
        rates = self.batch / seconds.reshape(WINDOWS, -1).mean(1)
        middle = float(np.median(rates))
        # The board's power while requests followed each other without a pause, times the time an image took.
        watts = float(np.mean(self.watts)) if self.watts else None
        joules = watts * float(seconds.mean()) / self.batch if watts is not None else None
        return Timed(
            **self.about,
            batch=self.batch,
            requests=len(seconds),
            microseconds=_microseconds(seconds),
            estimates=[] if quick else [_estimate(seconds, percent) for percent in ESTIMATED],
            images_per_second=middle,
            round_medians=[float(np.median(times) * 1e6) for times in self.rounds],
            windows=rates.tolist(),
            spread=float(np.ptp(rates)) / middle,
            gpu_microseconds=_microseconds(np.array(self.gpu)) if self.gpu else None,
            watts=watts,
            millijoules_per_image=joules * 1e3 if joules is not None else None,
        )


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


def measure(subjects: list[Subject], *, quick: bool = False) -> list[Board]:
    """Time every subject, and return a Jetson's state before the first round and after each; empty elsewhere.

    Batch 1 gets `REQUESTS`, larger batches as many as show as many images, and as many as the estimates need; if quick,
    a twelfth, at least 8 a round. The board's state is read between the rounds, and its power between the turns, never
    during a request.
    """
    images = REQUESTS // 12 if quick else REQUESTS
    least = 8 if quick else -(-statistics.needed(max(ESTIMATED)) // ROUNDS)
    before = jetson.state()
    states = [before]
    for subject in subjects:
        _warm_up(subject.step)
    gc.collect()
    gc.disable()
    try:
        with console.progress(ROUNDS * len(subjects), "turn", "latency") as bar:
            for _ in range(ROUNDS):
                for subject in subjects:
                    turn = max(least, -(-images // ROUNDS // subject.batch))
                    subject.rounds.append(_turn(subject.step, turn))
                    if subject.gpu_step:
                        subject.gpu += [subject.gpu_step() for _ in range(turn)]
                    if before and (watts := jetson.watts()):
                        subject.watts.append(watts)
                    bar.update()
                states.append(jetson.state())
    finally:
        gc.enable()
    return [state for state in states if state]


def _warm_up(step: Callable[[], None]) -> None:
    """Run until two windows' medians agree: clocks rise under load, and kernels are compiled on the way."""
    least, most = WARM_UP
    begun, last = time.perf_counter(), 0.0
    while (passed := time.perf_counter() - begun) < most:
        window, times = time.perf_counter(), [float(_turn(step, 1)[0])]
        while time.perf_counter() - window < WINDOW:
            times.append(float(_turn(step, 1)[0]))
        median = float(np.median(times))
        if passed >= least and abs(median - last) <= STEADY * median:
            return
        last = median


def _turn(step: Callable[[], None], requests: int) -> np.ndarray:
    step()  # brings back what another subject's turn has driven out of the caches
    clock, times = time.perf_counter, np.empty(requests)
    for index in range(requests):
        start = clock()
        step()
        times[index] = clock() - start
    return times
