"""A TensorRT 10 or 11 that builds engines of nothing: the builder's calls, with their rules, on top of `fake_gpu`.

It parses ONNX, tells layers and types as TensorRT does, and inspects in the words of its version. What 11 has no more,
such as a flag for float16, is not there; what a configuration does not have can not be set. That the rules are
TensorRT's, a device must show.
"""

from __future__ import annotations

import json
from types import SimpleNamespace

import onnx

from pipeline.graph import load
from tests.support import fake_gpu

LAYERS = {"Conv": "CONVOLUTION", "Gemm": "MATRIX_MULTIPLY", "MatMul": "MATRIX_MULTIPLY"}
LAYERS |= {"QuantizeLinear": "QUANTIZE", "DequantizeLinear": "DEQUANTIZE"}
TYPES = {"FLOAT16": "HALF"}  # by ONNX's name; the others are called alike
WORDS = {"HALF": "Half", "FLOAT": "Float", "INT8": "Int8", "UINT8": "UInt8"}


def _named(**names: int) -> SimpleNamespace:
    return SimpleNamespace(**names)


class Bindings(fake_gpu.Bindings):
    """Stands in for the module `tensorrt` of a version, on a device with so many deep-learning accelerators."""

    ProfilingVerbosity = _named(LAYER_NAMES_ONLY=0, DETAILED=2)
    MemoryPoolType = _named(WORKSPACE=0)
    LayerInformationFormat = _named(ONELINE=0, JSON=1)
    DeviceType = _named(GPU=0, DLA=1)
    HardwareCompatibilityLevel = _named(AMPERE_PLUS=1)
    IProgressMonitor = object

    def __init__(self, cuda, answer, largest: int, version: str, accelerators: int = 0) -> None:
        super().__init__(cuda, answer, largest)
        self.__version__, self.accelerators, self.built = version, accelerators, {}
        self.ten = version.startswith("10.")
        self.NetworkDefinitionCreationFlag = _named(STRONGLY_TYPED=1 if self.ten else 0)
        self.BuilderFlag = _named(VERSION_COMPATIBLE=20, GPU_FALLBACK=3, **({"FP16": 0} if self.ten else {}))
        self.cores: dict[bytes, int] = {}  # accelerators that engines were built for
        self.computes = None  # what engines compute in, whatever the file says

    def Builder(self, log):
        return _Builder(self)

    def OnnxParser(self, network, log):
        return SimpleNamespace(parse=network.parse, num_errors=0)

    def Runtime(self, log):
        runtime, ours = super().Runtime(log), SimpleNamespace()

        def deserialize(content: bytes):
            if getattr(ours, "DLA_core", None) != self.cores.get(content):
                return log.log(1, "the engine is for another DLA core")
            engine = runtime.deserialize_cuda_engine(content)
            inspector = SimpleNamespace(get_engine_information=lambda form: self.built[content])
            engine.create_engine_inspector = lambda: inspector
            return engine

        ours.deserialize_cuda_engine = deserialize
        return ours


class _Network:
    def __init__(self, typed: bool) -> None:
        self.typed, self.layers = typed, []

    def parse(self, content: bytes) -> bool:
        graph = (model := onnx.load_from_string(content)).graph
        elements = {name: value.type.tensor_type.elem_type for name, value in load.values(model).items()}
        elements |= (weights := {tensor.name: tensor.data_type for tensor in graph.initializer})
        for node in graph.node:
            given = [name for name in node.input if name not in weights or node.op_type == "DequantizeLinear"]
            tensors = [[self._tensor(name, elements[name]) for name in names] for names in (given, node.output)]
            self.layers.append(_Layer(node.name, LAYERS.get(node.op_type, node.op_type.upper()), *tensors))
        shape = [dim.dim_value or -1 for dim in graph.input[0].type.tensor_type.shape.dim]
        self.input = SimpleNamespace(name=graph.input[0].name, shape=tuple(shape))
        return True

    @staticmethod
    def _tensor(name: str, element: int) -> SimpleNamespace:
        told = onnx.TensorProto.DataType.Name(element)
        return SimpleNamespace(name=name, dtype=SimpleNamespace(name=TYPES.get(told, told)))

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    def get_layer(self, index: int):
        return self.layers[index]

    def get_input(self, index: int):
        return (self.input,)[index]


class _Layer:
    def __init__(self, name: str, kind: str, inputs: list, outputs: list) -> None:
        self.name, self.type, self.inputs, self.outputs = name, SimpleNamespace(name=kind), inputs, outputs
        self.num_inputs, self.num_outputs = len(inputs), len(outputs)
        self.get_input, self.get_output = inputs.__getitem__, outputs.__getitem__


class _Config:
    __slots__ = ("DLA_core", "cache", "default_device_type", "flags", "hardware_compatibility_level", "profiles")
    __slots__ += ("profiling_verbosity", "progress_monitor", "workspace")

    def __init__(self) -> None:
        self.flags, self.profiles, self.profiling_verbosity, self.default_device_type = set(), [], 0, 0

    def set_flag(self, flag: int) -> None:
        self.flags.add(flag)

    def set_memory_pool_limit(self, pool: int, size: int) -> None:
        self.workspace = size

    def add_optimization_profile(self, profile) -> None:
        self.profiles.append(profile)

    def can_run_on_DLA(self, layer: _Layer) -> bool:
        return layer.type.name == "CONVOLUTION"

    def create_timing_cache(self, content: bytes):
        return SimpleNamespace(content=content, serialize=lambda: content or b"timings")

    def set_timing_cache(self, cache, ignore_mismatch: bool) -> bool:
        self.cache = cache
        return cache.content[:7] in (b"", b"timings")

    def get_timing_cache(self):
        return SimpleNamespace(serialize=lambda: (self.cache.content or b"timings") + b" of one more build")


class _Profile:
    def set_shape(self, name: str, *shapes: tuple[int, ...]) -> None:
        self.shapes = shapes


class _Builder:
    def __init__(self, bindings: Bindings) -> None:
        self.bindings, self.num_DLA_cores = bindings, bindings.accelerators

    def create_network(self, flags: int) -> _Network:
        return _Network(typed=not self.bindings.ten or flags == 2)  # 11 types strongly whatever the flags

    def create_builder_config(self) -> _Config:
        return _Config()

    def create_optimization_profile(self):
        return _Profile()

    def build_serialized_network(self, network: _Network, config: _Config) -> bytes:
        assert network.typed and config.profiles, "TensorRT would choose the precision, or knows no batch sizes"
        for call, given in (
            ("phase_start", ("all", None, 1)),
            ("step_complete", ("all", 0)),
            ("phase_finish", ("all",)),
        ):
            getattr(config.progress_monitor, call)(*given)
        content = f"engine {len(self.bindings.built)}".encode()
        (profile,) = config.profiles
        if config.default_device_type == self.bindings.DeviceType.DLA:
            assert len({*profile.shapes}) == 1, "an accelerator takes no dynamic dimensions"
            self.bindings.cores[content] = config.DLA_core
        self.bindings.least, self.bindings.largest = profile.shapes[0][0], profile.shapes[2][0]
        self.bindings.built[content] = json.dumps({"Layers": [self._told(each, config) for each in network.layers]})
        return content

    def _told(self, layer: _Layer, config: _Config) -> object:
        if config.profiling_verbosity != self.bindings.ProfilingVerbosity.DETAILED:
            return layer.name

        def tensor(each) -> dict[str, str]:
            word = WORDS.get(self.bindings.computes or each.dtype.name, each.dtype.name)
            if self.bindings.ten:
                return {"Name": each.name, "Format/Datatype": word}
            return {"Name": each.name, "Format": "Row major linear", "Datatype": word}

        ends = {"Inputs": list(map(tensor, layer.inputs)), "Outputs": list(map(tensor, layer.outputs))}
        return {"Name": layer.name, "LayerType": layer.type.name.title(), **ends}
