"""Build a wheel of this project, and gather the wheels that it needs on another machine, with this one's pip."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import UsageError, last_line

SOURCE = Path(__file__).parents[2]
FILES = ("pyproject.toml", "README.md", "LICENSE", "pipeline/**/*", "models/**/*")
OLDEST_GLIBC = {"x86_64": 5, "aarch64": 17}  # the minor version that each architecture's first wheels are for


def digest() -> str:
    """Return the sha256 of this project's sources: two wheels of the same sources are one."""
    sha = hashlib.sha256()
    for path in _sources():
        sha.update(f"{path.relative_to(SOURCE).as_posix()} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return sha.hexdigest()


def build(folder: Path) -> Path:
    """Build the wheel into a folder. UsageError if there are no sources to build it from, or pip can't."""
    with tempfile.TemporaryDirectory() as scratch:  # setuptools writes into the folder it builds in
        for path in _sources():
            copy = Path(scratch) / path.relative_to(SOURCE)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
        _pip("a wheel of this project can't be built", "wheel", "--no-deps", "--wheel-dir", folder, scratch)
    return next(folder.glob("edge_pipeline-*.whl"))


def gather(wheel: Path, extras: str, *, python: str, architecture: str, glibc: str) -> None:
    """Download, beside a wheel, those that it needs with its extras for that Python, architecture and glibc."""
    _pip(
        f"the wheels for Python {python} on {architecture} (glibc {glibc}) can't be had",
        *("download", "--dest", wheel.parent, "--only-binary", ":all:", "--implementation", "cp"),
        *("--python-version", python),
        *(word for platform in _platforms(architecture, glibc) for word in ("--platform", platform)),
        f"{wheel}[{extras}]",
    )


def _platforms(architecture: str, glibc: str) -> list[str]:
    """Return the platforms whose wheels run with that glibc, the newest first."""
    oldest, minor = OLDEST_GLIBC.get(architecture, 17), int(glibc.split(".")[1])
    legacy = {"x86_64": ["2014", "2010", "1"]}.get(architecture, ["2014"])
    names = [f"_2_{number}" for number in range(minor, oldest - 1, -1)] + legacy
    return [f"manylinux{name}_{architecture}" for name in names] + [f"linux_{architecture}"]


def _sources() -> Iterator[Path]:
    if not (SOURCE / "pyproject.toml").is_file():
        raise UsageError(
            f"{SOURCE}: this project is installed without its sources, which the board's wheel is built from: "
            "pip install -e '.[host]' in a clone of it"
        )
    paths = {path for pattern in FILES for path in SOURCE.glob(pattern)}
    return (path for path in sorted(paths) if path.is_file() and "__pycache__" not in path.parts)


def _pip(problem: str, *words: object) -> None:
    line = [sys.executable, "-m", "pip", *map(str, words), "--quiet", "--disable-pip-version-check"]
    done = subprocess.run(line, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL)
    if done.returncode:
        raise UsageError(f"{problem}: {last_line(done.stderr)}")
