"""Build a TensorRT engine from an ONNX file, strongly typed: it computes as the file says or not at all.

1. Parse with STRONGLY_TYPED; a problem is one line with its node and operator.
2. Walk the parsed network: a layer in another type than asked for fails the build, by name.
3. Compile, with the timings of earlier builds on this GPU.
4. On the GPU that it was built for: ask the engine itself what its layers compute in, and hold that against the type.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import structs

from pipeline import console
from pipeline.errors import CheckFailed, UsageError
from pipeline.records import disk
from pipeline.records.forms import EngineLayer
from pipeline.tensorrt import bindings as library
from pipeline.tensorrt import precision

if TYPE_CHECKING:
    import tensorrt as trt


@dataclass(frozen=True)
class Plan:
    """How to build an engine. Batch sizes in images, the workspace in MiB."""

    opt_batch: int = 1
    max_batch: int = 64
    workspace: int | None = None
    targets: Sequence[str] = ()  # tensorrt-rtx: compute capabilities such as "sm86"
    version_compatible: bool = False
    hardware_compatible: bool = False
    dla: int | None = None  # number of a deep-learning accelerator
    timing_cache: Path | None = None  # file that is read and written


def build(
    source: str, content: bytes, element: str, bindings: Any, plan: Plan, integers: int = 0
) -> tuple[bytes, list[EngineLayer]]:
    """Compile the serialised ONNX model of a file, `source`; return the serialised engine and the parsed layers.

    All arithmetic must be in `element`, "HALF" or "FLOAT"; with "INT8", so many convolutions and matrix products,
    `integers`, must be in that, and the rest in HALF. Raises CheckFailed if TensorRT rejects the graph or a layer
    computes in another type, UsageError if this machine can't follow the plan.
    """
    log = library.logger(bindings)
    builder = bindings.Builder(log)
    network, layers = _parsed(content, source, builder, bindings, log)
    precision.assert_parsed(source, layers, element, integers)
    config = _config(builder, network, bindings, plan)
    if plan.dla is not None:
        layers = falling_back(layers, network, config)
    with console.progress(None, "step", "engine") as bar:
        monitor = _monitor(bindings, bar)  # must outlive the build
        config.progress_monitor = monitor
        engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise CheckFailed(f"{source}: TensorRT built no engine: {log.reason()}")
    if plan.timing_cache:
        disk.save(plan.timing_cache, bytes(config.get_timing_cache().serialize()))
    return bytes(engine), layers


def inspect(source: str, content: bytes, element: str, bindings: Any, options: Mapping[str, Any]) -> list[EngineLayer]:
    """Load a serialised engine, return its layers as it reports them, and assert that they compute in `element`."""
    log = library.logger(bindings)
    engine = library.engine(source, content, bindings, log, options)
    report = engine.create_engine_inspector().get_engine_information(bindings.LayerInformationFormat.JSON)
    layers = precision.inspected(report)
    precision.assert_inspected(source, layers, element)
    return layers


def _parsed(
    content: bytes, source: str, builder: trt.Builder, bindings: Any, log: Any
) -> tuple[trt.INetworkDefinition, list[EngineLayer]]:
    network = builder.create_network(1 << int(bindings.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser: trt.OnnxParser = bindings.OnnxParser(network, log)
    if not parser.parse(content):
        problems = []
        for index in range(parser.num_errors):
            error = parser.get_error(index)
            where = " ".join(filter(None, (error.node_name(), error.node_operator())))
            problems.append(f"node {error.node()} ({where}): {' '.join(error.desc().split())}")
        raise CheckFailed(f"{source}: TensorRT can't take it: {'; '.join(problems)}")
    return network, precision.parsed(network)


def _config(builder: trt.Builder, network: trt.INetworkDefinition, bindings: Any, plan: Plan) -> trt.IBuilderConfig:
    config = builder.create_builder_config()
    config.profiling_verbosity = bindings.ProfilingVerbosity.DETAILED  # else the inspector gives no types
    if plan.workspace is not None:
        config.set_memory_pool_limit(bindings.MemoryPoolType.WORKSPACE, plan.workspace << 20)
    profile, images = builder.create_optimization_profile(), network.get_input(0)
    least = 1 if plan.dla is None else plan.max_batch  # an accelerator takes no dynamic sizes
    shapes = [(batch, *images.shape[1:]) for batch in (least, plan.opt_batch, plan.max_batch)]
    profile.set_shape(images.name, *shapes)
    config.add_optimization_profile(profile)
    if plan.targets:
        _target(config, capabilities(bindings, plan.targets))
    if plan.version_compatible:
        config.set_flag(bindings.BuilderFlag.VERSION_COMPATIBLE)
    if plan.hardware_compatible:
        config.hardware_compatibility_level = bindings.HardwareCompatibilityLevel.AMPERE_PLUS
    if plan.dla is not None:
        if plan.dla >= builder.num_DLA_cores:
            raise UsageError(f"--dla {plan.dla}: expected one of this device's {builder.num_DLA_cores} DLA cores")
        config.default_device_type, config.DLA_core = bindings.DeviceType.DLA, plan.dla
        config.set_flag(bindings.BuilderFlag.GPU_FALLBACK)
    if plan.timing_cache:
        timings = plan.timing_cache.read_bytes() if plan.timing_cache.is_file() else b""
        cache = config.create_timing_cache(timings)
        if cache is None or not config.set_timing_cache(cache, False):  # an unusable cache counts as empty
            config.set_timing_cache(config.create_timing_cache(b""), False)
    return config


def falling_back(
    layers: list[EngineLayer], network: trt.INetworkDefinition, config: trt.IBuilderConfig
) -> list[EngineLayer]:
    """Mark those layers of a network that the accelerator can't compute, and that TensorRT therefore gives the GPU."""
    return [
        structs.replace(each, falls_back=not config.can_run_on_DLA(network.get_layer(index)))
        for index, each in enumerate(layers)
    ]


def capabilities(bindings: Any, targets: Sequence[str]) -> list[Any]:
    """Return tensorrt-rtx's values for compute capabilities such as "sm86". UsageError for one that it doesn't have."""
    members = bindings.ComputeCapability.__members__
    known = {name.lower(): value for name, value in members.items() if name.startswith("SM")}
    if unknown := [name for name in targets if name not in known]:
        raise UsageError(f"--target {','.join(unknown)}: expected some of {', '.join(sorted(known))}")
    return [known[name] for name in targets]


def _target(config: Any, chosen: list[Any]) -> None:
    """Build for these compute capabilities, as tensorrt-rtx alone can."""
    config.num_compute_capabilities = len(chosen)
    for index, capability in enumerate(chosen):
        config.set_compute_capability(capability, index)


def _monitor(bindings: Any, bar: Any) -> Any:
    class Monitor(bindings.IProgressMonitor):
        """TensorRT's steps on a progress bar."""

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            bar.set_description(f"engine: {phase}", refresh=False)

        def phase_finish(self, phase: str) -> None:
            return None

        def step_complete(self, phase: str, step: int) -> bool:
            bar.update()
            return True

    return Monitor()
