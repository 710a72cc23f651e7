"""ONNX Runtime on the CPU: runs `.onnx` and `.fp16.onnx` as any user of the shipped file would."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import onnx_file
from pipeline.artifact import Artifact
from pipeline.errors import CheckFailed

if TYPE_CHECKING:
    import numpy as np
    from onnx import GraphProto

READS = {"onnx": ("",), "fp16": ("",)}
PACKAGES = ("onnxruntime", "onnxruntime-gpu", "onnx")
PROVIDER = "CPUExecutionProvider"
_COMPUTE = ("Conv", "Gemm", "MatMul")  # also as parts of fused operators' names


class Session:
    """An ONNX Runtime session; `arithmetic` is read off the graph that its optimiser left."""

    def __init__(self, artifact: Artifact, threads: int | None) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # warnings tell of fallbacks that `arithmetic` states for every run
        options.intra_op_num_threads = threads or 0
        options.add_session_config_entry("session.intra_op.allow_spinning", "0" if threads == 1 else "1")
        model = onnx_file.load(artifact)
        try:
            with tempfile.TemporaryDirectory() as folder:
                optimised = Path(folder) / "optimised.onnx"
                options.optimized_model_filepath = str(optimised)
                self._session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=[PROVIDER])
                self.arithmetic = _arithmetic(model.graph, optimised)
        except Exception as error:  # the library's own exceptions share no narrower public base
            line = " ".join(str(error).split())[:300]
            raise CheckFailed(f"{artifact.path}: ONNX Runtime can't load it: {line}") from error
        self._onnxruntime = onnxruntime
        (self._image,), (self._logits,) = self._session.get_inputs(), self._session.get_outputs()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self._session = None

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """uint8 images `[n, c, h, w]` to float32 logits `[n, classes]`."""
        return self._session.run(None, {self._image.name: images})[0]

    def step(self, batch: int) -> Callable[[], None]:
        """A function that runs one request of `batch` images; input and output are bound to memory that is there."""
        import numpy as np

        def place(value: object, dtype: type) -> object:
            shape = [batch, *value.shape[1:]]
            return self._onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(shape, dtype))

        binding = self._session.io_binding()
        binding.bind_ortvalue_input(self._image.name, place(self._image, np.uint8))
        binding.bind_ortvalue_output(self._logits.name, place(self._logits, np.float32))
        session = self._session
        return lambda: session.run_with_iobinding(binding)


def load(artifact: Artifact, *, mode: str = "", threads: int | None = None) -> Session:
    """A session of an `.onnx` or `.fp16.onnx` on the CPU; there is one mode. Threads: by default as many as cores."""
    return Session(artifact, threads)


def _arithmetic(graph: GraphProto, optimised: Path) -> str:
    """What the compute operators of the optimised graph work in, and on which weights, if those of the file differ."""
    import onnx

    def element(kinds: set) -> str:
        return "/".join(sorted(str(onnx.helper.tensor_dtype_to_np_dtype(kind)) for kind in kinds if kind))

    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    stored = element({kind for kind in types.values() if kind != onnx.TensorProto.INT64})
    ran = onnx.load(optimised).graph
    types = {tensor.name: tensor.data_type for tensor in ran.initializer}
    types |= {node.output[0]: node.attribute[0].i for node in ran.node if node.op_type == "Cast"}
    compute = [node for node in ran.node if any(part in node.op_type for part in _COMPUTE)]
    used = element({types.get(node.input[1]) for node in compute})
    return used if used == stored else f"{used} on {stored} weights"
