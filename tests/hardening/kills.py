"""Commands killed at random moments, then run again: what an undisturbed run gives, and nothing left over.

They are given a few images: what is asked is whether anything is lost or left over, not how good it is. `latency.json`
is a measurement, and TensorRT chooses an engine's kernels by timing them: their bytes differ from run to run, so only
that they are whole is asked of them.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pipeline import chain
from pipeline.device import ssh
from pipeline.records import disk, manifest
from pipeline.release import files
from tests.hardening import Place, Row
from tests.support import SMALL, save_few, sshd, started

QUIET = {"stdout": subprocess.DEVNULL, "text": True}
MEASURED = ("latency.json", "mnist_cnn.engine", manifest.FILE)  # the last has the others' digests


def run(place: Place, scale: float) -> list[Row]:
    """Two runs at once in one folder, `scale` kills of a run over all cores, a tenth as many of a deployment."""
    row = Row("crash safety", "`pipeline run` killed with -9, run again")
    both = Row("crash safety", "two `pipeline run`s at once in one folder")
    chance = random.Random(int(scale * 1000))
    with tempfile.TemporaryDirectory() as name, _a_thread_a_core() as threads:
        scratch = Path(name)
        save_few(scratch / "few.npz", place.data)
        length = threads.submit(_undisturbed, scratch / "alone").result()
        expected = _digests(scratch / "alone")
        both.note(_at_once(scratch / "both", expected))
        moments = [chance.uniform(0.5, length) for _ in range(max(1, round(scale)))]
        folders = [scratch / f"killed-{number}" for number in range(len(moments))]
        for failure in threads.map(lambda folder, after: _killed(folder, after, expected), folders, moments):
            row.note(failure)
    return [row, both, *_deployments(place, max(1, round(scale / 10)), chance)]


def _a_thread_a_core() -> ThreadPoolExecutor:
    """Threads each of which keeps itself, and the processes that it starts, to one core: side by side, none waits."""
    cores = list(os.sched_getaffinity(0))
    return ThreadPoolExecutor(len(cores), initializer=lambda: os.sched_setaffinity(0, {cores.pop()}))


def _undisturbed(folder: Path) -> float:
    """Make the chain that every other must equal; return its seconds."""
    begun = time.monotonic()
    if said := _finish(_start(folder)):
        raise RuntimeError(f"undisturbed: {said}")
    return time.monotonic() - begun


def _deployments(place: Place, kills: int, chance: random.Random) -> list[Row]:
    """Kill `deploy --on` on this machine, and run it again: no report is lost, and the board holds what it should."""
    if not sshd.SSHD:
        return [Row("crash safety", "`pipeline deploy --on` killed (no SSH server: not tried)")]
    row = Row("crash safety", "`pipeline deploy --on` killed with -9, run again")
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        save_few(scratch / "few.npz", place.data)
        server = sshd.Server(scratch / "board", borrow=True)
        try:
            begun = time.monotonic()
            if said := _finish(_deploy(place, server, scratch)):
                raise RuntimeError(f"undisturbed: {said}")
            length, expected = time.monotonic() - begun, _names(server, scratch)
            for _ in range(kills):
                shutil.rmtree(server.home / ".cache", ignore_errors=True)
                if chance.random() < 0.5:  # else an earlier report is to be replaced
                    shutil.rmtree(scratch / "device", ignore_errors=True)
                row.note(_deployed_again(place, server, scratch, chance.uniform(0.3, length), expected))
        finally:
            server.stop()
    return [row]


def _deploy(place: Place, server: sshd.Server, scratch: Path) -> subprocess.Popen:
    line = ["deploy", place.release / "mnist_cnn.onnx", "--on", "board", "--ssh-config", server.config]
    line += ["--data", scratch / "few.npz", "--out", scratch / "device", "--gate", "0.8"]
    return started(*line, "--runtime", "none", "--quick", "--batch", "1", **QUIET)


def _deployed_again(
    place: Place, server: sshd.Server, scratch: Path, after: float, expected: tuple[list[str], ...]
) -> str | None:
    target = scratch / "device/board"
    had_report, running = (target / "device-report.json").exists(), _deploy(place, server, scratch)
    time.sleep(after)
    running.send_signal(signal.SIGKILL)
    running.communicate()
    if target.parent.is_dir():
        files.put_back(target)  # as the next deployment begins
    for path in manifest.recorded(target) if target.is_dir() else []:
        manifest.read(path)
    if had_report and not (target / "device-report.json").exists():
        return f"killed after {after:.2f} s: the earlier report is lost"
    if said := _finish(_deploy(place, server, scratch)):
        return f"killed after {after:.2f} s, deployed again: {said}"
    manifest.read(target / "device-report.json")
    found = _names(server, scratch)
    return None if found == expected else f"killed after {after:.2f} s: other files than undisturbed: {found}"


def _names(server: sshd.Server, scratch: Path) -> tuple[list[str], ...]:
    """What lies in the board's folder and in that of its report, which may be named by what was built there."""
    on_board, here = server.home / ssh.ROOT, scratch / "device"
    return sorted(path.name for path in on_board.iterdir()), sorted(
        str(path.relative_to(here)) for path in here.rglob("*")
    )


def _start(folder: Path) -> subprocess.Popen:
    data = str(folder.parent / "few.npz")
    return started("run", "--data", data, "--out", folder, *SMALL, **QUIET)


def _finish(running: subprocess.Popen) -> str | None:
    _, errors = running.communicate(timeout=3600)
    return None if running.returncode == 0 else errors.strip().splitlines()[-1]


def _digests(folder: Path) -> dict[str, str]:
    """Every file's digest, records of measurements aside; hidden and temporary files count, too."""
    return {
        path.relative_to(folder).as_posix(): disk.digest(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(MEASURED) and path.suffix != ".log"
    }


def _killed(folder: Path, after: float, expected: dict[str, str]) -> str | None:
    running = _start(folder)
    time.sleep(after)
    running.send_signal(signal.SIGKILL)
    running.communicate()
    for path in manifest.recorded(folder) if folder.is_dir() else []:
        manifest.read(path)  # what has a record is whole: no stage is trusted that did not finish
    if said := _finish(_start(folder)):
        return f"killed after {after:.2f} s, run again: {said}"
    failure = _compared(folder, expected, f"killed after {after:.2f} s")
    shutil.rmtree(folder)
    return failure


def _compared(folder: Path, expected: dict[str, str], what: str) -> str | None:
    found = _digests(folder)
    if more := sorted(found.keys() - expected.keys()):
        return f"{what}: left over: {', '.join(more)}"
    if other := sorted(name for name in expected if found.get(name) != expected[name]):
        return f"{what}: other bytes than undisturbed: {', '.join(other)}"
    altered = [link.why for link in chain.status(folder, "mnist_cnn") if link.state == chain.ALTERED]
    return f"{what}: {'; '.join(altered)}" if altered else None


def _at_once(folder: Path, expected: dict[str, str]) -> str | None:
    """The second waits for the first, and then finds nothing to do."""
    running = [_start(folder), _start(folder)]
    for each in running:
        if said := _finish(each):
            return f"two at once: {said}"
    return _compared(folder, expected, "two at once")
