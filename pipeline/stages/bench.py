"""Measure latency and throughput of every form: percentiles of single requests, images a second by batch size."""

from __future__ import annotations

import contextlib
from typing import Annotated, Any

import msgspec
import numpy as np

from pipeline import console, runtimes
from pipeline.errors import UsageError
from pipeline.machine import host as machine
from pipeline.machine import jetson
from pipeline.measure import timing
from pipeline.records import code, manifest
from pipeline.records.manifest import Artifact
from pipeline.records.reports import Latency, Speedup
from pipeline.runtimes import tensorrt
from pipeline.stages import OptionalOut, Provider

KIND, FILE = "latency", "latency.json"


def run(
    *forms: Artifact,
    out: OptionalOut = None,
    batch: Annotated[tuple[int, ...], "Batch size; may be given several times."] = (1, 8, 64),
    threads: Annotated[int, "Threads a request may use."] = 1,
    quick: Annotated[bool, "A twelfth of the requests: for a look, not for a claim."] = False,
    compare: Annotated[bool, "Also how many times faster than the checkpoint in plain PyTorch."] = False,
    provider: Provider = "cpu",
    no_cuda_graph: Annotated[bool, "Engines only without a CUDA graph; otherwise with and without."] = False,
) -> Artifact:
    """Measure latency (p50 to p99.9, nothing clipped) and throughput of every form in every runtime.

    MLPerf-style single stream: the next request is made when the last has completed, with the copies to and from a GPU;
    what the GPU computes is timed beside it. Subjects take turns in short rounds, so their ratios hold on a busy
    machine. Warns when the rounds' medians vary by more than 2.5 %, and when a Jetson is in no state to be measured.
    """
    if not forms:
        raise UsageError(
            "nothing to measure: expected a form of a model, or a folder with one; `pipeline run` makes them"
        )
    if compare and not any(form.kind == "checkpoint" for form in forms):
        raise UsageError("--compare needs the checkpoint among the forms: name it, or a folder with it")
    expect_sizes(batch, threads)
    before, board = machine.describe(), [jetson.state()]
    readers = {form.name: _timed(form, provider, no_cuda_graph) for form in forms}
    with contextlib.ExitStack() as sessions:
        subjects = _subjects(forms, readers, batch, threads, sessions)
        timing.measure(subjects, timing.ENOUGH // 12 if quick else timing.ENOUGH, board)
    board = [state for state in (*board, jetson.state()) if state]
    rows = [subject.row | timing.figures(subject) for subject in subjects]
    unstable = [f"{row['form']} at batch {row['batch']}" for row in rows if row["variation"] > timing.UNSTABLE]
    return manifest.write(
        out / FILE if out else None,
        None,
        facts=Latency(
            machine=msgspec.structs.replace(before, load_after=machine.describe().load),
            board=board,
            warnings=jetson.warnings(board) if board else [],
            threads=threads,
            quick=quick,
            unstable=unstable,
            rows=rows,
            speedup=_speedup(rows) if compare else None,
        ),
        parents=forms,
        options=options(
            batch=batch, threads=threads, quick=quick, compare=compare, provider=provider, no_cuda_graph=no_cuda_graph
        ),
        versions=manifest.versions(*runtimes.packages(reader for form in forms for reader in readers[form.name])),
        code=code.digest(__name__),
    )


def expect_sizes(batch: tuple[int, ...], threads: int) -> None:
    """UsageError for sizes that can't be timed."""
    if min((*batch, threads)) < 1:
        raise UsageError(f"expected batch sizes and threads of at least 1, received {[*batch]} and {threads}")


def options(*_: Artifact, provider: str, no_cuda_graph: bool, **given: Any) -> dict[str, Any]:
    """What a measurement depends on besides the forms; what isn't the default alone, of what came later."""
    asked = {name: given[name] for name in ("batch", "threads", "quick", "compare")}
    asked |= {"provider": provider} if provider != "cpu" else {}
    return asked | ({"no_cuda_graph": True} if no_cuda_graph else {})


def _timed(form: Artifact, provider: str, no_cuda_graph: bool) -> list[tuple]:
    """The runtimes worth timing, each with a mode."""
    found = [each for each in runtimes.readers(form.kind, provider) if each[0].TIMED]
    return [(runtime, mode) for runtime, mode in found if not (no_cuda_graph and mode == tensorrt.GRAPH)]


def _subjects(forms, readers, batches, threads: int, sessions: contextlib.ExitStack) -> list[timing.Subject]:
    found = []
    for form in forms:
        for runtime, mode in readers[form.name]:
            session = sessions.enter_context(runtime.load(form, mode=mode, threads=threads))
            row = {"form": form.name, "kind": form.kind, "sha256": form.sha256, "runtime": runtimes.title(runtime)}
            row |= {"mode": mode, "arithmetic": session.arithmetic}
            for batch in batches:
                found.append(timing.Subject(row | {"batch": batch}, session.step(batch), session.gpu_step(batch)))
    return found


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
    facts = latency.facts
    about = facts.machine
    title = f"{about.processor}, {about.cores} cores; {facts.threads} thread(s) a request; microseconds"
    percentiles = ["p50", "p90", "p99", "p99.9"]
    headers = ["form", "runtime", "batch", *percentiles, "images/s", "requests", "GPU p50", "mJ/image"]
    rows = []
    for row in facts.rows:
        name = f"{row.runtime}, {row.mode}" if row.mode not in ("", "cpu") else row.runtime
        times = [_cell(row.microseconds.get(each)) for each in percentiles]
        rows.append([row.form, name, str(row.batch), *times, f"{row.images_per_second:,.0f}"])
        gpu, energy = (row.gpu_microseconds or {}).get("p50"), row.millijoules_per_image
        rows[-1] += [f"{row.requests:,}", _cell(gpu), _cell(energy)]
    for last in ("mJ/image", "GPU p50"):  # columns that this machine has nothing for
        if headers[-1] == last and all(row[-1] == "–" for row in rows):
            headers, rows = headers[:-1], [row[:-1] for row in rows]
    console.table(headers, rows, title=title, spare=("requests", "p99.9", "images/s"))
    _show_speedup(facts.speedup)
    _show_warnings(facts)


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def _show_speedup(speedup: list[Speedup] | None) -> None:
    if speedup:
        ratios = [[r.form, str(r.batch), f"{r.median:.2f}", "{:.2f} – {:.2f}".format(*r.quartiles)] for r in speedup]
        console.table(
            ["form", "batch", "times faster", "quartiles"], ratios, title="against the checkpoint in PyTorch eager"
        )


def _show_warnings(facts: Latency) -> None:
    if facts.board:
        board = facts.board[0]
        console.result(f"{board.model}, JetPack {board.jetpack or '?'}, mode {board.power_mode or '?'}")
    for warning in facts.warnings:
        console.say(f"not in a state worth measuring: {warning}")
    if facts.quick:
        console.say(f"quick: fewer than the {timing.ENOUGH:,} requests that a p90 is claimed from")
    if facts.unstable:
        console.say(
            f"unstable: medians varied by over {timing.UNSTABLE:.1%} between rounds for {', '.join(facts.unstable)}"
        )
