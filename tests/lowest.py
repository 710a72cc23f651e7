"""The tests with the oldest versions that pyproject.toml allows, in a virtual environment of their own.

`python -m tests.lowest`; words after it are pytest's. The resolver is uv (`pip install uv`), whose `lowest-direct`
takes the lower bound of each dependency that is named, and whatever fits those of the rest.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def main() -> int:
    with tempfile.TemporaryDirectory() as scratch:
        python = Path(scratch) / "venv/bin/python"
        uv = [sys.executable, "-m", "uv"]
        try:
            made = ["--quiet", "--seed", "--python", sys.executable, python.parents[1]]
            subprocess.run([*uv, "venv", *made], check=True)
            wanted = ["--resolution", "lowest-direct", "--python", python, "-e", f"{ROOT}[host,test]"]
            subprocess.run([*uv, "pip", "install", *wanted], check=True)
        except subprocess.CalledProcessError as error:
            print(f"error: exit code {error.returncode} of uv; `pip install uv` if it is missing", file=sys.stderr)
            return 2
        path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
        tests = [python, "-m", "pytest", *sys.argv[1:]]
        return subprocess.run(tests, cwd=ROOT, env=os.environ | {"PATH": path}).returncode


if __name__ == "__main__":
    sys.exit(main())
