"""Two fresh clones of this commit, two virtual environments, one seed: are the files that they make the same bytes?

`python -m tests.clones` installs, runs and ships in each, and prints the digest of every file; a quarter of an hour on
two cores. Options of `pipeline run` may follow a `--`. `latency.json` is a measurement: what it timed differs, so the
first clone's is what both of them ship.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import click

from pipeline import console
from pipeline.records import disk, manifest
from pipeline.stages import bench

ROOT = Path(__file__).parents[1]


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--data", type=click.Path(path_type=Path), default=ROOT / "data", help="Folder with MNIST, to read.")
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def main(data: Path, options: tuple[str, ...]) -> None:
    """Make everything twice, from two fresh clones, and compare."""
    with tempfile.TemporaryDirectory() as scratch:
        clones = [Path(scratch) / name for name in ("first", "second")]
        try:
            for clone in clones:
                console.say(f"{clone.name} clone: install, pipeline run {' '.join(options)}")
                _made(clone, data.resolve(), options)
            for clone in clones:
                _shipped(clone, clones[0], data.resolve())
        except subprocess.CalledProcessError as error:
            raise click.ClickException(f"exit code {error.returncode} of {error.cmd}: {error.stderr[-600:]}") from error
        sys.exit(0 if _compared(*(clone / "out" for clone in clones)) else 1)


def _made(clone: Path, data: Path, options: tuple[str, ...]) -> None:
    _call("git", "clone", "--quiet", ROOT, clone)
    _call(sys.executable, "-m", "venv", clone / ".venv")
    _call(clone / ".venv/bin/pip", "install", "--quiet", "-e", ".[host]", cwd=clone)
    _call(clone / ".venv/bin/pipeline", "run", "--data", data, "--out", "out", *options, cwd=clone)


def _shipped(clone: Path, first: Path, data: Path) -> None:
    if clone != first:
        timed = manifest.read(first / "out" / bench.FILE)
        how = {name: getattr(timed, name) for name in ("facts", "parents", "options", "versions", "code")}
        manifest.write(clone / "out" / bench.FILE, None, **how)
    _call(clone / ".venv/bin/pipeline", "ship", "out", "--data", data, "--out", "out/release", cwd=clone)


def _compared(first: Path, second: Path) -> bool:
    """Print every file's digest in both folders; whether all are the same."""
    names = sorted({path.relative_to(folder) for folder in (first, second) for path in folder.rglob("*")})
    found = [(name, *(_digest(folder / name) for folder in (first, second))) for name in names]
    files = [each for each in found if any(each[1:])]
    same = [one == other for _, one, other in files]
    rows = [
        [name.as_posix(), one[:16] or "–", other[:16] or "–", "yes" if one == other else "NO"]
        for name, one, other in files
    ]
    console.table(["file", "sha256, first clone", "second clone", "same"], rows, title="two clones, one seed")
    console.result(f"{sum(same)} of {len(same)} files are the same bytes")
    return bool(same) and all(same)


def _digest(path: Path) -> str:
    return disk.digest(path) if path.is_file() else ""


def _call(*line: object, cwd: Path | None = None) -> None:
    subprocess.run([str(word) for word in line], cwd=cwd, check=True, capture_output=True, text=True)


if __name__ == "__main__":
    main()
