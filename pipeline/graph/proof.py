"""The certification of an image set, batch by batch on every core, and kept on disk so that it can go on later."""

from __future__ import annotations

import functools
import hashlib
import json
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline import console
from pipeline.machine import host
from pipeline.records import disk

if TYPE_CHECKING:
    from pipeline.graph.operators import Operator

FIRST, PROBE, BATCH, CHUNK = 2, 20, 50, 500  # images to see the time by, to try, at once, and between two savings
LENIENT = 10  # how much longer all may seem to take by the first two, which warm up
Parts = dict[str, np.ndarray]  # of an execution: certified, answers and bounds so far, and the seconds they took


class Proof:
    """The bounds of a graph's answers to images `[n, c, h, w]`, kept in a file while they are being computed.

    `about` is all that they depend on: what a file has of another certification is not used.
    """

    def __init__(self, graph: list[Operator], images: np.ndarray, file: Path, about: Any) -> None:
        self._graph, self._images, self._file = graph, images, file
        self._about = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()

    def parts(self, executions: list[str], minutes: float) -> dict[str, Parts]:
        """Certify the images under each execution; only the first where none can be, or all would take too long."""
        import torch

        done, before = self._resumed(), torch.get_num_threads()
        torch.set_num_threads(1)  # of each worker: batches, not operators, are shared out
        host.keep_freed_memory()  # or the workers wait for each other at the system's page tables
        try:
            with (
                ThreadPoolExecutor(host.cores()) as pool,
                console.progress(len(executions) * len(self._images), "image", "certify") as bar,
            ):
                bar.update(sum(len(done[each]["answers"]) for each in executions if each in done))
                for execution in executions:
                    while (n := self._next(execution, done.get(execution), minutes)) > 0:
                        chunk = self._chunk(pool, execution, done.get(execution), n)
                        part = done.get(execution, {name: value[:0] for name, value in chunk.items()})
                        done[execution] = {name: np.concatenate([part[name], value]) for name, value in chunk.items()}
                        bar.update(len(chunk["answers"]))
                        self._save(done)
        finally:
            torch.set_num_threads(before)
        for execution in executions:
            part = done[execution]
            console.say(f"{execution}: {len(part['answers']):,} images in {part['seconds'].sum():.0f} s")
        return {execution: done[execution] for execution in executions}

    def _next(self, execution: str, part: Parts | None, minutes: float) -> int:
        """How many images to certify next; says why if the others are left out."""
        if part is None:
            return FIRST
        n, total = len(part["answers"]), len(self._images)
        if n >= PROBE and not part["certified"].any():
            if n < total:
                console.say(f"{execution}: none of {n} images can be certified; the others are left out")
            return 0
        if n < total and n <= PROBE:  # later ones don't decide: what was begun with is ended
            newest = n if n <= FIRST else n - FIRST  # without the first, which warm up
            alone = part["seconds"][-1] / newest / 60  # minutes of an image on one core
            whole = max(alone * total / host.cores() / (LENIENT if n < PROBE else 1), alone * min(PROBE, total))
            if whole > minutes:
                needed = console.count(round(whole), "minute") if whole >= 1 else f"{60 * whole:.1f} seconds"
                console.say(
                    f"{execution}: left out after {n} images: all {total:,} would take {needed} or more; "
                    "`pipeline certify --certify-minutes` allows more"
                )
                return 0
        return min(total - n, PROBE - n if n < PROBE else CHUNK)

    def _chunk(self, pool: ThreadPoolExecutor, execution: str, part: Parts | None, n: int) -> Parts:
        from pipeline.graph import certificate, rounding

        allowed, start = rounding.EXECUTIONS[execution], time.perf_counter()
        first = len(part["answers"]) if part else 0
        some = self._images[first : first + n]
        batches = [some[at : at + BATCH] for at in range(0, len(some), BATCH)]
        bounds = list(pool.map(functools.partial(certificate.certify, self._graph, execution=allowed), batches))
        found = {
            name: np.concatenate([getattr(each, name) for each in bounds])
            for name in ("certified", "answers", "bounds")
        }
        return {**found, "seconds": np.array([time.perf_counter() - start])}

    def _resumed(self) -> dict[str, Parts]:
        """What an interrupted run of the same certification had done."""
        from safetensors import SafetensorError, safe_open

        done: dict[str, Parts] = {}
        if self._file.is_file():
            try:
                with safe_open(self._file, "numpy") as kept:
                    arrays = {name: kept.get_tensor(name) for name in kept.keys()}  # noqa: SIM118
                    for name, values in arrays.items() if kept.metadata() == self._notes(arrays) else ():
                        execution, _, array = name.partition("/")
                        done.setdefault(execution, {})[array] = values
            except SafetensorError:
                done = {}
            console.say(f"{self._file}: {'going on from it' if done else 'of another certification: replaced'}")
        return done

    def _save(self, done: Mapping[str, Parts]) -> None:
        from safetensors.numpy import save

        arrays = {f"{execution}/{name}": value for execution, part in done.items() for name, value in part.items()}
        disk.save(self._file, save(arrays, self._notes(arrays)))

    def _notes(self, arrays: Mapping[str, np.ndarray]) -> dict[str, str]:
        """What stands with the arrays: the digest of what is certified, and of them."""
        parts = (
            self._about,
            *(f"{name} {hashlib.sha256(arrays[name].tobytes()).hexdigest()}" for name in sorted(arrays)),
        )
        return {"sha256": hashlib.sha256("\n".join(parts).encode()).hexdigest()}
