"""What tests share: the command line as a user runs it, in this process or another, and folders made once."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two workers share two cores; libraries read it when they are loaded

import contextlib
import fcntl
import io
import logging
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline import stages
from pipeline.cli.main import main
from pipeline.data import imagesets

ROOT = Path(__file__).parents[2]
DATA = ROOT / "data"
DIGITS = tuple("0123456789")
SMALL = ["--epochs", "2", "--batch-size", "32", "--gate", "0.8", "--quick", "--batch", "1", "--train-threads", "1"]
SMALL += ["--executions", "A1"]
FEW = 3000, 500  # training and test images of the small set


def save_few(path: Path, data: str = "mnist") -> None:
    """Save the small set, MNIST's first images, as an `.npz`."""
    arrays = {}
    for part, n in zip(("train", "test"), FEW, strict=True):
        images = imagesets.load(data, part, (1, 28, 28), DIGITS)
        arrays[f"{part}_images"], arrays[f"{part}_labels"] = images.images[:n, 0], images.labels[:n]
    np.savez(path, **arrays)


def command(*arguments: object, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `pipeline ARGUMENTS` in this process, with what it prints and its exit code as those of a process."""
    line, stdout, stderr = [str(each) for each in arguments], io.StringIO(), io.StringIO()
    with _restored(), contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        os.environ.update(surroundings(**environment))
        os.chdir(cwd)
        with pytest.raises(SystemExit) as ended:
            main(line)
    return subprocess.CompletedProcess(line, ended.value.code, stdout.getvalue(), stderr.getvalue())


@contextlib.contextmanager
def _restored() -> Iterator[None]:
    """Leave what a command may change in its process as it was: folder, environment, warnings, logging, threads."""
    environment, folder, level = dict(os.environ), Path.cwd(), logging.root.manager.disable
    try:
        with warnings.catch_warnings():
            yield
    finally:
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        logging.disable(level)
        if torch := sys.modules.get("torch"):
            torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def process(*arguments: object, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `pipeline ARGUMENTS` in a process of its own, where that is the point."""
    line = [sys.executable, "-m", "pipeline", *map(str, arguments)]
    return subprocess.run(line, cwd=cwd, env=surroundings(**environment), capture_output=True, text=True, timeout=600)


def surroundings(**environment: str) -> dict[str, str]:
    """The environment of a child process that imports this checkout."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "160", **environment}


def started(*arguments: object, cwd: Path = ROOT, **options: object) -> subprocess.Popen:
    """Start `pipeline ARGUMENTS` to be interrupted: with SIGINT's default handler, even under `nohup`."""
    line = [sys.executable, "-m", "pipeline", *map(str, arguments)]
    options = {"env": surroundings(), "stderr": subprocess.PIPE, **options}
    return subprocess.Popen(line, cwd=cwd, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), **options)


def one_line(result: subprocess.CompletedProcess[str], code: int) -> str:
    """The error a command ended with, after checking that it is one line and no traceback."""
    assert result.returncode == code, (result.returncode, result.stdout[-2000:], result.stderr[-2000:])
    assert "Traceback" not in result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and result.stderr.splitlines()[-1] == errors[0], result.stderr
    return errors[0]


def shared(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that is made once for all of pytest-xdist's workers. Tests don't write to it."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base
    folder = base / name
    with (base / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            part = base / f"{name}.part"
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            make(part)
            part.rename(folder)
    return folder


def flip(path: Path, offset: int = -1) -> None:
    """Alter one byte of a file."""
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def stage(name: str) -> object:
    """A stage, imported, with the defaults of what it leaves out."""
    return stages.get(name)
