from __future__ import annotations

import importlib.util
import re
import subprocess
import sys

import pytest

from pipeline.machine import extras
from pipeline.tensorrt import bindings, cuda
from tests.support import ROOT, command

LINE = "pip install -e '.[host,tensorrt,cuda13]'"  # for a PC with an NVIDIA GPU
AARCH64 = ["--platform", "manylinux_2_28_aarch64", "--platform", "manylinux2014_aarch64"]


def test_every_extra_that_is_named_is_there():
    text = (ROOT / "pyproject.toml").read_text()
    section = text.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    there = set(re.findall(r"^([\w-]+) = \[", section, re.MULTILINE))
    told = " ".join(
        [*bindings.INSTALL.values(), cuda.INSTALL, *(path.read_text() for path in (ROOT / "docs").glob("*.md"))]
    )
    named = {name for extra in re.findall(r"'\.\[([\w,-]+)\]'", told) for name in extra.split(",")}
    assert {"host", "tensorrt", "tensorrt-rtx", "cuda12", "cuda13"} <= named | {*extras.EXTRAS.values()} <= there


def test_one_line_says_how_a_pc_gets_tensorrt():
    assert LINE in bindings.INSTALL["tensorrt"] and LINE in (ROOT / "docs/jetson.md").read_text()
    if importlib.util.find_spec("tensorrt") is None:
        assert LINE in " ".join(command("doctor").stdout.split())


def resolved(python: str, wanted: str, folder: object) -> subprocess.CompletedProcess[str]:
    """pip's choice for a Jetson with this version of Python, from wheels alone; nothing is installed."""
    line = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--only-binary", ":all:"]
    line += ["--implementation", "cp", "--python-version", python, *AARCH64, "--target", str(folder), wanted]
    return subprocess.run(line, capture_output=True, text=True, timeout=600)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("python", "cuda"), [("3.10", "cuda12"), ("3.12", "cuda13")])
def test_a_jetsons_extras_resolve_from_wheels_alone(tmp_path, python, cuda):
    """JetPack 6 and 7. The second call shows that a version without such a wheel would be found."""
    done = resolved(python, f"{ROOT}[jetson,demo,{cuda}]", tmp_path)
    if "NewConnectionError" in done.stderr:
        pytest.skip(f"the package index is out of reach: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    for name in ("onnxruntime", "cuda-bindings", "opencv-python-headless", "onnx", "numpy", "msgspec"):
        assert f" {name}-" in done.stdout.splitlines()[-1], name
    assert "torch" not in done.stdout
    without = resolved(python, "cuda-bindings==12.6.0", tmp_path)
    assert without.returncode and "No matching distribution found for cuda-bindings==12.6.0" in without.stderr
