"""The shipped files in the oldest ONNX Runtime that has a wheel for this Python and the operators of every file."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from pipeline.records import manifest
from pipeline.runtimes import onnxruntime

OLDEST = "1.16.0" if sys.version_info < (3, 12) else "1.17.0" if sys.version_info < (3, 13) else "1.20.0"
SCRIPT = """
import sys
import numpy, onnxruntime
assert onnxruntime.__version__ == sys.argv[3], onnxruntime.__version__
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
numpy.save(sys.argv[2] + ".logits", session.run(["logits"], {"images": numpy.load(sys.argv[2])})[0])
"""


@pytest.mark.exhaustive
def test_the_shipped_files_run_in_the_oldest_onnx_runtime(release, digits, tmp_path):
    line = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--only-binary", ":all:", "--target"]
    numpy = "numpy<2" if sys.version_info < (3, 13) else "numpy"
    installed = subprocess.run(
        [*line, tmp_path / "old", f"onnxruntime=={OLDEST}", numpy], capture_output=True, text=True
    )
    if installed.returncode:
        pytest.skip(f"onnxruntime {OLDEST} can't be installed: {installed.stderr.strip().splitlines()[-1]}")
    images = digits.images[:500]
    np.save(tmp_path / "images.npy", images)
    surroundings = os.environ | {"PYTHONPATH": str(tmp_path / "old")}
    for file in ("mnist_cnn.onnx", "mnist_cnn.fp16.onnx", "mnist_cnn.int8.onnx"):
        line = [sys.executable, "-c", SCRIPT, release / file, tmp_path / "images.npy", OLDEST]
        ran = subprocess.run(line, env=surroundings, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
        before = np.load(tmp_path / "images.npy.logits.npy")
        with onnxruntime.load(manifest.read(release / file)) as session:
            now = session(images)
        assert (before.argmax(1) == now.argmax(1)).mean() >= 0.996, file
        if "int8" not in file:  # there a pixel is divided by its scale in float16, and may go to the next level
            assert np.abs(before - now).max() < 1e-3 * np.abs(now).max(), file
