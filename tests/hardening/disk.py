"""A disk that is full, in the middle of every stage: one clear line, and what was there before is untouched."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from pipeline.records import disk as files
from pipeline.records import manifest
from tests.hardening import Place, Row

ROOT = Path(__file__).parents[2]


def run(place: Place, scale: float) -> list[Row]:
    """Each stage that writes, into a small tmpfs; where none can be mounted, that is said and nothing is tried."""
    row = Row("full disk", "commands whose disk fills up")
    with tempfile.TemporaryDirectory() as scratch:
        disk = Path(scratch) / "disk"
        disk.mkdir()
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", disk], capture_output=True)
        if mounted.returncode:
            row.what += " (no tmpfs could be mounted: not tried)"
            return [row]
        try:
            for stage in ("export", "fold", "half", "verify", "bench", "ship"):
                row.note(_full(place, disk, stage))
        finally:
            subprocess.run(["umount", disk], check=False)
    return [row]


def _full(place: Place, disk: Path, stage: str) -> str | None:
    for path in disk.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    folder = disk / "chain"
    folder.mkdir()
    for path in place.chain.iterdir():
        kept = path.name.startswith(("mnist_cnn", "verification", "latency", "chain"))
        if path.is_file() and kept and ".engine" not in path.name:
            shutil.copy(path, folder)
    before = {path.name: files.digest(path) for path in manifest.recorded(folder)}
    _fill(disk / "ballast")
    line = [sys.executable, "-m", "pipeline", stage, "--out", str(folder)]
    line += ["--data", place.data] if stage != "bench" else []
    line += {"bench": ["--quick", "--batch", "1"], "ship": ["--unverified"], "verify": ["--gate", "0.8"]}.get(stage, [])
    if stage in ("verify", "bench"):
        line.insert(4, str(folder / "mnist_cnn.onnx"))
    if stage == "ship":
        line.insert(4, str(folder))
    ran = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=300)
    errors = [each for each in ran.stderr.splitlines() if each.startswith("error:")]
    (disk / "ballast").unlink()
    if ran.returncode != 1 or len(errors) != 1 or "Traceback" in ran.stderr or "space" not in errors[0]:
        return f"{stage}: exit {ran.returncode}, {errors or ran.stderr[-300:]}"
    if left := [path.name for path in folder.rglob("*") if path.name.endswith(".part") or path.name.startswith(".")]:
        return f"{stage}: left over: {', '.join(left)}"
    for name, digest in before.items():
        if not (folder / name).is_file():
            return f"{stage}: {name} is gone"
        if manifest.read(folder / name).sha256 != digest:
            return f"{stage}: {name} isn't as before"
    return None


def _fill(path: Path) -> None:
    """Until nothing more fits."""
    with path.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            try:
                while file.write(bytes(size)) == size:
                    os.fsync(file.fileno())
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
