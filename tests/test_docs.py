"""The walks in docs/your-own-model.md, run as they stand there."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from pipeline.records import manifest
from tests.support import ROOT, command
from tests.support.elsewhere import classifier, pictures

TEXT = (ROOT / "docs/your-own-model.md").read_text()
# One thread: two that wait for each other beside the other worker's tests take five times as long.
QUICK = ["--quick", "--batch", "1", "--train-threads", "1"]
FASHION = Path("/usr/share/datasets/fashion-mnist")


def section(title: str) -> tuple[list[str], list[str]]:
    """The Python blocks and the commands of a section."""
    text = re.search(rf"## {title}\n(.*?)(?=\n## |\Z)", TEXT, re.DOTALL)[1]
    python = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    lines = [line for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL) for line in block.splitlines() if line]
    return python, lines


def walk(folder: Path, lines: list[str], *more: str) -> None:
    for line in lines:
        program, *words = line.split()
        result = command(*words, *([*QUICK, *more] if words[0] == "run" else []), cwd=folder)
        assert program == "pipeline" and result.returncode == 0, (line, result.stderr[-1000:])


def written(folder: Path, name: str, python: str) -> None:
    (folder / "models").mkdir(exist_ok=True)
    (folder / f"models/{name}.py").write_text(python)


@pytest.mark.exhaustive
@pytest.mark.skipif(not FASHION.is_dir(), reason="needs Debian's dataset-fashion-mnist")
def test_the_given_network_on_fashion_mnist(tmp_path):
    (python,), lines = section("The given network on another data set")
    written(tmp_path, "fashion", python)
    walk(tmp_path, lines)
    rows = manifest.read(tmp_path / "out/verification.json").facts.rows
    assert all(row.accuracy >= 0.90 and row.differ <= 20 for row in rows)
    release = tmp_path / "release/fashion-1.0.0"
    text = (release / "MODEL_CARD.md").read_text() + (release / "report.html").read_text()
    assert "igit" not in text and "Ankle boot" in text


def test_a_network_on_class_folders_and_an_onnx_from_elsewhere(tmp_path):
    pictures(tmp_path / "colours", 12, 6)
    (python,), lines = section("A network and pictures of your own")
    written(tmp_path, "colours", python)
    walk(tmp_path, lines, "--epochs", "2", "--gate", "0")
    shutil.copy(classifier(tmp_path), tmp_path / "kept.onnx")
    _, lines = section("An .onnx from elsewhere")
    walk(tmp_path, lines)
