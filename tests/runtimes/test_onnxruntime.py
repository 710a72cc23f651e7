"""ONNX Runtime's providers: what they lack is said in one line."""

from __future__ import annotations

import os

import onnxruntime
import pytest

from pipeline.graph import run
from tests.support import command, one_line

LOG = b"""[E:onnxruntime:Default] Failed to load library providers_cuda.so with error: libcublasLt.so.13: cannot open it
[W:onnxruntime:Default] Failed to create CUDAExecutionProvider. Require cuDNN 9.* and CUDA 13.*. Please install all.
"""


@pytest.mark.parametrize(
    ("log", "reason"),
    [(LOG, "libcublasLt.so.13: cannot open it; it needs cuDNN 9.* and CUDA 13.*"), (b"", "disabled by the user")],
)
def test_why_a_provider_cannot_be_loaded_is_one_line(release, monkeypatch, capfd, log, reason):
    """ONNX Runtime writes it to the process's stderr, its Python part prints, and the exception says something else."""

    def opened(*_):
        os.write(2, log)
        print("*** EP Error ***")
        raise RuntimeError("fallback to the CPU is\ndisabled by the user")

    monkeypatch.setattr(run, "opened", opened)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    result = command("verify", release / "mnist_cnn.onnx", "--provider", "cuda")
    assert one_line(result, 1).endswith(reason)
    assert result.stdout == "" and capfd.readouterr() == ("", "")
