"""`python -m tests.hardening`: its short form, and in the quick tests a very short one."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hardening import Place, Row, endurance, fuzz, tamper, targets
from tests.support import ROOT, surroundings

QUICK = ("idx", "record", "onnx", "archive", "picture")


@pytest.fixture(scope="module")
def place(chain, shipped, tmp_path_factory) -> Place:
    release = Path(shutil.copytree(shipped / "mnist_cnn-1.0.0", tmp_path_factory.mktemp("place") / "mnist_cnn-1.0.0"))
    return Place(chain, release, str(ROOT / "data"))


@pytest.mark.parametrize("target", QUICK)
def test_a_few_damaged_inputs_of_each_kind_end_in_one_clear_error(place, target):
    row = fuzz._target(target, 8, place)
    assert row.tried == 8 and not row.failures


def test_changed_bytes_of_every_artifact_and_record_are_noticed(place):
    row = tamper._records(place, 4)
    assert row.tried >= 40 and not row.failures


def test_every_kind_that_is_fuzzed_has_a_share():
    assert targets.SHARES.keys() == targets.ACTS.keys()


@pytest.mark.exhaustive
def test_the_long_run_tells_a_leak_from_what_is_cached_once():
    kept, rounds, handles = [], itertools.count(), []

    def cache() -> None:
        if next(rounds) == 10:
            kept.append(bytearray(32 << 20))

    leaking = endurance._flat(Row("", ""), 60, lambda: kept.append(bytearray(300 << 10)))
    caching = endurance._flat(Row("", ""), 60, cache)
    opening = endurance._flat(Row("", ""), 20, lambda: handles.append(os.dup(0)))
    for handle in handles:
        os.close(handle)
    assert "memory grew twice" in leaking.failures[0]
    assert not caching.failures and caching.tried == 6 + 2 * 60
    assert opening.failures == ["20 handles stay open"]


@pytest.mark.exhaustive
def test_nothing_is_lost_and_nothing_silently_wrong():
    """1,000 inputs, some kills, every kind of tampering, a third of the mutants."""
    line = [sys.executable, "-m", "tests.hardening", "--data", str(ROOT / "data")]
    ran = subprocess.run(line, cwd=ROOT, env=surroundings(), capture_output=True, text=True)
    print(ran.stdout)
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-1000:]
    rows = re.findall(r"^ +(?:[a-z ]+?)  +(.+?) +([\d,]+) +([\d,]+) +(\d+) *$", ran.stdout, re.MULTILINE)
    tried = {what: int(number.replace(",", "")) for what, number, _, _ in rows}
    assert sum(number for what, number in tried.items() if what.endswith(", damaged")) >= 1000
    assert all(failures == "0" for *_, failures in rows) and len(rows) >= 20
