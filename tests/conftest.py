"""What tests share: real MNIST, the command line as a user runs it, and one small real chain."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import cuda, mnist
from pipeline.errors import UsageError

ROOT = Path(__file__).parents[1]
DATA = ROOT / "data"
SMALL = ["--epochs", "1", "--batch-size", "128", "--gate", "0.9", "--quick", "--batch", "1", "--batch", "8"]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests marked `gpu` are skipped where there is none, with CUDA's reason."""
    if item.get_closest_marker("gpu"):
        try:
            cuda.gpu()
        except UsageError as error:
            pytest.skip(str(error))


def command(*arguments: object, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """`pipeline ARGUMENTS` in a process of its own."""
    line = [sys.executable, "-m", "pipeline", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "160", **environment}
    return subprocess.run(line, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600)


def one_line(result: subprocess.CompletedProcess[str], code: int) -> str:
    """The error a command ended with, after checking that it is one line and no traceback."""
    assert result.returncode == code, (result.returncode, result.stdout[-2000:], result.stderr[-2000:])
    assert "Traceback" not in result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and result.stderr.splitlines()[-1] == errors[0], result.stderr
    return errors[0]


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder with the real MNIST files, fetched once."""
    mnist.ensure(DATA)
    return DATA


@pytest.fixture(scope="session")
def chain(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the whole chain was run for one epoch on real MNIST. Don't write to it: see `folder`."""
    out = tmp_path_factory.mktemp("chain")
    result = command("run", "--data", data, "--out", out, *SMALL)
    assert result.returncode == 0, result.stderr[-3000:]
    (out / "run.log").write_text(result.stderr + result.stdout)
    return out


@pytest.fixture
def folder(chain: Path, tmp_path: Path) -> Path:
    """A copy of the chain's folder that a test may spoil."""
    return Path(shutil.copytree(chain, tmp_path / "chain"))


@pytest.fixture(scope="session")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files as committed, whatever a `pipeline run` has put in their place in the meantime."""
    folder = tmp_path_factory.mktemp("release")
    archive = subprocess.run(["git", "archive", "HEAD", "artifacts"], cwd=ROOT, capture_output=True)
    if archive.returncode == 0:
        subprocess.run(["tar", "x", "-C", folder], input=archive.stdout, check=True)
    else:  # sources without their history
        shutil.copytree(ROOT / "artifacts", folder / "artifacts")
    return folder / "artifacts"


@pytest.fixture(scope="session")
def shipped(release: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `pipeline ship` makes of the committed files: the folder and its archive. Don't write to it."""
    from pipeline.delivery import ship

    out = tmp_path_factory.mktemp("shipped")
    ship.run(release, out=out, data=data)
    return out


def flip(path: Path, offset: int = -1) -> None:
    """Alter one byte of a file."""
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)
