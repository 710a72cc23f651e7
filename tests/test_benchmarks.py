from __future__ import annotations

import json
import subprocess
import sys

import pytest

from benchmarks import training, verify
from tests.support import ROOT


@pytest.mark.exhaustive
def test_both_loops_run_and_are_compared(few, capsys):
    """In a process of its own: one of the loops has worker processes."""
    line = ["--data", few, "--rounds", "1", "--seconds", "0.5", "--images", "640", "--threads", "1", "--json"]
    words = [sys.executable, "-m", "benchmarks.training", *map(str, line)]
    result = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    seed, ours = (side["images_per_second"] for side in report["sides"].values())
    assert report["ratio"] == pytest.approx(ours / seed) and report["limit_images_per_second"] > ours > 0
    training.show(report)
    table = capsys.readouterr().out
    assert "seed loop" in table and "of the limit" in table and "9.06 MFLOP an image" in table


def test_the_work_of_an_image_is_counted_from_the_layer_table():
    multiply_adds = 108 * 26**2 + 1728 * 24**2 + 160 * 24**2 + 1080 * 10**2 + 1728 * 8**2 + 4320 * 6**2 + 300
    assert training.flop_per_image() == 2 * (3 * multiply_adds - 108 * 26**2)


def test_wrong_data_is_one_line(capsys):
    with pytest.raises(SystemExit, match="2"):
        training.main(["--data", "README.md"])
    (last,) = capsys.readouterr().err.splitlines()
    assert last.startswith("error: ") and "README.md" in last


def test_a_revision_that_does_not_exist_is_one_line(capsys):
    with pytest.raises(SystemExit, match="1"):
        verify.main(["no-such-revision"])
    (last,) = capsys.readouterr().err.splitlines()
    assert last.startswith("error: git") and "no-such-revision" in last
