"""The short form of `python -m tests.hardening`: 1,000 inputs, some kills, every kind of tampering."""

from __future__ import annotations

import re
import subprocess
import sys

from conftest import ROOT


def test_nothing_is_lost_and_nothing_silently_wrong(chain, data):
    line = [sys.executable, "-m", "tests.hardening", "--chain", str(chain), "--data", str(data)]
    ran = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    print(ran.stdout)
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-1000:]
    rows = re.findall(r"^ +(?:[a-z ]+?)  +(.+?) +([\d,]+) +([\d,]+) +(\d+) *$", ran.stdout, re.MULTILINE)
    tried = {what: int(number.replace(",", "")) for what, number, _, _ in rows}
    assert sum(number for what, number in tried.items() if what.endswith(", damaged")) >= 1000
    assert all(failures == "0" for *_, failures in rows) and len(rows) >= 20
