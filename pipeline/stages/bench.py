"""Measure latency and throughput of every form: percentiles of single requests, images a second by batch size."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
import numpy as np

from pipeline import console, runtimes
from pipeline.errors import UsageError
from pipeline.machine import host as machine
from pipeline.measure import timing
from pipeline.records import code, manifest
from pipeline.records.manifest import Artifact
from pipeline.records.reports import Latency, Speedup, Timed, Trtexec
from pipeline.runtimes import onnxruntime, tensorrt
from pipeline.stages import OptionalOut, Provider
from pipeline.tensorrt import trtexec

KIND, FILE = "latency", "latency.json"
Quick = Annotated[
    bool,
    "One twelfth of the requests, 2 s a form and batch, no estimates: a quick look, not MLPerf-style or publishable.",
]


def run(
    *forms: Artifact,
    out: OptionalOut = None,
    batch: Annotated[tuple[int, ...], "Batch size; may be given several times."] = (1, 8, 64),
    threads: Annotated[int, "Threads a request may use."] = 1,
    quick: Quick = False,
    compare: Annotated[
        bool, "Also how many times faster than the checkpoint in plain PyTorch; engines also by trtexec."
    ] = False,
    provider: Provider = "cpu",
    no_cuda_graph: Annotated[
        bool, "Engines only without a CUDA graph; otherwise also with one, and zero copy where memory is shared."
    ] = False,
    strict: Annotated[bool, "Exit 1, after the report is written, if the measurement is unreliable."] = False,
) -> Artifact:
    """Measure latency (p50 to p99.9, nothing clipped) and throughput of every form in every runtime.

    MLPerf-style single stream: the next request is made when the last has completed, with the copies to and from a GPU,
    and without them where it shares the host's memory; what it computes is timed beside it. p90 and p99 are also given
    as early-stopping estimates, at 99 % confidence not too low; throughput is the median of five windows. Subjects take
    turns in short rounds, so their ratios hold on a busy machine. Warns when the windows spread by more than 5 %, and
    when a Jetson is in no state to be measured.
    """
    if not forms:
        raise UsageError(
            "nothing to measure: expected a form of a model, or a folder with one; `pipeline run` makes them"
        )
    expect(batch=batch, threads=threads, provider=provider)
    eager = compare and any(form.kind == "checkpoint" for form in forms)
    program = trtexec.find() if compare and not no_cuda_graph else None
    peers = {form.name for form in forms if program and form.options.get("runtime") == "tensorrt"}
    if compare and not eager and not peers:
        raise UsageError(
            "--compare needs the checkpoint among the forms, or an engine and trtexec: name it, or a folder with it"
        )
    before = machine.describe()
    subjects, readers = [], []
    compared: list[tuple[Artifact, int, str]] = []  # forms that trtexec is to run, with batch and shape
    with contextlib.ExitStack() as sessions:
        for form in forms:
            for runtime, mode in runtimes.readers(form.kind, provider):
                if not runtime.TIMED or (no_cuda_graph and mode in (tensorrt.ZERO_COPY, tensorrt.GRAPH)):
                    continue
                readers.append((runtime, mode))
                session = sessions.enter_context(runtime.load(form, mode=mode, threads=threads))
                about = {"form": form.name, "kind": form.kind, "sha256": form.sha256, "mode": mode}
                about |= {"runtime": runtimes.title(runtime), "arithmetic": session.arithmetic}
                for size in batch:
                    subjects.append(timing.Subject(about, size, session.step(size), session.gpu_step(size)))
                    if mode == tensorrt.GRAPH and form.name in peers:
                        compared.append((form, size, session.shape(size)))
        conditions = timing.measure(subjects, quick=quick)
    theirs = {(form.name, size): trtexec.run(program, form, shape) for form, size, shape in compared if program}
    rows = [subject.timed(quick=quick) for subject in subjects]
    unstable = [f"{row.form} at batch {row.batch}" for row in rows if row.spread > timing.UNSTABLE]
    return manifest.write(
        out / FILE if out else None,
        None,
        facts=Latency(
            machine=msgspec.structs.replace(before, load_after=machine.describe().load),
            board=conditions.board,
            warnings=conditions.warnings,
            threads=threads,
            quick=quick,
            unstable=unstable,
            rows=rows,
            speedup=_speedup(rows) if eager else None,
            trtexec=_beside(rows, theirs),
            idle=conditions.idle,
            warm_up_seconds=conditions.warm_up,
            failures=unreliable(conditions.warnings, unstable) if strict else [],
        ),
        parents=forms,
        options=options(
            batch=batch,
            threads=threads,
            quick=quick,
            compare=compare,
            provider=provider,
            no_cuda_graph=no_cuda_graph,
            strict=strict,
        ),
        versions=manifest.versions(*runtimes.packages(readers)),
        code=code.digest(__name__),
    )


def expect(*, batch: tuple[int, ...], threads: int, provider: str = "cpu", **_: Any) -> None:
    """Raise UsageError for batch sizes and threads below 1; the provider has to load."""
    if min((*batch, threads)) < 1:
        raise UsageError(f"expected --batch and --threads of at least 1, received {[*batch]} and {threads}")
    onnxruntime.expect(provider)


def options(*_: Artifact, provider: str, no_cuda_graph: bool, strict: bool = False, **given: Any) -> dict[str, Any]:
    """Return what a measurement depends on besides the forms; of the newer options, only what isn't the default."""
    chosen = {name: given[name] for name in ("batch", "threads", "quick", "compare")}
    chosen |= {"provider": provider} if provider != "cpu" else {}
    flags = {"no_cuda_graph": no_cuda_graph, "strict": strict}
    return chosen | {name: True for name, value in flags.items() if value}


def unreliable(warnings: Sequence[str], unstable: Sequence[str]) -> list[str]:
    """Return what stands against believing the figures, a line each."""
    lines = [f"unreliable measurement: {reason}" for reason in warnings]
    if unstable:
        named = ", ".join(unstable[:3]) + (f" and {len(unstable) - 3} more" if unstable[3:] else "")
        lines.append(f"unstable: throughput varied by over {timing.UNSTABLE:.0%} between windows for {named}")
    return lines


def _speedup(rows: list[Timed]) -> list[Speedup]:
    """Divide the checkpoint's rounds by each row's rounds at the same batch size."""
    plain = {row.batch: np.array(row.round_medians) for row in rows if row.kind == "checkpoint"}
    speedups = []
    for row in rows:
        ratios = plain[row.batch] / np.array(row.round_medians)
        low, median, high = (float(value) for value in np.percentile(ratios, (25, 50, 75)))
        about: dict[str, Any] = {"form": row.form, "runtime": row.runtime, "mode": row.mode, "batch": row.batch}
        speedups.append(Speedup(**about, median=median, quartiles=[low, high]))
    return speedups


def _beside(rows: list[Timed], theirs: dict[tuple[str, int], dict[str, float]]) -> list[Trtexec]:
    """Put what trtexec measured of a form at a batch size beside what was measured here."""
    flags = list(trtexec.FLAGS)
    return [
        Trtexec(form=row.form, batch=row.batch, flags=flags, trtexec=times, here=row.gpu_microseconds or {})
        for row in rows
        if row.mode == tensorrt.GRAPH and (times := theirs.get((row.form, row.batch)))
    ]


def cell(value: float | None, digits: int = 1) -> str:
    """Write a figure for a table; – for one that wasn't measured."""
    return "–" if value is None else f"{value:.{digits}f}"


def _runtime(row: Timed | Speedup) -> str:
    """Name a row's runtime, and its mode where there are several."""
    return f"{row.runtime}, {row.mode}" if row.mode not in ("", "cpu") else row.runtime


def measured(headers: Sequence[str], rows: Sequence[Sequence[str]], *optional: str) -> list[list[str]]:
    """Return the headers and rows of a table without those of the `optional` columns that have no figure."""
    columns = zip(headers, *rows, strict=True)
    kept = [column for column in columns if column[0] not in optional or set(column[1:]) != {"–"}]
    return [list(line) for line in zip(*kept, strict=True)]


def show(latency: Artifact) -> None:
    """Print the latency as tables for people, with what makes it unreliable."""
    facts = latency.facts
    percentiles = ["p50", "p90", "p99", "p99.9"]
    estimated = [f"p{percent:g}*" for percent in timing.ESTIMATED]
    headers = ["form", "runtime", "batch", *percentiles, *estimated]
    headers += ["images/s", "requests", "spread", "GPU p50", "mJ/image"]
    rows = []
    for row in facts.rows:
        times = [cell(row.microseconds.get(each)) for each in percentiles]
        bounds = {f"p{each.percent:g}*": each.microseconds for each in row.estimates}
        times += [cell(bounds.get(each)) for each in estimated]
        counts = [f"{row.images_per_second:,.0f}", f"{row.requests:,}", f"{row.spread:.1%}"]
        gpu = cell((row.gpu_microseconds or {}).get("p50"))
        rows.append([row.form, _runtime(row), str(row.batch), *times, *counts, gpu, cell(row.millijoules_per_image)])
    headers, *rows = measured(headers, rows, *estimated, "GPU p50", "mJ/image")
    about = facts.machine
    title = f"{about.processor}, {console.count(about.cores, 'core')}; "
    title += f"{console.count(facts.threads, 'thread')} a request; microseconds"
    console.table(headers, rows, title=title, spare=("spread", "requests", "p99.9", "images/s"))
    for percent in timing.ESTIMATED:
        estimates = [each for row in facts.rows for each in row.estimates if each.percent == percent]
        if estimates:
            requests = sorted({each.made for each in estimates})
            console.result(
                f"* p{percent:g}, MLPerf-style early-stopping estimate at {estimates[0].confidence:.0%} confidence: "
                f"{estimates[0].needed:,} requests needed, {requests[0]:,}{' or more' * (len(requests) > 1)} made"
            )
    if facts.speedup:
        ratios = []
        for each in facts.speedup:
            figures = [f"{each.median:.2f}", "{:.2f} – {:.2f}".format(*each.quartiles)]
            ratios.append([each.form, _runtime(each), str(each.batch), *figures])
        headers = ["form", "runtime", "batch", "times faster", "quartiles"]
        console.table(headers, ratios, title="against the checkpoint in PyTorch eager")
    if facts.trtexec:
        peers = []
        for each in facts.trtexec:
            times = [cell(figures.get(name)) for figures in (each.trtexec, each.here) for name in ("p50", "p99")]
            peers.append([each.form, str(each.batch), *times])
        headers = ["form", "batch", "trtexec p50", "trtexec p99", "here p50", "here p99"]
        console.table(headers, peers, title=f"microseconds by trtexec {' '.join(facts.trtexec[0].flags)}")
        console.result(trtexec.INCLUDES)
    if facts.board:
        console.result(str(facts.board[0]))
        if facts.idle:
            idle = ", ".join(f"{name} {watts:.2f} W" for name, watts in facts.idle.items())
            console.result(f"mJ/image is above idle ({idle}), of the rail that feeds the others, or of all together")
        if facts.warm_up_seconds:
            console.result(f"warmed up for {facts.warm_up_seconds:.0f} s")
    for line in [] if facts.failures else unreliable(facts.warnings, facts.unstable):
        console.say(line)
    if facts.quick:
        console.say("quick: not MLPerf-style: too few requests to publish, and no early-stopping estimates")
