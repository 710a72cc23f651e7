"""Deploy a release on boards over SSH: check each, copy, install, run `deploy` there, and bring its report back.

On a board everything lies in one folder below its home, named by digest, so that the next deployment finds it there.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from pipeline import console
from pipeline.data.sources import TORCHVISION
from pipeline.device import ssh, wheels
from pipeline.device.board import Parcel, ask, expect_fit, install, put, short
from pipeline.device.ssh import Board
from pipeline.errors import CheckFailed, PipelineError, UsageError, reason
from pipeline.records import disk, manifest
from pipeline.records.facts import UNPRINTED, Digests, Sha256
from pipeline.records.manifest import Artifact
from pipeline.records.releases import Boards
from pipeline.release import files
from pipeline.stages import bench
from pipeline.tensorrt import bindings as library

DEPLOY = 'export XDG_CACHE_HOME="$PWD/cache"; python=$1; shift; exec "$python" -m pipeline deploy "$@"'
CLEAN = 'cd && rm -rf "$1" && { rmdir "${1%/*}" 2>/dev/null; true; }'  # and the folder above, if that leaves it empty
CAT = 'exec cat "$1"'
TIMED = rf"^[^/\\.{UNPRINTED}][^/\\{UNPRINTED}]*\.timings$"  # the names of files with kernels' timings


class Reported(msgspec.Struct, frozen=True):
    """What the board's `pipeline deploy --json` prints, as far as it is relied on."""

    path: Annotated[str, Meta(pattern=r"(^|/)[^/.][^/]*\Z")]
    sha256: Sha256
    parents: Digests


def run(
    release: Path,
    forms: Sequence[Artifact],
    hosts: Sequence[str],
    *,
    out: Path,
    offline: bool,
    clean: bool,
    config: Path | None,
    options: Mapping[str, Any],
) -> Artifact:
    """Deploy a checked release on each board in turn; return the report of the one, or all of them in one table.

    With several boards, what keeps one from having a report is in the `failures`, and the others go on.
    """
    targets = {host: out / ssh.folder_name(host) for host in hosts}
    for host, target in targets.items():
        if list(targets.values()).count(target) > 1:
            raise UsageError(f"--on {host}: expected boards of different names, since each has a folder {target}")
        _expect_replaceable(target, forms)
    sent = [Parcel.of("release", release)]
    options = dict(options)
    if (data := options["data"]) and data != "mnist":
        path = Path(data)
        if data.startswith(TORCHVISION) or not (path.is_dir() or (path.suffix == ".npz" and path.is_file())):
            raise UsageError(f"--data {data}: for a board, expected mnist, an .npz or a folder")
        sent.append(Parcel.of("data", path))
        options["data"] = sent[1].path
    elif offline and (data or not (release / files.TEST_SET).is_file()):
        raise UsageError("--offline: expected a release with its test set, or --data with a file or a folder")
    reports, failures = {}, []
    for host, target in targets.items():
        try:
            with ssh.connected(host, config) as board, _left_clean(board, clean):
                reports[host] = _deployed(board, sent, forms, target, offline, options)
        except (PipelineError, OSError) as error:
            if len(hosts) == 1:
                raise
            failures.append(f"{host}: {str(error).removeprefix(f'{host}: ')}")
            console.say(failures[-1])
    if len(hosts) == 1:
        return reports[hosts[0]]
    failures += [f"{host}: {why}" for host, report in reports.items() for why in report.facts.failures]
    facts = Boards(boards={host: report.facts for host, report in reports.items()}, failures=failures)
    return manifest.write(None, None, facts=facts)


def _deployed(
    board: Board, sent: list[Parcel], forms: Sequence[Artifact], target: Path, offline: bool, options: dict[str, Any]
) -> Artifact:
    """Deploy on one board, and return its report from the folder `target`."""
    engines = options["runtime"] != "none"
    about = ask(board, library.MODULES.get(options["runtime"], "tensorrt"))
    extras = f"jetson,cuda{min(about.cuda, 13)}" if engines and about.cuda else "jetson"
    venv = f"venv-{short(f'{wheels.digest()} {extras} {about.python}'.encode())}"
    expect_fit(board, about, options["runtime"], venv, sent)
    for parcel in sent:
        if parcel.name not in about.present:
            put(board, parcel)
    if venv not in about.present:
        install(board, venv, extras, about, offline)
    else:
        board.say(f"{venv} is there from the last time")
    out = sent[0].name.replace("release", "device")
    chosen = {**options, "runtime": "tensorrt" if options["runtime"] == "auto" else options["runtime"]}
    line = [sent[0].path, "--out", out, "--json", *_words(chosen)]
    code, answer, errors = board.follow(DEPLOY, f"{venv}/bin/python", *line)
    try:
        if code not in (0, CheckFailed.exit_code) or not answer:
            raise board.failure("deploying", code or CheckFailed.exit_code, errors)
        reported = msgspec.json.decode(answer, type=Reported)
    except (ValueError, RecursionError) as error:
        raise CheckFailed(f"{board.host}: expected the record of a report, received: {reason(error)}") from error
    return _brought(board, out, reported, forms, target)


def _words(options: Mapping[str, Any]) -> Iterator[str]:
    """The words of a command line that gives these options."""
    for name, value in options.items():
        for each in value if isinstance(value, tuple) else (value,):
            if each is not None and each is not False:
                yield from [f"--{name.replace('_', '-')}", *([] if each is True else [str(each)])]


def _brought(board: Board, out: str, reported: Reported, forms: Sequence[Artifact], target: Path) -> Artifact:
    """Bring the report, its parents and their records into `target`, and kernels' timings, which are on no record.

    Raises CheckFailed for what isn't as it was reported.
    """
    name = Path(reported.path).name
    digests = {name: reported.sha256, **reported.parents}
    for form in forms:
        _expect(board, form.name, form.sha256, digests.pop(form.name, "none"))
    with files.replaced(target) as part:
        for each in (*digests, manifest.FILE):
            content = board.call(f"bringing {each} back", CAT, f"{out}/{each}")
            if each in digests:
                _expect(board, each, digests[each], hashlib.sha256(content).hexdigest())
            (part / each).write_bytes(content)
        # Of the board's records those of these files: its folder may have others of an earlier time.
        try:
            records = [manifest.read(part / each) for each in digests]
        except PipelineError as error:  # which names a folder that goes with it
            raise CheckFailed(f"{board.host}: {str(error).replace(f'{part}/', '')}") from error
        (part / manifest.FILE).write_bytes(manifest.packed(records))
        timings = f"{out}/{files.TIMINGS}"
        listed = board.call("looking for timings", 'ls "$1" 2>/dev/null || true', timings).decode(errors="replace")
        for each in re.findall(TIMED, listed, re.MULTILINE):
            disk.save(part / files.TIMINGS / each, board.call(f"bringing {each} back", CAT, f"{timings}/{each}"))
    return manifest.read(target / name)


def _expect(board: Board, name: str, expected: str, received: str) -> None:
    if expected != received:
        raise CheckFailed(f"{board.host}: {name}: altered: expected sha256 {expected}, received {received}")


def _expect_replaceable(target: Path, forms: Sequence[Artifact]) -> None:
    """UsageError if a board's folder here has anything but an earlier report of these forms, which is replaced."""
    files.put_back(target)
    if target.exists():
        own = {*manifest.names(target), manifest.FILE, files.TIMINGS}
        names = {path.name for path in target.iterdir()}
        names |= {path.name for path in (target / files.TIMINGS).glob("*") if path.suffix != ".timings"}
        if others := sorted(names - own):
            raise UsageError(
                f"{target}: has {others[0]}, which a new report would remove: move it or give another --out"
            )
        with contextlib.suppress(CheckFailed):  # an altered report names nothing
            parents = {parent for name in manifest.names(target) for parent in manifest.recall(target / name).parents}
            earlier = sorted(parent for parent in parents if parent.endswith(".onnx"))
            if earlier and not parents & {form.name for form in forms}:
                raise UsageError(
                    f"{target}: has a report of {earlier[0]}, which a new one would remove: give another --out"
                )


@contextlib.contextmanager
def _left_clean(board: Board, clean: bool) -> Iterator[None]:
    """Afterwards, remove what was put on the board, or say where it is."""
    try:
        yield
    except (PipelineError, OSError):
        if clean:
            with contextlib.suppress(PipelineError, OSError):  # of two errors, the first tells more
                _clean(board)
        raise
    if clean:
        _clean(board)
    else:
        board.say(f"left for the next time, in ~/{ssh.ROOT}: --clean removes it")


def _clean(board: Board) -> None:
    board.call("removing", CLEAN, ssh.ROOT)
    board.say(f"removed ~/{ssh.ROOT}")


def show(report: Artifact) -> None:
    """Print one row a board and form, and what stands in the way of believing it."""
    headers = ["board", "form", "runs as", "accuracy", "batch", "p50 µs", "p90 µs", "p99 µs", "passed"]
    rows = []
    for host, facts in report.facts.boards.items():
        for row in facts.rows:
            timed = row.smallest
            times = [timed.microseconds.get(name) if timed else None for name in ("p50", "p90", "p99")]
            cells = [host, row.form, f"{row.runtime}: {row.arithmetic}", f"{row.accuracy:.2%}"]
            cells += [
                str(timed.batch) if timed else "–",
                *map(bench.cell, times),
                "yes" if facts.passes(row) else "no",
            ]
            rows.append(cells)
    console.table(headers, rows, title="boards")
    for host, facts in report.facts.boards.items():
        for warning in facts.warnings:
            console.say(f"{host}: {warning}")
    for failure in report.facts.failures:
        console.result(f"failed: {failure}")
