"""Take a release into use on this device: check it, build for its GPU, verify, measure and report."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from pipeline import chain, console
from pipeline.data import imagesets
from pipeline.device import doctor, remote
from pipeline.errors import UsageError
from pipeline.machine import extras
from pipeline.records import code, disk, manifest
from pipeline.records.manifest import Artifact
from pipeline.records.releases import Deployed, DeviceReport, ReleaseCheck
from pipeline.records.reports import Proven, Timed
from pipeline.release import archives, contents, files, verify_release
from pipeline.release.verify_release import AllowUnverified, PublicKey
from pipeline.stages import bench, build, images, verify
from pipeline.tensorrt import bindings as library
from pipeline.tensorrt import cuda

KIND = "device-report"


def run(
    release: Path,
    *,
    out: Annotated[Path, "Folder for the engines and the reports."] = Path("device"),
    data: Annotated[str | None, "Labelled images, as for verify; by default the release's own test set."] = None,
    public_key: PublicKey = None,
    allow_unverified: AllowUnverified = False,
    runtime: Annotated[
        Literal["auto", "tensorrt", "tensorrt-rtx", "none"],
        "What builds engines. auto: whichever is installed; none, with a remark, where there is no GPU; with --on, "
        "TensorRT, which the board must have.",
    ] = "auto",
    gate: Annotated[float | None, "Least test accuracy, 0 to 1; by default the model's own."] = None,
    batch: Annotated[tuple[int, ...], "Batch size to time; may be given several times."] = (1, 8, 64),
    threads: Annotated[int, "Threads a request may use on the CPU."] = 1,
    quick: bench.Quick = False,
    on: Annotated[
        tuple[str, ...], "Board to deploy on over SSH, user@host or a name of ~/.ssh/config; several times."
    ] = (),
    offline: Annotated[bool, "--on: for a board without a network; this machine gathers the wheels it needs."] = False,
    clean: Annotated[bool, "--on: afterwards remove what was put on the board, which the next time reuses."] = False,
    ssh_config: Annotated[Path | None, "--on: configuration of ssh to use instead of ~/.ssh/config."] = None,
) -> Artifact:
    """Take a release, its archive, or one ONNX file, into use on this device: check, build, verify, bench, report.

    With --on, on boards instead: this project is installed there, in a folder of its own, deploys there, and each
    board's report, records and engines are brought back into OUT/HOST and checked.

    The signature (with --public-key) and every byte are checked before anything is loaded. Then TensorRT builds an
    engine of each file for this machine's GPU, files and engines are verified on the test set, and each is timed.
    Builds are not deterministic: the engine that is verified is the very one that is kept, and its answers are compared
    with those of a second unless --quick. Needs no torch, and no network if the release has its test set. The report's
    `failures` say which forms do not pass.
    """
    if not on and (offline or clean or ssh_config):
        raise UsageError("--offline, --clean and --ssh-config are for a board: expected --on user@board, too")
    if ssh_config and (ssh_config.is_dir() or not ssh_config.exists()):  # /dev/null is none, and no file either
        raise UsageError(f"--ssh-config {ssh_config}: no such file: expected a configuration of ssh")
    if not on:
        extras.require("deploy", ["onnxruntime"])
    verify.expect(gate=gate)
    bench.expect(batch=batch, threads=threads)
    if out.is_dir() and "checkpoint" in {manifest.claimed_kind(out / name) for name in manifest.names(out)}:
        raise UsageError(f"--out {out}: holds a chain and its proof: expected a folder for this device alone")
    with contextlib.ExitStack() as unpacked:
        folder = unpacked.enter_context(archives.opened(release)) if archives.is_archive(release) else release
        about = _inspected(release, folder, public_key, allow_unverified)
        forms = shipped(folder)
        disk.check_writable(out)
        if on:
            if not data and not (folder / files.TEST_SET).is_file():
                sent = Path(unpacked.enter_context(tempfile.TemporaryDirectory())) / files.TEST_SET
                sent.write_bytes(imagesets.pack(images(forms[0], None)))
                data = str(sent)
            chosen: dict[str, Any] = {
                "data": data,
                "allow_unverified": allow_unverified,
                "runtime": runtime,
                "gate": gate,
            }
            chosen |= {"batch": batch, "threads": threads, "quick": quick}
            return remote.run(
                folder, forms, on, out=out, offline=offline, clean=clean, config=ssh_config, options=chosen
            )
        if not data and (folder / files.TEST_SET).is_file():
            data = str(folder / files.TEST_SET)
        timings = _timings(folder if about else None, out)
        building = {"out": out, "max_batch": max(64, *batch), "timing_cache": timings, "twice": not quick, "data": data}
        engines, no_engine = _engines(forms, runtime, building)
        verification = verify.run(*forms, *engines, out=out, data=data, gate=gate)
        latency = bench.run(*forms, *engines, out=out, batch=batch, threads=threads, quick=quick)
        proven, timed = verification.facts, latency.facts
        return manifest.write(
            out / contents.REPORT,
            None,
            facts=DeviceReport(
                **doctor.about(),
                release=about,
                model=proven.model,
                passed=proven.passed,
                failures=proven.failures,
                no_engine=no_engine,
                build_seconds={engine.name: engine.facts.build_seconds for engine in engines},
                second_builds={engine.name: engine.facts.second for engine in engines if engine.facts.second},
                data=proven.data,
                gate=proven.gate,
                warnings=bench.unreliable(timed.warnings, timed.unstable),
                rows=[_deployed(row, timed.rows) for row in proven.rows],
            ),
            parents=[*forms, *engines, verification, latency],
            options={"runtime": runtime, "gate": gate, "batch": batch, "threads": threads, "quick": quick},
            versions=manifest.versions(*doctor.PACKAGES),
            code=code.digest(__name__),
        )


def _inspected(release: Path, folder: Path, public_key: Path | None, allow_unverified: bool) -> ReleaseCheck | None:
    """Check a release; None for files that are none. CheckFailed if it is marked as unverified."""
    marks = (files.SUMS, files.SIGNATURE, files.ABOUT)  # any one: taking one away doesn't end the checks
    if not public_key and folder == release and not any((folder / mark).is_file() for mark in marks):
        return None
    about = verify_release.inspect(folder, public_key, allow_unverified=allow_unverified)
    if about.format == "triton":
        raise UsageError(f"{release}: is a repository for a Triton server: expected a release of --format folder")
    return about


def shipped(release: Path) -> list[Artifact]:
    """Return the ONNX files of a folder, or the one that is named, unaltered. UsageError if there is none."""
    artifacts = chain.forms(release) if release.is_dir() else [manifest.read(release)]
    forms = [artifact for artifact in artifacts if artifact.kind in build.ELEMENTS]
    if not forms:
        received = ", ".join(sorted({artifact.kind for artifact in artifacts}))
        received = received or f"nothing on record{files.within(release)}"
        raise UsageError(
            f"{release}: expected an ONNX file that this pipeline made, or a folder with one, received {received}"
        )
    return forms


def _timings(checked: Path | None, out: Path) -> Path:
    """Return the folder of kernels' timings, one file a GPU and version; those of a checked release are a start.

    TensorRT parses them, so those that lie beside mere files, and are on no record, are left alone.
    """
    folder = out / files.TIMINGS
    for path in (checked / files.TIMINGS).glob("*.timings") if checked else ():
        if not (folder / path.name).exists():
            disk.save(folder / path.name, path.read_bytes())
    return folder


def _engines(
    forms: list[Artifact], runtime: Literal["auto", "tensorrt", "tensorrt-rtx", "none"], building: dict[str, Any]
) -> tuple[list[Artifact], str | None]:
    """Build an engine of each file for the GPU of this machine; or return none, and why, where that is allowed."""
    if runtime == "none":
        return [], "--runtime none"
    try:
        target = cuda.gpu().target if library.chosen(runtime) == "tensorrt-rtx" else None
        return [build.run(form, runtime=runtime, target=target, **building) for form in forms], None
    except UsageError as error:
        if runtime != "auto":
            raise
        console.say(f"no engine is built: {error}")
        return [], str(error)


def _deployed(row: Proven, timed: list[Timed]) -> Deployed:
    """Add to a verified form its latency at every batch size."""
    how = (row.form, row.runtime, row.arithmetic)
    latency = [each for each in timed if (each.form, each.runtime, each.arithmetic) == how]
    return Deployed(**msgspec.structs.asdict(row), latency=latency)


def show(report: Artifact) -> None:
    """Print what each form answers and how fast, and what stands in the way of believing it."""
    if report.kind != KIND:
        remote.show(report)
        return
    facts = report.facts
    for name, value in doctor.summary(facts).items():
        if value not in ("no", "none"):
            console.result(f"{name}: {value}")
    headers = ["form", "runs as", "accuracy", "95 % interval", "differ"]
    headers += ["batch", "p50 µs", "p99 µs", "GPU µs", "images/s"]
    rows = []
    for row in facts.rows:
        low, high = row.interval
        start = [row.form, f"{row.runtime}: {row.arithmetic}", f"{row.accuracy:.2%}"]
        start += [f"{low:.2%} – {high:.2%}", str(row.differ)]
        if not row.latency:
            rows.append([*start, *["–"] * 5])
        for timed in row.latency:
            host, gpu = timed.microseconds, timed.gpu_microseconds or {}  # without p99 after too few requests
            times = [bench.cell(value) for value in (host.get("p50"), host.get("p99"), gpu.get("p50"))]
            rows.append([*start, str(timed.batch), *times, f"{timed.images_per_second:,.0f}"])
            start = [""] * len(start)
    headers, *rows = bench.measured(headers, rows, "GPU µs")
    title = f"{facts.model}: {facts.data.name}, {facts.data.images:,} images; gate {facts.gate:.2%}"
    console.table(headers, rows, title=title)
    for name, second in (facts.second_builds or {}).items():
        console.result(f"{name}, built a second time: {second}")
    for warning in facts.warnings:
        console.say(warning)
    console.result("passed" if facts.passed else "failed: " + "; ".join(facts.failures))
