"""The comparison; the clones themselves take a quarter of an hour: `python -m tests.clones`."""

from __future__ import annotations

import os
import subprocess
import sys

from tests import clones
from tests.support import ROOT


def test_one_other_byte_or_file_is_told(tmp_path, capsys):
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        (folder / "release").mkdir(parents=True)
        (folder / "release" / "a.onnx").write_bytes(b"same")
    assert clones._compared(first, second) and "1 of 1 files are the same bytes" in capsys.readouterr().out
    (second / "release" / "a.onnx").write_bytes(b"sane")
    (first / "b").write_bytes(b"")
    assert not clones._compared(first, second) and "0 of 2 files" in capsys.readouterr().out


def test_nothing_made_is_not_the_same(tmp_path):
    assert not clones._compared(tmp_path / "first", tmp_path / "second")


def test_the_lowest_versions_without_their_resolver_are_one_line(tmp_path):
    (tmp_path / "uv.py").write_text("raise SystemExit(1)")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    line = [sys.executable, "-m", "tests.lowest"]
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr == "error: exit code 1 of uv; `pip install uv` if it is missing\n"
