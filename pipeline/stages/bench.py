"""Any form of the model in, latency out: percentiles of single requests, and throughput by batch size."""

from __future__ import annotations

import contextlib
import gc
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np

from pipeline import artifact, console, machine, runtimes, statistics
from pipeline.artifact import Artifact
from pipeline.errors import UsageError
from pipeline.stages import OptionalOut

ORDER = 70
KIND, FILE = "latency", "latency.json"
ROUNDS = 16  # turns that every subject gets, so that all meet the same noise
WARM_UP = 0.5  # seconds a subject
ENOUGH = 24_576  # requests for a p90; MLPerf Inference rules, SingleStream
UNSTABLE = 0.025  # coefficient of variation of the rounds' medians over which a run is called unstable


@dataclass
class _Subject:
    """One form in one runtime at one batch size, ready to be asked."""

    row: dict[str, Any]
    step: Callable[[], None]
    rounds: list[np.ndarray] = field(default_factory=list)  # seconds a request


def run(
    *forms: Artifact,
    out: OptionalOut = None,
    batch: Annotated[tuple[int, ...], "Batch size; may be given several times."] = (1, 8, 64),
    threads: Annotated[int, "Threads a request may use."] = 1,
    quick: Annotated[bool, "A twelfth of the requests: for a look, not for a claim."] = False,
    compare: Annotated[bool, "Also how many times faster than the checkpoint in plain PyTorch."] = False,
) -> Artifact:
    """Measure latency (p50 to p99.9, nothing clipped) and throughput of every form in every runtime.

    MLPerf-style single stream: the next request is made when the last has completed. Subjects take turns in short
    rounds, so their ratios hold on a busy machine. Warns when the rounds' medians vary by more than 2.5 %.
    """
    if not forms:
        raise UsageError(
            "nothing to measure: expected a form of a model, or a folder with one; `pipeline run` makes them"
        )
    if compare and not any(form.kind == "checkpoint" for form in forms):
        raise UsageError("--compare needs the checkpoint among the forms: name it, or a folder with it")
    if min((*batch, threads)) < 1:
        raise UsageError(f"expected batch sizes and threads of at least 1, received {[*batch]} and {threads}")
    before = machine.describe()
    with contextlib.ExitStack() as sessions:
        subjects = _subjects(forms, batch, threads, sessions)
        _measure(subjects, ENOUGH // 12 if quick else ENOUGH)
    rows = [subject.row | _figures(subject) for subject in subjects]
    found = {
        "machine": before | {"load_after": machine.describe()["load"]},
        "threads": threads,
        "quick": quick,
        "unstable": [f"{row['form']} at batch {row['batch']}" for row in rows if row["variation"] > UNSTABLE],
        "rows": rows,
        "speedup": _speedup(rows) if compare else None,
    }
    return artifact.write(
        out / FILE if out else None,
        (json.dumps(found, indent=1) + "\n").encode(),
        kind=KIND,
        parents=forms,
        options={"batch": batch, "threads": threads, "quick": quick, "compare": compare},
        versions=artifact.versions(*runtimes.packages(reader for form in forms for reader in _timed(form))),
        facts=found,
    )


def _timed(form: Artifact) -> list[tuple]:
    """The runtimes worth timing: those whose sessions offer a prepared request."""
    return [(runtime, mode) for runtime, mode in runtimes.readers(form.kind) if hasattr(runtime.Session, "step")]


def _subjects(forms, batches, threads: int, sessions: contextlib.ExitStack) -> list[_Subject]:
    found = []
    for form in forms:
        for runtime, mode in _timed(form):
            session = sessions.enter_context(runtime.load(form, mode=mode, threads=threads))
            row = {"form": form.name, "kind": form.kind, "sha256": form.sha256, "runtime": runtimes.title(runtime)}
            row["arithmetic"] = session.arithmetic
            found += [_Subject(row | {"batch": batch}, session.step(batch)) for batch in batches]
    return found


def _measure(subjects: list[_Subject], requests: int) -> None:
    """Batch 1 gets `requests` requests, larger batches as many as show as many images, at least 8 a round."""
    for subject in subjects:
        until = time.perf_counter() + WARM_UP
        while time.perf_counter() < until:
            subject.step()
    gc.collect()
    gc.disable()
    try:
        with console.progress(ROUNDS * len(subjects), "turn", "latency") as bar:
            for _ in range(ROUNDS):
                for subject in subjects:
                    subject.rounds.append(_turn(subject.step, max(8, requests // ROUNDS // subject.row["batch"])))
                    bar.update()
    finally:
        gc.enable()


def _turn(step: Callable[[], None], requests: int) -> np.ndarray:
    step()  # the turn of another subject has left the caches to it
    clock, times = time.perf_counter, np.empty(requests)
    for index in range(requests):
        start = clock()
        step()
        times[index] = clock() - start
    return times


def _figures(subject: _Subject) -> dict[str, Any]:
    seconds = np.concatenate(subject.rounds)
    medians = np.array([np.median(times) for times in subject.rounds])
    return {
        "requests": len(seconds),
        "microseconds": {name: value * 1e6 for name, value in statistics.percentiles(seconds).items()},
        "images_per_second": subject.row["batch"] * len(seconds) / float(seconds.sum()),
        "round_medians": [float(median * 1e6) for median in medians],
        "variation": float(medians.std() / medians.mean()),
    }


def _speedup(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each row's rounds against the same rounds of the checkpoint at the same batch size: median and quartiles."""
    plain = {row["batch"]: np.array(row["round_medians"]) for row in rows if row["kind"] == "checkpoint"}
    found = []
    for row in rows:
        ratios = plain[row["batch"]] / np.array(row["round_medians"])
        low, median, high = (float(value) for value in np.percentile(ratios, (25, 50, 75)))
        found.append(
            {
                "form": row["form"],
                "runtime": row["runtime"],
                "batch": row["batch"],
                "median": median,
                "quartiles": [low, high],
            }
        )
    return found


def show(latency: Artifact) -> None:
    """The latency as tables for people, with a warning if the run was unstable."""
    found = latency.facts
    about = found["machine"]
    title = f"{about['processor']}, {about['cores']} cores; {found['threads']} thread(s) a request; microseconds"
    headers = ["form", "runtime", "batch", "p50", "p90", "p99", "p99.9", "images/s", "requests"]
    rows = []
    for row in found["rows"]:
        times = [f"{row['microseconds'][name]:.1f}" if name in row["microseconds"] else "–" for name in headers[3:7]]
        rows.append([row["form"], row["runtime"], str(row["batch"]), *times, f"{row['images_per_second']:,.0f}"])
        rows[-1].append(f"{row['requests']:,}")
    console.table(headers, rows, title=title, spare=("requests", "p99.9", "images/s"))
    if found["speedup"]:
        ratios = [
            [r["form"], str(r["batch"]), f"{r['median']:.2f}", "{:.2f} – {:.2f}".format(*r["quartiles"])]
            for r in found["speedup"]
        ]
        console.table(
            ["form", "batch", "times faster", "quartiles"], ratios, title="against the checkpoint in PyTorch eager"
        )
    if found["quick"]:
        console.say(f"quick: fewer than the {ENOUGH:,} requests that a p90 is claimed from")
    if found["unstable"]:
        console.say(
            f"unstable: medians varied by over {UNSTABLE:.1%} between rounds for {', '.join(found['unstable'])}"
        )
