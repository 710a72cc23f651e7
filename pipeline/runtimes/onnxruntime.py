"""ONNX Runtime: runs `.onnx` and `.fp16.onnx` as any user of the shipped file would, on the CPU unless told.

The modes are its execution providers. Where one can't be loaded, ONNX Runtime takes the CPU without a word; here that
is an error.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import CheckFailed, UsageError
from pipeline.graph import load as onnx_file
from pipeline.records.manifest import Artifact
from pipeline.runtimes import session as base

if TYPE_CHECKING:
    import numpy as np
    from onnx import GraphProto

READS = {"unfolded": ("cpu",), "folded": ("cpu",), "half": ("cpu",)}
NEEDS = ("onnxruntime",)
PACKAGES = ("onnxruntime", "onnxruntime-gpu", "onnx")
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
NO_GRAPH = "-1"  # ONNX Runtime's gpu_graph_id for a request that is captured in none
_COMPUTE = ("Conv", "Gemm", "MatMul")  # also as parts of fused operators' names


class Session(base.Session):
    """An ONNX Runtime session; `arithmetic` is read off the graph that its optimiser left, and names its provider
    unless that is the CPU."""

    def __init__(self, artifact: Artifact, provider: str, threads: int | None) -> None:
        import onnxruntime

        self._onnxruntime, self._path, self._provider = onnxruntime, artifact.path, provider
        _assert_there(onnxruntime, provider)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # warnings tell of fallbacks that `arithmetic` states for every run
        options.intra_op_num_threads = threads or 0
        options.add_session_config_entry("session.intra_op.allow_spinning", "0" if threads == 1 else "1")
        if provider != "cpu":
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        model = onnx_file.load(artifact)
        chosen = [(PROVIDERS[provider], _settings(provider, artifact.kind))]
        try:
            with tempfile.TemporaryDirectory() as folder:
                optimised = Path(folder) / "optimised.onnx"
                if provider != "tensorrt":  # compiled parts can't be written as ONNX
                    options.optimized_model_filepath = str(optimised)
                self._session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=chosen)
                self.arithmetic = _arithmetic(model.graph, optimised if optimised.exists() else None)
        except Exception as error:  # the library's own exceptions share no narrower public base
            line = " ".join(str(error).split())[:300]
            raise CheckFailed(
                f"{artifact.path}: ONNX Runtime can't load it with {PROVIDERS[provider]}: {line}"
            ) from error
        if (ran := self._session.get_providers()[0]) != PROVIDERS[provider]:
            raise CheckFailed(f"--provider {provider}: expected {PROVIDERS[provider]}, ONNX Runtime fell back to {ran}")
        if provider != "cpu":
            self.arithmetic += f", {PROVIDERS[provider]}"
        (self._image,), (self._logits,) = self._session.get_inputs(), self._session.get_outputs()

    def __exit__(self, *_: object) -> None:
        self._session = None

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """uint8 images `[n, c, h, w]` to float32 logits `[n, classes]`."""
        options = self._onnxruntime.RunOptions()
        options.add_run_config_entry("gpu_graph_id", NO_GRAPH)
        return self._session.run(None, {self._image.name: images}, options)[0]

    def step(self, batch: int) -> Callable[[], None]:
        """A function that runs one request of `batch` images: on the CPU with input and output bound to memory that is
        there; on a GPU with both copies, and with the CUDA provider as a CUDA graph."""
        import numpy as np

        device = "cpu" if self._provider == "cpu" else "cuda"

        def place(value: object, dtype: type) -> tuple[np.ndarray, Any]:
            host = np.zeros([batch, *value.shape[1:]], dtype)
            return host, self._onnxruntime.OrtValue.ortvalue_from_numpy(host, device, 0)

        (pixels, image), (_, logits) = place(self._image, np.uint8), place(self._logits, np.float32)
        binding, session = self._session.io_binding(), self._session
        binding.bind_ortvalue_input(self._image.name, image)
        binding.bind_ortvalue_output(self._logits.name, logits)
        if device == "cpu":
            return lambda: session.run_with_iobinding(binding)
        options = self._onnxruntime.RunOptions()
        options.add_run_config_entry("gpu_graph_id", str(batch))  # one graph a batch size

        def step() -> None:
            image.update_inplace(pixels)
            session.run_with_iobinding(binding, options)
            logits.numpy()

        return step


def load(artifact: Artifact, *, mode: str = "cpu", threads: int | None = None) -> Session:
    """A session of an `.onnx` or `.fp16.onnx`; `mode` is one of PROVIDERS. Threads: by default as many as cores.

    Raises UsageError if this ONNX Runtime has no such provider, CheckFailed if it has and doesn't run the file on it.
    """
    return Session(artifact, mode, threads)


def _assert_there(onnxruntime: Any, provider: str) -> None:
    there = onnxruntime.get_available_providers()
    if PROVIDERS[provider] not in there:
        raise UsageError(
            f"--provider {provider}: this ONNX Runtime {onnxruntime.__version__} was built with {', '.join(there)}: on "
            "x86-64 pip install onnxruntime-gpu in place of onnxruntime; on a Jetson NVIDIA's wheel for its JetPack"
        )


def _settings(provider: str, kind: str) -> dict[str, str]:
    """Of a provider. CUDA graphs for the prepared requests; float16 for TensorRT only where the file has it."""
    if provider == "cuda":
        return {"enable_cuda_graph": "1", "use_tf32": "0"}
    return {"trt_fp16_enable": str(int(kind == "half"))} if provider == "tensorrt" else {}


def _arithmetic(graph: GraphProto, optimised: Path | None) -> str:
    """What the compute operators of the optimised graph work in, and on which weights, if those of the file differ."""
    import onnx

    def element(kinds: set) -> str:
        return "/".join(sorted(str(onnx.helper.tensor_dtype_to_np_dtype(kind)) for kind in kinds if kind))

    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    stored = element({kind for kind in types.values() if kind != onnx.TensorProto.INT64})
    if optimised is None:
        return stored
    ran = onnx.load(optimised).graph
    types = {tensor.name: tensor.data_type for tensor in ran.initializer}
    types |= {node.output[0]: node.attribute[0].i for node in ran.node if node.op_type == "Cast"}
    compute = [node for node in ran.node if any(part in node.op_type for part in _COMPUTE)]
    used = element({types.get(node.input[1]) for node in compute})
    return used if used == stored else f"{used} on {stored} weights"
