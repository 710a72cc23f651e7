"""The house's rules: static checks, who may import what, and a wheel that has every package."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT


@pytest.mark.parametrize("line", ["ruff check .", "ruff format --check .", "mypy", "lint-imports --no-cache"])
def test_static_checks_find_nothing(line):
    """Their rules stand in pyproject.toml: types, layers (imports go down only), and who may import torch."""
    program, *words = line.split()
    result = subprocess.run([Path(sys.executable).with_name(program), *words], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_a_wheel_has_every_package():
    listed = re.search(r"^packages = \[(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.DOTALL | re.MULTILINE)[1]
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "pipeline").rglob("*.py")}
    assert sorted(re.findall(r'"([\w.]+)"', listed)) == sorted(
        {".".join(folder.parts) for folder in folders} | {"pipeline.models"}
    )


def test_every_file_is_read_in_a_sitting():
    for path in (ROOT / "pipeline").rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 250, path
