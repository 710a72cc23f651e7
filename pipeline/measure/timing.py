"""Time prepared requests: warmed up, in turns, one after the other, nothing clipped."""

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

ROUNDS = 16  # turns that every subject gets, so that all meet the same noise
WARM_UP = (0.5, 3.0)  # seconds a subject, at least and at most
WINDOW = 0.1  # seconds whose medians are compared to tell whether a subject is warm
ENOUGH = 24_576  # requests for a p90; MLPerf Inference rules, SingleStream
UNSTABLE = 0.025  # coefficient of variation of the rounds' medians over which a run is called unstable


@dataclass
class Subject:
    """One form in one runtime at one batch size, ready to be asked."""

    row: dict[str, Any]
    step: Callable[[], None]
    gpu_step: Callable[[], float] | None = None
    rounds: list[np.ndarray] = field(default_factory=list)  # seconds a request
    gpu: list[float] = field(default_factory=list)  # seconds a request on the GPU, without copies
    watts: list[float] = field(default_factory=list)


def measure(subjects: list[Subject], requests: int, board: list[Board | None]) -> None:
    """Batch 1 gets `requests` requests, larger batches as many as show as many images, at least 8 a round.

    A board's state is looked at after every round, and its power after every turn: beside the requests, not in one.
    """
    for subject in subjects:
        _warm_up(subject.step)
    gc.collect()
    gc.disable()
    try:
        with console.progress(ROUNDS * len(subjects), "turn", "latency") as bar:
            for _ in range(ROUNDS):
                for subject in subjects:
                    turn = max(8, requests // ROUNDS // subject.row["batch"])
                    subject.rounds.append(_turn(subject.step, turn))
                    if subject.gpu_step:
                        subject.gpu += [subject.gpu_step() for _ in range(turn)]
                    if board[0] and (state := jetson.state()) and state.watts:
                        subject.watts.append(state.watts)
                    bar.update()
                board.append(jetson.state())
    finally:
        gc.enable()


def _warm_up(step: Callable[[], None]) -> None:
    """Until two windows' medians agree: clocks rise under load, and kernels are compiled on the way."""
    least, most = WARM_UP
    begun, last = time.perf_counter(), 0.0
    while (passed := time.perf_counter() - begun) < most:
        times = []
        while sum(times) < WINDOW:
            times.append(float(_turn(step, 1)[0]))
        median = float(np.median(times))
        if passed >= least and abs(median - last) <= UNSTABLE * median:
            return
        last = median


def _turn(step: Callable[[], None], requests: int) -> np.ndarray:
    step()  # the turn of another subject has left the caches to it
    clock, times = time.perf_counter, np.empty(requests)
    for index in range(requests):
        start = clock()
        step()
        times[index] = clock() - start
    return times


def figures(subject: Subject) -> dict[str, Any]:
    seconds = np.concatenate(subject.rounds)
    medians = np.array([np.median(times) for times in subject.rounds])
    more: dict[str, Any] = {}
    if subject.gpu:
        times = statistics.percentiles(np.array(subject.gpu))
        more["gpu_microseconds"] = {name: value * 1e6 for name, value in times.items()}
    if subject.watts:  # the board's power while it was asked without a pause, times the time an image took
        watts = float(np.mean(subject.watts))
        more |= {"watts": watts, "millijoules_per_image": watts * float(seconds.mean()) / subject.row["batch"] * 1e3}
    return more | {
        "requests": len(seconds),
        "microseconds": {name: value * 1e6 for name, value in statistics.percentiles(seconds).items()},
        "images_per_second": subject.row["batch"] * len(seconds) / float(seconds.sum()),
        "round_medians": [float(median * 1e6) for median in medians],
        "variation": float(medians.std() / medians.mean()),
    }
