"""`trtexec`, TensorRT's own benchmark, to hold this project's figures against: the same engine, as a CUDA graph."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from pipeline.errors import CheckFailed
from pipeline.records.manifest import Artifact

JETPACK = Path("/usr/src/tensorrt/bin/trtexec")  # where it is installed, but not on the path
FLAGS = ("--useCudaGraph", "--noDataTransfers", "--useSpinWait", "--warmUp=500", "--duration=3")  # ms, s
INCLUDES = (
    "both are the CUDA graph's kernels between two events, without copies; trtexec has the next request in the queue, "
    "here each one waits for the last"
)
LIMIT = 300  # seconds for one run


def find() -> str | None:
    """Return the path of trtexec; None if it isn't installed."""
    return shutil.which("trtexec") or (str(JETPACK) if JETPACK.is_file() else None)


def run(program: str, form: Artifact, shape: str) -> dict[str, float]:
    """Time an engine for an input of a shape such as `images:8x1x28x28`; return percentiles of the GPU's microseconds.

    Raises CheckFailed, with trtexec's own words, if it fails or prints no such time.
    """
    line = [program, f"--loadEngine={form.path}", f"--shapes={shape}", *FLAGS]
    line += ["--versionCompatible"] * form.options["version_compatible"]
    line += [] if (dla := form.options.get("dla")) is None else [f"--useDLACore={dla}"]
    try:
        done = subprocess.run(line, capture_output=True, text=True, errors="replace", timeout=LIMIT)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CheckFailed(f"{program}: {error}") from error
    summary = re.search(r"\[I\] GPU Compute Time: (.*)", done.stdout)
    if done.returncode or not summary:
        errors = re.findall(r"\[E\] (.*)", done.stdout + done.stderr)
        reason = errors[0] if errors else f"exit code {done.returncode}, and no GPU Compute Time"
        raise CheckFailed(
            f"{program} failed on {form.path}: {reason}; leave --compare out, or use the version it is built by"
        )
    times = re.findall(r"(?:(median)|percentile\((\d+)%\)) = ([\d.e+-]+) ms", summary[1])
    return {f"p{percent or 50}": float(milliseconds) * 1e3 for _, percent, milliseconds in times}
