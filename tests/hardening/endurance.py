"""One process, a thousand sessions and requests, eight threads: memory flat, handles closed, the same answers."""

from __future__ import annotations

import ctypes
import gc
import os
import threading

import numpy as np

from pipeline import load
from pipeline.records import manifest
from pipeline.stages import verify
from tests.hardening import Place, Row

# Bytes that a process may grow by: a session that isn't closed keeps 300 KB a round, a small leak is for the long form.
ALWAYS, A_ROUND = 4 << 20, 50 << 10


def run(place: Place, scale: float) -> list[Row]:
    """Sessions opened and closed, requests, verifications, threads."""
    images = place.images().images[:20]  # with few, memory in use stays small beside what a leak would add
    return [
        _sessions(place, images, round(60 * scale)),
        _verifications(place, round(20 * scale)),
        _threads(place, images, round(200 * scale)),
    ]


def _size() -> int:
    """Bytes in memory, once what was freed has gone back to the system: by itself, glibc keeps it until it suits it."""
    gc.collect()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # glibc's
        trim(0)
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")


def _handles() -> int:
    return len(os.listdir("/proc/self/fd"))


def _flat(row: Row, rounds: int, once) -> Row:
    """The first tenth warms up; then neither memory nor handles may grow.

    What is cached once, whenever that is, is no leak: memory that has grown must do so a second time to count as one.
    """
    for _ in range(max(3, rounds // 10)):
        row.note(once())
    handles, grown = _handles(), 0
    for _ in range(2):
        grown = _growth(row, rounds, once)
        if grown <= ALWAYS + A_ROUND * rounds:
            break
    else:
        row.failures.append(f"memory grew twice, the second time by {grown:,} bytes in {rounds} rounds")
    if _handles() > handles:
        row.failures.append(f"{_handles() - handles} handles stay open")
    return row


def _growth(row: Row, rounds: int, once) -> int:
    before = _size()
    for _ in range(rounds):
        row.note(once())
    return _size() - before


def _sessions(place: Place, images: np.ndarray, rounds: int) -> Row:
    with load(place.chain / "mnist_cnn.onnx", threads=1) as model:
        expected = model(images)

    def once() -> str | None:
        with load(place.chain / "mnist_cnn.onnx", threads=1) as model:
            return None if np.array_equal(model(images), expected) else "other logits than the first time"

    return _flat(Row("long run", "sessions opened, asked, closed in one process"), rounds, once)


def _verifications(place: Place, rounds: int) -> Row:
    """On 500 images, since it is repetition that is tested."""
    import tempfile
    from pathlib import Path

    form, test = manifest.read(place.chain / "mnist_cnn.onnx"), place.images()
    with tempfile.TemporaryDirectory() as scratch:
        few = Path(scratch) / "few.npz"
        np.savez(few, images=test.images[:500], labels=test.labels[:500])
        expected = verify.run(form, data=str(few), gate=0.5).sha256

        def once() -> str | None:
            same = verify.run(form, data=str(few), gate=0.5).sha256 == expected
            return None if same else "another verification than the first time"

        return _flat(Row("long run", "verifications in one process"), rounds, once)


def _threads(place: Place, images: np.ndarray, rounds: int) -> Row:
    row = Row("long run", "requests to one session from 8 threads")
    with load(place.chain / "mnist_cnn.onnx", threads=1) as model:
        expected, lock = model(images), threading.Lock()

        def ask() -> None:
            for _ in range(rounds // 8):
                try:
                    problem = None if np.array_equal(model(images), expected) else "other logits than alone"
                except Exception as error:  # else it would end its thread alone
                    problem = repr(error)
                with lock:
                    row.note(problem)

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return row
