"""True float16 arithmetic for any graph: the rounded twin of a `.fp16.onnx`, run by ONNX Runtime.

ONNX Runtime's CPU provider on x86-64 computes a float16 graph in float32, so its agreement proves the weights' rounding
only. The twin rounds to float16 after every operator, as a GPU does. The second mode also rounds within sums. It is a
sample of what float16 accumulators give, not a worst case.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.graph import float16, run
from pipeline.graph import load as graphs
from pipeline.records.manifest import Artifact
from pipeline.runtimes import session as base

if TYPE_CHECKING:
    import numpy as np

MODES = ("one rounding an operator, float32 sums", "float16 sums in blocks of 64, a sample")
READS = {"half": MODES}
NEEDS = ("onnxruntime",)
PACKAGES = ("onnxruntime", "onnxruntime-gpu", "onnx")
TIMED = False


class Session(base.Session):
    """The twin of a `.fp16.onnx` in one of MODES, which is its `arithmetic`, too."""

    def __init__(self, artifact: Artifact, *, mode: str = MODES[0], threads: int | None = None) -> None:
        self.arithmetic, self._path = mode, artifact.path
        model = graphs.load(artifact)
        if mode == MODES[1]:
            model = float16.rounded_sums(model)
        self._session = run.session(float16.rounded_twin(model), str(artifact.path), threads)
        self._image = self._session.get_inputs()[0].name

    def __call__(self, images: np.ndarray) -> np.ndarray:
        with run.running(self._path):
            return self._session.run(None, {self._image: images})[0]


load = Session
