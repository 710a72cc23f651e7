"""What a network's layers compute in: of the parsed network before a build, and of the engine after it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from pipeline import console
from pipeline.errors import CheckFailed
from pipeline.records.forms import EngineLayer

if TYPE_CHECKING:
    import tensorrt as trt

FLOATS = {"FLOAT", "HALF", "BF16", "FP8", "FP4"}
MULTIPLY = ("CONVOLUTION", "MATRIX_MULTIPLY")
QUANTISING = ("QUANTIZE", "DEQUANTIZE", "CONSTANT")  # whose scales the parser keeps in FLOAT
# What an element type is called in data formats; a quantised network keeps some layers in float16.
WORDS = {"HALF": ("half", "fp16"), "FLOAT": ("float", "fp32"), "INT8": ("int8", "half", "fp16")}


def parsed(network: trt.INetworkDefinition) -> list[EngineLayer]:
    """Describe the layers of the parsed network, with the element types of their inputs and outputs.

    What multiplies is said to read what its DEQUANTIZE layers read, since TensorRT computes on that.
    """
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    before = {each.get_output(0).name: each.get_input(0).dtype for each in layers if each.type.name == "DEQUANTIZE"}
    return [_parsed(layer, before if layer.type.name in MULTIPLY else {}) for layer in layers]


def _parsed(layer: trt.ILayer, before: Mapping[str, trt.DataType]) -> EngineLayer:

    def types(get: Callable[[int], trt.ITensor | None], count: int) -> list[str]:
        tensors = [get(index) for index in range(count)]
        return [before.get(tensor.name, tensor.dtype).name for tensor in tensors if tensor is not None]

    return EngineLayer(
        name=layer.name,
        type=layer.type.name,
        inputs=types(layer.get_input, layer.num_inputs),
        outputs=types(layer.get_output, layer.num_outputs),
    )


def assert_parsed(source: str, layers: list[EngineLayer], element: str, integers: int = 0) -> None:
    """Raise CheckFailed unless all floats of every layer but the casts are in `element`, and one layer multiplies.

    Of "INT8", unless `integers` layers multiply in it and all others are in HALF.
    """
    quantised, wrong = element == "INT8", []
    passed = ("CAST", *QUANTISING) if quantised else ("CAST",)
    for each in layers:
        others = FLOATS & {*each.inputs, *each.outputs} - {"HALF" if quantised else element}
        if each.type not in passed and others:
            wrong.append(f"{each.type} {each.name} is in {'/'.join(sorted(others))}")
    if wrong:
        raise CheckFailed(f"{source}: expected every layer to compute in {element}, received {'; '.join(wrong)}")
    if not any(each.type in MULTIPLY for each in layers):
        raise CheckFailed(
            f"{source}: expected a network with convolutions or matrix products, received {len(layers)} other layers"
        )
    received = sum(each.type in MULTIPLY and each.inputs[:2] == ["INT8", "INT8"] for each in layers)
    if quantised and received != integers:
        raise CheckFailed(f"{source}: expected {integers} convolutions or matrix products in INT8, received {received}")


def inspected(report: str) -> list[EngineLayer]:
    """Describe the layers in an engine inspector's JSON, with the data formats of their inputs and outputs.

    TensorRT 10 has one field `Format/Datatype` a tensor, 11 has two. CheckFailed if the report has names alone.
    """
    layers = json.loads(report).get("Layers", [])
    if not layers or not all(isinstance(each, dict) for each in layers):
        raise CheckFailed(
            "the engine inspector reports names alone: expected an engine with detailed profiling verbosity"
        )
    return [
        EngineLayer(
            name=each.get("Name", ""),
            type=each.get("LayerType", ""),
            inputs=[_format(tensor) for tensor in each.get("Inputs", [])],
            outputs=[_format(tensor) for tensor in each.get("Outputs", [])],
            kernel=str(each.get("TacticName", "")),
        )
        for each in layers
    ]


def accumulators(layers: list[EngineLayer]) -> dict[str, list[str]]:
    """Names of an engine's convolutions and products by what their kernels sum in, as far as kernels' names tell.

    NVIDIA doesn't document those names: this reports, and decides nothing. `f16f16_f16f16` sums in float16, `f16f32` in
    float32.
    """
    found: dict[str, list[str]] = {}
    for each in filter(_multiplies, layers):
        name = each.kernel.lower()
        known = "float16" if "f16f16_f16f16" in name else "float32" if "f16f32" in name else "not told"
        found.setdefault(known, []).append(each.name)
    return found


def _format(tensor: dict[str, object]) -> str:
    return " ".join(
        str(value) for name, value in tensor.items() if "format" in name.lower() or "datatype" in name.lower()
    )


def assert_inspected(source: str, layers: list[EngineLayer], element: str) -> None:
    """Raise CheckFailed unless what the engine multiplies is in `element`, as far as the inspector tells.

    A kernel that TensorRT fused with a cast reads or writes what the graph's ends have: so of a convolution or a matrix
    product one side at least must be in `element`.
    """
    compute = list(filter(_multiplies, layers))
    wrong = [f"{each.type} {each.name} is in {_formats(each)}" for each in compute if not _is_in(each, element)]
    if wrong:
        raise CheckFailed(f"{source}: expected the engine to compute in {element}, received {'; '.join(wrong)}")
    if not compute and not any(_is_in(each, element) for each in layers):
        console.say(
            f"{source}: the engine's inspector names no convolution and nothing in {element} (all may be one kernel): "
            "only the parsed network was checked"
        )


def _multiplies(kernel: EngineLayer) -> bool:
    return any(part in kernel.type.lower() for part in ("conv", "gemm", "matrix"))


def _formats(kernel: EngineLayer) -> str:
    return " ".join([*kernel.inputs, *kernel.outputs]).lower()


def _is_in(kernel: EngineLayer, element: str) -> bool:
    return any(word in _formats(kernel) for word in WORDS[element])
