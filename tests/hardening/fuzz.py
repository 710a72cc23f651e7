"""Every kind of file that is read, damaged at random: each must end in success or in one of our errors.

No traceback, no hang, no memory that a header claims, nothing written beside the folder, no process started. What is
protected by a digest is damaged together with its digest, so that the readers behind it are reached. A target runs in a
process of its own; one that dies is a failure like any other.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

import numpy as np

from pipeline.errors import PipelineError
from tests.hardening import Place, Row, targets

SECONDS = 20  # that one input may take
MEMORY = 1 << 30  # bytes that all inputs of a target, and the libraries that read them, may add to its process
FORBIDDEN = {"os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.fork", "socket.connect"}


def work(target: str, first: int, count: int, place: Path) -> int:
    """In a process of its own: damage and read `count` times; a line of JSON for each that fails."""
    undamaged, folder, mark = place / "seeds", place / "try", place / "at"
    if target in ("checkpoint", "options"):
        import torch
        import torch._dynamo  # noqa: F401
    started: list[str] = []
    sys.addaudithook(lambda event, _: started.append(event) if event in FORBIDDEN else None)
    signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(TimeoutError(f"over {SECONDS} s")))
    before, largest = _largest_size(), 0
    for number in range(first, first + count):
        mark.write_text(str(number))
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(undamaged, folder) if undamaged.exists() else folder.mkdir()
        around = sorted(os.listdir(place))
        started.clear()
        begun, problem = time.monotonic(), None
        signal.alarm(SECONDS)
        try:
            targets.ACTS[target](folder, random.Random(f"{target}-{number}"))
        except PipelineError as error:
            text = str(error)
            problem = None if 0 < len(text) < 20_000 else f"an error of {len(text)} characters"
        except BaseException as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            problem = f"{type(error).__name__}: {str(error)[:150]} ({Path(where.filename).name}:{where.lineno})"
        finally:
            signal.alarm(0)
        if sorted(os.listdir(place)) != around or Path("/tmp/escape-of-a-test").exists():
            problem = "wrote outside its folder"
        if started:
            problem = f"started something: {started[0]}"
        if time.monotonic() - begun > SECONDS:  # also where a library's error was made of the alarm
            problem = problem or f"took over {SECONDS} s"
        grown = _largest_size() - before
        if grown > MEMORY and largest <= MEMORY:
            problem = problem or f"memory grew to {grown:,} bytes more"
        largest = max(largest, grown)
        if problem:
            print(
                json.dumps({"number": number, "problem": problem, "s": round(time.monotonic() - begun, 1)}), flush=True
            )
    print(json.dumps({"done": count}), flush=True)
    return 0


def _largest_size() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run(place: Place, scale: float) -> list[Row]:
    """About 1,000 × scale inputs over all targets."""
    total = sum(targets.SHARES.values())
    return [_target(name, round(1000 * scale * share / total) + 1, place) for name, share in targets.SHARES.items()]


def _target(name: str, count: int, given: Place) -> Row:
    chain, release, data = given.chain, given.release, given.data
    row, done = Row("bad input", f"{name}, damaged"), 0
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        targets.seeds(name, chain, release, data, place / "seeds")
        if (release.parent / "pub.pem").is_file():
            shutil.copy(release.parent / "pub.pem", place)
        few = given.images()
        np.savez(place / "few.npz", images=few.images[:5], labels=few.labels[:5])
        while done < count:
            line = [sys.executable, "-m", "tests.hardening.fuzz", name, str(done), str(count - done), scratch]
            ran = subprocess.run(line, capture_output=True, text=True, timeout=3600)
            said = [json.loads(each) for each in ran.stdout.splitlines() if each.startswith("{")]
            row.failures += [f"{name} {each['number']}: {each['problem']}" for each in said if "problem" in each]
            if any("done" in each for each in said):
                done = count
                continue
            at = int((place / "at").read_text()) if (place / "at").exists() else done
            row.failures.append(f"{name} {at}: the process died ({ran.returncode}): {ran.stderr.strip()[-200:]}")
            done = at + 1
    row.tried, row.held = count, count - len(row.failures)
    return row


if __name__ == "__main__":
    sys.exit(work(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])))
