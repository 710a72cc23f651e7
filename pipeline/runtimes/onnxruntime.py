"""ONNX Runtime: runs `.onnx` files of every kind as any user of the shipped file would, on the CPU unless told.

The modes are its execution providers. Where one can't be loaded, ONNX Runtime takes the CPU without a word; here that
is an error.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import CheckFailed, UsageError
from pipeline.graph import load as onnx_file
from pipeline.graph import run
from pipeline.records.manifest import Artifact
from pipeline.runtimes import session as base

if TYPE_CHECKING:
    import numpy as np
    from onnx import GraphProto, ModelProto
    from onnxruntime import NodeArg, OrtValue, SessionOptions

READS = {"unfolded": ("cpu",), "folded": ("cpu",), "half": ("cpu",), "int8": ("cpu",)}
NEEDS = ("onnxruntime",)
PACKAGES = ("onnxruntime", "onnxruntime-gpu", "onnx")
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
NO_GRAPH = "-1"  # ONNX Runtime's gpu_graph_id for a request that is captured in none
_COMPUTE = ("Conv", "Gemm", "MatMul")  # also as parts of fused operators' names


class Session(base.Session):
    """An `.onnx` or `.fp16.onnx` in ONNX Runtime; `mode` is one of PROVIDERS. Threads: by default as many as cores.

    `arithmetic` is read off the graph that its optimiser left, and names its provider unless that is the CPU. Raises
    UsageError if this ONNX Runtime has no such provider, CheckFailed if it has and doesn't run the file on it.
    """

    def __init__(self, artifact: Artifact, *, mode: str = "cpu", threads: int | None = None) -> None:
        import onnxruntime

        self._onnxruntime, self._on_cpu, self._path = onnxruntime, mode == "cpu", artifact.path
        settings = {  # CUDA graphs for the prepared requests; float16 for TensorRT only where the file has it
            "cpu": {},
            "cuda": {"enable_cuda_graph": "1", "use_tf32": "0"},
            "tensorrt": {
                "trt_fp16_enable": str(int(artifact.kind in ("half", "int8"))),
                "trt_int8_enable": str(int(artifact.kind == "int8")),
            },
        }
        model, options = onnx_file.load(artifact), run.options(threads)
        with tempfile.TemporaryDirectory() as folder:
            optimised = Path(folder) / "optimised.onnx"
            if mode != "tensorrt":  # compiled parts can't be written as ONNX
                options.optimized_model_filepath = str(optimised)
            self._session = _opened(artifact.path, model, mode, options, settings[mode])
            self.arithmetic = _arithmetic(model.graph, optimised if optimised.exists() else None)
        if not self._on_cpu:
            self.arithmetic += f", {PROVIDERS[mode]}"
        (self._image,), (self._logits,) = self._session.get_inputs(), self._session.get_outputs()

    def __exit__(self, *_: object) -> None:
        self._session = None

    def __call__(self, images: np.ndarray) -> np.ndarray:
        options = self._onnxruntime.RunOptions()
        options.add_run_config_entry("gpu_graph_id", NO_GRAPH)
        with run.running(self._path):
            return self._session.run(None, {self._image.name: images}, options)[0]

    def step(self, batch: int) -> Callable[[], None]:
        """Return a function that runs one request of `batch` images, with input and output bound to memory beforehand.

        On a GPU a request includes both copies, and with the CUDA provider it is a CUDA graph.
        """
        import numpy as np

        def place(value: NodeArg, dtype: type) -> tuple[np.ndarray, OrtValue]:
            host: np.ndarray = np.zeros([batch, *value.shape[1:]], dtype)
            return host, self._onnxruntime.OrtValue.ortvalue_from_numpy(host, "cpu" if self._on_cpu else "cuda", 0)

        (pixels, image), (_, logits) = place(self._image, np.uint8), place(self._logits, np.float32)
        binding, session = self._session.io_binding(), self._session
        binding.bind_ortvalue_input(self._image.name, image)
        binding.bind_ortvalue_output(self._logits.name, logits)
        if self._on_cpu:
            with run.running(self._path):
                session.run_with_iobinding(binding)
            return lambda: session.run_with_iobinding(binding)
        options = self._onnxruntime.RunOptions()
        options.add_run_config_entry("gpu_graph_id", str(batch))  # one graph a batch size

        def step() -> None:
            image.update_inplace(pixels)
            session.run_with_iobinding(binding, options)
            logits.numpy()

        return step


load = Session


@functools.cache  # of a provider that loads: errors are not kept
def expect(provider: str) -> None:
    """UsageError if this ONNX Runtime has no such provider, CheckFailed if it can't load it: seen with one node."""
    from onnx import TensorProto, helper

    if provider == "cpu":
        return
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "node", [value], [])
    graph.output.add(name="y").type.CopyFrom(value.type)
    node = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 18)])
    _opened(f"--provider {provider}, tried on a Relu", node, provider, run.options(1), {})


def _opened(name: object, model: ModelProto, mode: str, options: SessionOptions, settings: Mapping[str, str]) -> Any:
    """A session of a model with a provider and nothing to fall back on."""
    import onnxruntime

    provider, available = PROVIDERS[mode], onnxruntime.get_available_providers()
    if provider not in available:
        raise UsageError(
            f"--provider {mode}: expected ONNX Runtime with {provider}, received {onnxruntime.__version__} with "
            f"{', '.join(available)}; on x86-64 `pip install onnxruntime-gpu` in place of onnxruntime, on a Jetson "
            "install NVIDIA's wheel for its JetPack"
        )
    if mode != "cpu":
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    log: list[str] = []
    try:
        with contextlib.nullcontext() if mode == "cpu" else _logged(log):
            session = run.opened(model.SerializeToString(), options, [(provider, settings)])
    except Exception as error:  # the library's own exceptions share no narrower public base
        reason = _reason(error, "".join(log))
        raise CheckFailed(f"{name}: ONNX Runtime can't load it with {provider}: {reason}") from error
    if (ran := session.get_providers()[0]) != provider:
        raise CheckFailed(f"--provider {mode}: expected {provider}, ONNX Runtime fell back to {ran}")
    return session


@contextlib.contextmanager
def _logged(parts: list[str]) -> Iterator[None]:
    """Take what is written to stderr: why a provider can't be loaded stands only there. Drop what is printed."""
    with contextlib.redirect_stdout(io.StringIO()), tempfile.TemporaryFile("w+", errors="replace") as file:
        kept = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            parts.append(file.read())


def _reason(error: Exception, log: str) -> str:
    """Return the library that couldn't be loaded and what the provider needs, if the log says so, else the error."""
    missing, needs = re.search(r"with error: (.+)", log), re.search(r"Require (.+?)\. Please", log)
    line = missing[1] if missing else " ".join(str(error).split())[:300]  # what is missing stands far behind
    return line + (f"; it needs an NVIDIA GPU, {needs[1]}; or use --provider cpu" if needs else "")


def _arithmetic(graph: GraphProto, optimised: Path | None) -> str:
    """What the compute operators of the optimised graph work in, and on which weights, if those of the file differ."""
    import onnx

    def element(kinds: set) -> str:
        return "/".join(sorted(str(onnx.helper.tensor_dtype_to_np_dtype(kind)) for kind in kinds if kind))

    scales = {name for node in graph.node if node.op_type == "Resize" for name in node.input[1:]}  # always float32
    types = {tensor.name: tensor.data_type for tensor in graph.initializer if tensor.name not in scales}
    stored = element({kind for kind in types.values() if kind != onnx.TensorProto.INT64})
    if optimised is None:
        return stored
    ran = onnx.load(optimised).graph
    types = {tensor.name: tensor.data_type for tensor in ran.initializer}
    for node in ran.node:
        if node.op_type in ("Cast", "DequantizeLinear"):
            to = onnx_file.attribute(node, "to", 0)
            types[node.output[0]] = to if node.op_type == "Cast" else types.get(node.input[1])
    compute = [node for node in ran.node if any(part in node.op_type for part in _COMPUTE)]
    used = element({types.get(node.input[3 if node.op_type == "QLinearConv" else 1]) for node in compute})
    return used if used == stored else f"{used} on {stored} weights"
