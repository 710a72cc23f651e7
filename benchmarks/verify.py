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

ROOT = Path(__file__).parents[1]
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


def compare(revision: str, data: str, rounds: int) -> dict[str, list[float]]:
    """Seconds of `verify` by revision, here last, after each made a small chain; sides take turns."""
    with tempfile.TemporaryDirectory() as scratch:
        before = Path(scratch, "before")
        clone = ["git", "clone", "-q", "--shared", "--no-checkout", ROOT, before]
        for line in (clone, ["git", "-C", before, "checkout", "-q", revision]):
            subprocess.run(line, check=True, capture_output=True)
        sides = {revision: before, "here": ROOT}
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for name, checkout in sides.items():
            console.say(f"{name}: making a chain")
            pipeline(checkout, "run", "--data", data, "--out", f"{scratch}/{name}", *SHORT)
        for number in range(rounds):
            for name, checkout in sides.items():
                chain = f"{scratch}/{name}"
                seconds[name].append(pipeline(checkout, "verify", chain, "--data", data, "--gate", "0.1"))
                console.say(f"round {number + 1} of {rounds}, {name}: {seconds[name][-1]:.1f} s")
    return seconds


def main(arguments: list[str] | None = None) -> None:
    """Print the medians of both sides and their ratio."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.verify", description=__doc__)
    parser.add_argument("revision", help="git revision to compare with")
    parser.add_argument("--data", default=str(ROOT / "data"), help="folder with MNIST's IDX files")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args(arguments)
    try:
        seconds = compare(given.revision, given.data, given.rounds)
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"]
        parser.exit(1, f"error: {' '.join(map(str, error.cmd))}: {said[-1]}\n")
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    rows = [[name, f"{median:.1f}", f"{medians[given.revision] / median:.2f}"] for name, median in medians.items()]
    console.table(["revision", "seconds", "times as fast"], rows, title="pipeline verify, every form of a chain")


if __name__ == "__main__":
    main()
