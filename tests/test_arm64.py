from __future__ import annotations

import os
import subprocess
import sys

from tests.support import ROOT


def test_without_the_tools_it_says_what_to_install(tmp_path):
    """The run itself takes minutes and root: `python -m tests.arm64`."""
    line = [sys.executable, "-m", "tests.arm64", "--folder", tmp_path]
    done = subprocess.run(line, cwd=ROOT, env=os.environ | {"PATH": "/nowhere"}, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "needs debootstrap" in done.stderr and "apt install qemu-user-static debootstrap" in done.stderr
    assert not list(tmp_path.iterdir())
