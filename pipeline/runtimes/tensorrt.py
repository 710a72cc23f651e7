"""TensorRT: compiles an ONNX file to an engine, strongly typed, so that it computes as the file says or not at all.

One code for `tensorrt` (10.0 and later, on a Jetson or a PC with an NVIDIA GPU) and `tensorrt_rtx`, which has the same
API and builds for GPUs that aren't there. Engines can't be run from here yet, so no form is read by this runtime.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from pipeline import console
from pipeline.errors import CheckFailed, UsageError

READS: dict[str, tuple[str, ...]] = {}
MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
PACKAGES = tuple(MODULES)
OLDEST = 10  # the first TensorRT with strongly typed networks
INSTALL = {
    "tensorrt": "on a Jetson it comes with JetPack: 6.1 or 6.2 (TensorRT 10.3, Python 3.10), 7.1 (10.13, Python 3.12) "
    "or 7.2 (10.16), `sudo apt install nvidia-jetpack`, then a venv made with --system-site-packages; on a PC with an "
    "NVIDIA GPU: pip install tensorrt; without a GPU: pip install tensorrt-rtx, and --runtime tensorrt-rtx",
    "tensorrt-rtx": "pip install tensorrt-rtx (x86-64)",
}


@dataclass(frozen=True)
class Plan:
    """How an engine is to be built. Batch sizes in images, the workspace in MiB."""

    opt_batch: int = 1
    max_batch: int = 64
    workspace: int | None = None
    targets: Sequence[str] = ()  # compute capabilities such as "sm86"; none: the GPU that is there
    version_compatible: bool = False
    hardware_compatible: bool = False
    dla: int | None = None  # which of the deep-learning accelerators, if one


def installed() -> list[str]:
    """The distributions among `tensorrt` and `tensorrt-rtx` that are there, in this order; neither is imported."""
    return [name for name, module in MODULES.items() if importlib.util.find_spec(module)]


def library(name: str) -> ModuleType:
    """The bindings of a distribution, imported. UsageError if they are missing, or too old to keep a precision."""
    try:
        bindings = importlib.import_module(MODULES[name])
    except (ImportError, OSError) as error:  # the latter where a library of CUDA isn't found
        raise UsageError(f"--runtime {name}: {name} isn't installed ({error}): {INSTALL[name]}") from error
    if name == "tensorrt" and int(bindings.__version__.partition(".")[0]) < OLDEST:
        raise UsageError(
            f"TensorRT {bindings.__version__} has no strongly typed networks: expected {OLDEST}.0 or later, as "
            "in JetPack 6.1 and later"
        )
    return bindings


def build(content: bytes, *, source: str, element: str, bindings: ModuleType, plan: Plan) -> tuple[bytes, list[dict]]:
    """Compile a serialised ONNX model; gives the serialised engine and its parsed layers, each with name and types.

    `element` is what all its arithmetic must be in, "HALF" or "FLOAT"; `source` is the file's name in errors. Raises
    CheckFailed if TensorRT doesn't take the graph or a layer computes in another type, UsageError if this version
    can't do what the plan wants.
    """
    log = _log(bindings)
    builder = bindings.Builder(log)
    typed = 1 << int(bindings.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(typed)
    parser = bindings.OnnxParser(network, log)
    if not parser.parse(content):
        raise CheckFailed(f"{source}: TensorRT can't take it: {'; '.join(_errors(parser))}")
    layers = [_layer(network.get_layer(index), bindings) for index in range(network.num_layers)]
    _assert_element(source, layers, element)
    config = _config(builder, network, bindings, plan)
    with console.progress(None, "step", "engine") as bar:
        monitor = _monitor(bindings, bar)  # must outlive the build
        config.progress_monitor = monitor
        engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise CheckFailed(f"{source}: TensorRT built no engine: {'; '.join(log.lines) or 'it gave no reason'}")
    return bytes(engine), layers


def _errors(parser: Any) -> list[str]:
    """One line a problem, with the node and operator it is about where the version tells."""
    found = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        where = [getattr(error, name)() for name in ("node_name", "node_operator") if hasattr(error, name)]
        found.append(f"node {error.node()} ({' '.join(filter(None, where))}): {' '.join(error.desc().split())}")
    return found


def _layer(layer: Any, bindings: ModuleType) -> dict[str, Any]:
    def types(get: Any, count: int) -> list[str]:
        tensors = [get(index) for index in range(count)]
        return [tensor.dtype.name for tensor in tensors if tensor is not None]

    return {
        "name": layer.name,
        "type": layer.type.name,
        "inputs": types(layer.get_input, layer.num_inputs),
        "outputs": types(layer.get_output, layer.num_outputs),
    }


def _assert_element(source: str, layers: list[dict[str, Any]], element: str) -> None:
    """CheckFailed unless every layer but the casts has `element` for all its floats, and one at least multiplies."""
    floating = {"FLOAT", "HALF", "BF16", "FP8", "FP4"}
    wrong = []
    for layer in layers:
        others = floating & {*layer["inputs"], *layer["outputs"]} - {element}
        if layer["type"] != "CAST" and others:
            wrong.append(f"{layer['type']} {layer['name']} is in {'/'.join(sorted(others))}")
    if wrong:
        raise CheckFailed(f"{source}: expected every layer to compute in {element}, received {'; '.join(wrong)}")
    if not any(layer["type"] in ("CONVOLUTION", "MATRIX_MULTIPLY") for layer in layers):
        raise CheckFailed(
            f"{source}: expected a network with convolutions, TensorRT parsed {len(layers)} layers and none"
        )


def _config(builder: Any, network: Any, bindings: ModuleType, plan: Plan) -> Any:
    config = builder.create_builder_config()
    config.profiling_verbosity = bindings.ProfilingVerbosity.DETAILED  # so that the engine can tell its layers' types
    if plan.workspace is not None:
        config.set_memory_pool_limit(bindings.MemoryPoolType.WORKSPACE, plan.workspace << 20)
    profile, images = builder.create_optimization_profile(), network.get_input(0)
    shapes = [(batch, *images.shape[1:]) for batch in (1, plan.opt_batch, plan.max_batch)]
    profile.set_shape(images.name, *shapes)
    config.add_optimization_profile(profile)
    if plan.targets:
        _target(config, bindings, plan.targets)
    if plan.version_compatible:
        config.set_flag(bindings.BuilderFlag.VERSION_COMPATIBLE)
    if plan.hardware_compatible:
        level = _since(bindings, "HardwareCompatibilityLevel", "--hardware-compatible", "TensorRT 8.6")
        config.hardware_compatibility_level = level.AMPERE_PLUS
    if plan.dla is not None:
        if plan.dla >= builder.num_DLA_cores:
            raise UsageError(f"--dla {plan.dla}: expected one of this device's {builder.num_DLA_cores} DLA cores")
        config.default_device_type, config.DLA_core = bindings.DeviceType.DLA, plan.dla
        config.set_flag(bindings.BuilderFlag.GPU_FALLBACK)
    return config


def _target(config: Any, bindings: ModuleType, targets: Sequence[str]) -> None:
    known = _since(
        bindings, "ComputeCapability", "--target", "TensorRT for RTX 1.0; `tensorrt` builds for the GPU it is on"
    )
    there = {name.lower() for name in dir(known) if name.startswith("SM")}
    if unknown := [name for name in targets if name not in there]:
        raise UsageError(f"--target {','.join(unknown)}: expected some of {', '.join(sorted(there))}")
    config.num_compute_capabilities = len(targets)
    for index, name in enumerate(targets):
        config.set_compute_capability(getattr(known, name.upper()), index)


def _since(bindings: ModuleType, name: str, option: str, version: str) -> Any:
    if not hasattr(bindings, name):
        raise UsageError(f"{option}: {bindings.__name__} {bindings.__version__} doesn't have it: expected {version}")
    return getattr(bindings, name)


def _log(bindings: ModuleType) -> Any:
    class Log(bindings.ILogger):
        """Keeps errors, for the one line that a person gets."""

        def __init__(self) -> None:
            bindings.ILogger.__init__(self)
            self.lines: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (bindings.ILogger.Severity.ERROR, bindings.ILogger.Severity.INTERNAL_ERROR):
                self.lines.append(" ".join(message.split()))

    return Log()


def _monitor(bindings: ModuleType, bar: Any) -> Any:
    class Monitor(bindings.IProgressMonitor):
        """TensorRT's steps on a progress bar."""

        def __init__(self) -> None:
            bindings.IProgressMonitor.__init__(self)

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            bar.set_description(f"engine: {phase}", refresh=False)

        def phase_finish(self, phase: str) -> None:
            return None

        def step_complete(self, phase: str, step: int) -> bool:
            bar.update()
            return True

    return Monitor()
