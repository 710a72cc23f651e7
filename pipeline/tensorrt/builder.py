"""Build a TensorRT engine from an ONNX file, strongly typed: it computes as the file says or not at all.

1. Parse with STRONGLY_TYPED; a problem is one line with its node and operator.
2. Walk the parsed network: a layer in another type than asked for fails the build, by name.
3. Compile, with the timings of earlier builds on this GPU.
4. Where a GPU is: ask the engine itself what its layers compute in, and hold that against the same type.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import console
from pipeline.errors import CheckFailed, UsageError
from pipeline.records import disk
from pipeline.tensorrt import bindings as tensorrt_library
from pipeline.tensorrt import precision as layer_types

if TYPE_CHECKING:
    import tensorrt as trt


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
    timing_cache: Path | None = None  # file that is read and written


@dataclass(frozen=True)
class Built:
    """A serialised engine, its parsed layers (name, type, element types), and what it says of itself on a GPU."""

    engine: bytes
    layers: list[dict[str, Any]]
    inspected: list[dict[str, Any]] | None = None


def build(content: bytes, *, source: str, element: str, bindings: Any, plan: Plan, inspect: bool = False) -> Built:
    """Compile a serialised ONNX model.

    `element` is what all its arithmetic must be in, "HALF" or "FLOAT"; `source` is the file's name in errors; with
    `inspect`, which takes a GPU, the engine is loaded and asked, too. Raises CheckFailed if TensorRT doesn't take the
    graph or a layer computes in another type, UsageError if this version can't do what the plan wants.
    """
    log = tensorrt_library.logger(bindings)
    builder = bindings.Builder(log)
    network, layers = _parsed(content, source, builder, bindings, log)
    layer_types.assert_parsed(source, layers, element)
    config = _config(builder, network, bindings, plan)
    with _timings(config, plan.timing_cache), console.progress(None, "step", "engine") as bar:
        monitor = _monitor(bindings, bar)  # must outlive the build
        config.progress_monitor = monitor
        serialised = builder.build_serialized_network(network, config)
    if serialised is None:
        raise CheckFailed(f"{source}: TensorRT built no engine: {'; '.join(log.lines) or 'it gave no reason'}")
    engine = bytes(serialised)
    if not inspect:
        return Built(engine, layers)
    found = layer_types.inspected(_report(engine, bindings, log, source, plan))
    layer_types.assert_inspected(source, found, element)
    return Built(engine, layers, found)


def _parsed(content: bytes, source: str, builder: trt.Builder, bindings: Any, log: Any) -> tuple[Any, list[dict]]:
    network = builder.create_network(1 << int(bindings.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser: trt.OnnxParser = bindings.OnnxParser(network, log)
    if not parser.parse(content):
        raise CheckFailed(f"{source}: TensorRT can't take it: {'; '.join(_errors(parser))}")
    return network, [layer_types.parsed(network.get_layer(index)) for index in range(network.num_layers)]


def _errors(parser: trt.OnnxParser) -> list[str]:
    """One line a problem, with the node and operator it is about where the version tells."""
    found = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        where = [getattr(error, name)() for name in ("node_name", "node_operator") if hasattr(error, name)]
        found.append(f"node {error.node()} ({' '.join(filter(None, where))}): {' '.join(error.desc().split())}")
    return found


def _config(builder: trt.Builder, network: trt.INetworkDefinition, bindings: Any, plan: Plan) -> trt.IBuilderConfig:
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


@contextlib.contextmanager
def _timings(config: trt.IBuilderConfig, path: Path | None) -> Any:
    """The kernels' timings of earlier builds, read before and written after one; a cache that can't be used is none."""
    if path is None:
        yield
        return
    cache = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
    if cache is None or not config.set_timing_cache(cache, False):
        config.set_timing_cache(config.create_timing_cache(b""), False)
    yield
    disk.save(path, bytes(config.get_timing_cache().serialize()))


def _report(engine: bytes, bindings: Any, log: Any, source: str, plan: Plan) -> str:
    """The engine inspector's JSON, of an engine that was built here a moment ago."""
    runtime: trt.Runtime = bindings.Runtime(log)
    runtime.engine_host_code_allowed = plan.version_compatible
    loaded = runtime.deserialize_cuda_engine(engine)
    if loaded is None:
        raise CheckFailed(f"{source}: the engine can't be loaded: {'; '.join(log.lines) or 'it gave no reason'}")
    return loaded.create_engine_inspector().get_engine_information(bindings.LayerInformationFormat.JSON)


def _target(config: Any, bindings: Any, targets: Sequence[str]) -> None:
    known = _since(
        bindings, "ComputeCapability", "--target", "TensorRT for RTX 1.0; `tensorrt` builds for the GPU it is on"
    )
    there = {name.lower() for name in dir(known) if name.startswith("SM")}
    if unknown := [name for name in targets if name not in there]:
        raise UsageError(f"--target {','.join(unknown)}: expected some of {', '.join(sorted(there))}")
    config.num_compute_capabilities = len(targets)
    for index, name in enumerate(targets):
        config.set_compute_capability(getattr(known, name.upper()), index)


def _since(bindings: Any, name: str, option: str, version: str) -> Any:
    if not hasattr(bindings, name):
        raise UsageError(f"{option}: {bindings.__name__} {bindings.__version__} doesn't have it: expected {version}")
    return getattr(bindings, name)


def _monitor(bindings: Any, bar: Any) -> Any:
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
