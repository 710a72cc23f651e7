"""Any form of the model in, latency out: percentiles of single requests, and throughput by batch size."""

from __future__ import annotations

import contextlib
import json
from typing import Annotated, Any

import numpy as np

from pipeline import artifact, console, jetson, machine, runtimes, timing
from pipeline.artifact import Artifact
from pipeline.errors import UsageError
from pipeline.runtimes import tensorrt
from pipeline.stages import OptionalOut, Provider

ORDER = 70
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
    found = {
        "machine": before | {"load_after": machine.describe()["load"]},
        "board": board,
        "warnings": jetson.warnings(board) if board else [],
        "threads": threads,
        "quick": quick,
        "unstable": [f"{row['form']} at batch {row['batch']}" for row in rows if row["variation"] > timing.UNSTABLE],
        "rows": rows,
        "speedup": _speedup(rows) if compare else None,
    }
    return artifact.write(
        out / FILE if out else None,
        (json.dumps(found, indent=1) + "\n").encode(),
        kind=KIND,
        parents=forms,
        options=options(
            batch=batch, threads=threads, quick=quick, compare=compare, provider=provider, no_cuda_graph=no_cuda_graph
        ),
        versions=artifact.versions(*runtimes.packages(reader for form in forms for reader in readers[form.name])),
        facts=found,
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
    """The runtimes worth timing: those whose sessions offer a prepared request."""
    found = [each for each in runtimes.readers(form.kind, provider) if hasattr(each[0].Session, "step")]
    return [(runtime, mode) for runtime, mode in found if not (no_cuda_graph and mode == tensorrt.GRAPH)]


def _subjects(forms, readers, batches, threads: int, sessions: contextlib.ExitStack) -> list[timing.Subject]:
    found = []
    for form in forms:
        for runtime, mode in readers[form.name]:
            session = sessions.enter_context(runtime.load(form, mode=mode, threads=threads))
            row = {"form": form.name, "kind": form.kind, "sha256": form.sha256, "runtime": runtimes.title(runtime)}
            row |= {"mode": mode, "arithmetic": session.arithmetic}
            for batch in batches:
                gpu_step = session.gpu_step(batch) if hasattr(session, "gpu_step") else None
                found.append(timing.Subject(row | {"batch": batch}, session.step(batch), gpu_step))
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
    found = latency.facts
    about = found["machine"]
    title = f"{about['processor']}, {about['cores']} cores; {found['threads']} thread(s) a request; microseconds"
    percentiles = ["p50", "p90", "p99", "p99.9"]
    headers = ["form", "runtime", "batch", *percentiles, "images/s", "requests", "GPU p50", "mJ/image"]
    rows = []
    for row in found["rows"]:
        name = f"{row['runtime']}, {row['mode']}" if row.get("mode", "cpu") not in ("", "cpu") else row["runtime"]
        times = [_cell(row["microseconds"].get(each)) for each in percentiles]
        rows.append([row["form"], name, str(row["batch"]), *times, f"{row['images_per_second']:,.0f}"])
        gpu, energy = row.get("gpu_microseconds", {}).get("p50"), row.get("millijoules_per_image")
        rows[-1] += [f"{row['requests']:,}", _cell(gpu), _cell(energy)]
    for last in ("mJ/image", "GPU p50"):  # columns that this machine has nothing for
        if headers[-1] == last and all(row[-1] == "–" for row in rows):
            headers, rows = headers[:-1], [row[:-1] for row in rows]
    console.table(headers, rows, title=title, spare=("requests", "p99.9", "images/s"))
    _show_speedup(found["speedup"])
    _show_warnings(found)


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def _show_speedup(speedup: list[dict[str, Any]] | None) -> None:
    if speedup:
        ratios = [
            [r["form"], str(r["batch"]), f"{r['median']:.2f}", "{:.2f} – {:.2f}".format(*r["quartiles"])]
            for r in speedup
        ]
        console.table(
            ["form", "batch", "times faster", "quartiles"], ratios, title="against the checkpoint in PyTorch eager"
        )


def _show_warnings(found: dict[str, Any]) -> None:
    board = found.get("board")
    if board:
        console.result(
            f"{board[0]['model']}, JetPack {board[0]['jetpack'] or '?'}, mode {board[0]['power_mode'] or '?'}"
        )
    for warning in found.get("warnings", []):
        console.say(f"not in a state worth measuring: {warning}")
    if found["quick"]:
        console.say(f"quick: fewer than the {timing.ENOUGH:,} requests that a p90 is claimed from")
    if found["unstable"]:
        console.say(
            f"unstable: medians varied by over {timing.UNSTABLE:.1%} between rounds for {', '.join(found['unstable'])}"
        )
