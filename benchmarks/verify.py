"""Seconds that `pipeline verify` takes for every form of a chain, here and at an earlier revision, in turns."""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pipeline import console
from tests.support import ROOT

SHORT = ["--epochs", "1", "--limit", "6000", "--batch-size", "32", "--gate", "0.1", "--quick", "--batch", "1"]


def pipeline(checkout: Path, *words: str) -> float:
    """Run `pipeline WORDS` of a checkout; gives the seconds it took. CalledProcessError if it fails."""
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    started = time.perf_counter()
    line = [sys.executable, "-m", "pipeline", *words]
    subprocess.run(
        line, cwd=checkout, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    return time.perf_counter() - started


def main(arguments: list[str] | None = None) -> None:
    """Make a small chain with each revision, time `verify` of its forms in turns, and print medians and their ratio."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.verify", description=__doc__)
    parser.add_argument("revision", help="git revision to compare with")
    parser.add_argument("--data", default=str(ROOT / "data"), help="folder with MNIST's IDX files")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        before = Path(scratch, "before")
        subprocess.run(["git", "clone", "-q", "--shared", "--no-checkout", ROOT, before], check=True)
        subprocess.run(["git", "checkout", "-q", given.revision], cwd=before, check=True)
        sides = {given.revision: before, "here": ROOT}
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for name, checkout in sides.items():
            console.say(f"{name}: making a chain")
            pipeline(checkout, "run", "--data", given.data, "--out", f"{scratch}/{name}", *SHORT)
        for number in range(given.rounds):
            for name, checkout in sides.items():
                chain = f"{scratch}/{name}"
                seconds[name].append(pipeline(checkout, "verify", chain, "--data", given.data, "--gate", "0.1"))
                console.say(f"round {number + 1} of {given.rounds}, {name}: {seconds[name][-1]:.1f} s")
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    rows = [[name, f"{median:.1f}", f"{medians[given.revision] / median:.2f}"] for name, median in medians.items()]
    console.table(["revision", "seconds", "times as fast"], rows, title="pipeline verify, every form of a chain")


if __name__ == "__main__":
    main()
