"""Take a release into use on this device: check it, build for its GPU, verify, measure and report."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from pipeline import chain, console
from pipeline.device import doctor
from pipeline.errors import UsageError
from pipeline.machine import extras as installs
from pipeline.records import code, disk, manifest
from pipeline.records.manifest import Artifact
from pipeline.records.releases import Deployed, DeviceReport, ReleaseCheck
from pipeline.records.reports import Timed
from pipeline.release import archives, files, verify_release
from pipeline.release.verify_release import AllowUnverified, PublicKey
from pipeline.stages import bench, build, verify
from pipeline.tensorrt import bindings as tensorrt_library
from pipeline.tensorrt import cuda

KIND, FILE = "device-report", "device-report.json"


def run(
    release: Path,
    *,
    out: Annotated[Path, "Folder for the engines and the reports."] = Path("device"),
    data: Annotated[str | None, "Labelled images, as for verify; by default the release's own test set."] = None,
    public_key: PublicKey = None,
    allow_unverified: AllowUnverified = False,
    runtime: Annotated[
        Literal["auto", "tensorrt", "tensorrt-rtx", "none"],
        "What builds engines. auto: the one that is installed, and none, with a word, where there is no GPU.",
    ] = "auto",
    gate: Annotated[float | None, "Least test accuracy, 0 to 1; by default the model's own."] = None,
    batch: Annotated[tuple[int, ...], "Batch size to time; may be given several times."] = (1, 8, 64),
    threads: Annotated[int, "Threads a request may use on the CPU."] = 1,
    quick: Annotated[bool, "A twelfth of the requests: for a look, not for a claim."] = False,
) -> Artifact:
    """Take a release, its archive, or one ONNX file, into use on this device: check, build, verify, bench, report.

    Signature (with --public-key) and every byte are checked before anything is loaded. Then TensorRT builds an engine
    of each file for the GPU that is here, the test set goes through files and engines, and each is timed. No torch, no
    network where the release has its test set.

    The report's `failures` say which forms do not pass.
    """
    installs.require("deploy", ["onnxruntime"])
    bench.expect_sizes(batch, threads)
    with contextlib.ExitStack() as unpacked:
        folder = unpacked.enter_context(archives.opened(release)) if archives.is_archive(release) else release
        about = _inspected(release, folder, public_key, allow_unverified)
        asked = {"runtime": runtime, "gate": gate, "batch": batch, "threads": threads, "quick": quick}
        return _deployed(shipped(folder), out, data or _test_set(folder), about, **asked)


def _inspected(release: Path, folder: Path, public_key: Path | None, allow_unverified: bool) -> ReleaseCheck | None:
    """What holds about a release; None for files that are none. CheckFailed if it is marked as unverified."""
    marks = (files.SUMS, files.SIGNATURE, files.ABOUT)  # one is enough: who takes one away doesn't end the checks
    if not public_key and folder == release and not any((folder / mark).is_file() for mark in marks):
        return None
    about = verify_release.inspect(folder, public_key, allow_unverified=allow_unverified)
    if about.format == "triton":
        raise UsageError(f"{release}: is a repository for a Triton server: expected a release of --format folder")
    return about


def _test_set(folder: Path) -> str | None:
    """A release's own test set; None if it has none: then the model's image set is used."""
    path = folder / files.TEST_SET
    return str(path) if path.is_file() else None


def _deployed(
    forms: list[Artifact],
    out: Path,
    data: str | None,
    about: ReleaseCheck | None,
    *,
    runtime: str,
    gate: float | None,
    batch: tuple[int, ...],
    threads: int,
    quick: bool,
) -> Artifact:
    """Build, verify, bench; the report of it."""
    disk.check_writable(out)
    engines, why_none = _engines(forms, out, runtime, max(64, *batch))
    verification = verify.run(*forms, *engines, out=out, data=data, gate=gate)
    latency = bench.run(*forms, *engines, out=out, batch=batch, threads=threads, quick=quick)
    return manifest.write(
        out / FILE,
        None,
        facts=DeviceReport(
            **doctor.about(),
            release=about,
            model=verification.facts.model,
            passed=verification.facts.passed,
            failures=verification.facts.failures,
            no_engine=why_none,
            build_seconds={engine.name: engine.facts.build_seconds for engine in engines},
            data=verification.facts.data,
            gate=verification.facts.gate,
            warnings=latency.facts.warnings,
            rows=_rows(verification, latency),
        ),
        parents=[*forms, *engines, verification, latency],
        options={"runtime": runtime, "gate": gate, "batch": batch, "threads": threads, "quick": quick},
        versions=manifest.versions(*doctor.PACKAGES),
        code=code.digest(__name__),
    )


def shipped(release: Path) -> list[Artifact]:
    """The ONNX files of a folder, or the one that is named, unaltered. UsageError if there is none."""
    there = chain.forms(release) if release.is_dir() else [manifest.read(release)]
    found = [form for form in there if form.kind in build.ELEMENTS]
    if not found:
        received = ", ".join(sorted({form.kind for form in there})) or "nothing on record"
        raise UsageError(f"{release}: expected an ONNX file that this pipeline made, or a folder with one: {received}")
    return found


def _engines(forms: list[Artifact], out: Path, runtime: str, largest: int) -> tuple[list[Artifact], str | None]:
    """An engine of each file, for the GPU that is here; or none, and why, where that may be."""
    if runtime == "none":
        return [], "--runtime none"
    try:
        chosen = tensorrt_library.chosen(runtime)
        target = cuda.gpu().target if chosen == "tensorrt-rtx" else None
        flags = {"runtime": chosen, "target": target, "max_batch": largest}
        return [build.run(form, out=out, **flags) for form in forms], None
    except UsageError as error:
        if runtime != "auto":
            raise
        console.say(f"no engine is built: {error}")
        return [], str(error)


def _rows(verification: Artifact, latency: Artifact) -> list[Deployed]:
    """Each form as it was verified, with its latency at every batch size where it was timed."""
    rows = []
    for row in verification.facts.rows:
        same = (row.form, row.runtime, row.arithmetic)
        timed = [each for each in latency.facts.rows if (each.form, each.runtime, each.arithmetic) == same]
        rows.append(Deployed(**msgspec.structs.asdict(row), latency=timed))
    return rows


def show(report: Artifact) -> None:
    """One table: what each form answers and how fast; then what stands in the way of believing it."""
    facts = report.facts
    here = {name: value for name, value in doctor.summary(facts).items() if value not in ("no", "none")}
    for name, value in here.items():
        console.result(f"{name}: {value}")
    headers = [
        "form",
        "runs as",
        "accuracy",
        "95 % interval",
        "differ",
        "batch",
        "p50 µs",
        "p99 µs",
        "GPU µs",
        "images/s",
    ]
    rows = []
    for row in facts.rows:
        start = [row.form, f"{row.runtime}: {row.arithmetic}", f"{row.accuracy:.2%}"]
        start += [f"{row.interval[0]:.2%} – {row.interval[1]:.2%}", str(row.differ)]
        for timed in row.latency or [None]:
            rows.append([*start, *_times(timed)])
            start = [""] * len(start)
    if all(row[-2] == "–" for row in rows):
        headers, rows = [*headers[:-2], headers[-1]], [[*row[:-2], row[-1]] for row in rows]
    tested = facts.data
    console.table(
        headers,
        rows,
        title=f"{facts.model}: {tested.name}, {tested.images:,} images; gate {facts.gate:.2%}",
    )
    for warning in facts.warnings:
        console.say(f"not in a state worth measuring: {warning}")
    console.result("passed" if facts.passed else "failed: " + "; ".join(facts.failures))


def _times(timed: Timed | None) -> list[str]:
    if timed is None:
        return ["–"] * 5
    host, gpu = timed.microseconds, timed.gpu_microseconds or {}  # a percentile of too few requests is left out
    times = [f"{each:.1f}" if each is not None else "–" for each in (host.get("p50"), host.get("p99"), gpu.get("p50"))]
    return [str(timed.batch), *times, f"{timed.images_per_second:,.0f}"]
