"""What a network's layers compute in: of the parsed network before a build, and of the engine after it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pipeline import console
from pipeline.errors import CheckFailed

if TYPE_CHECKING:
    import tensorrt as trt


def parsed(layer: trt.ILayer) -> dict[str, Any]:
    """A layer of the parsed network: its name, type, and the element types of its inputs and outputs."""

    def types(get: Any, count: int) -> list[str]:
        tensors = [get(index) for index in range(count)]
        return [tensor.dtype.name for tensor in tensors if tensor is not None]

    return {
        "name": layer.name,
        "type": layer.type.name,
        "inputs": types(layer.get_input, layer.num_inputs),
        "outputs": types(layer.get_output, layer.num_outputs),
    }


def assert_parsed(source: str, layers: list[dict[str, Any]], element: str) -> None:
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


def inspected(report: str) -> list[dict[str, Any]]:
    """The engine inspector's layers as name, type, and the data formats of inputs and outputs, of TensorRT 10 or 11.

    10 has one field `Format/Datatype` a tensor, 11 has two.
    """
    layers = json.loads(report).get("Layers", [])
    if not layers or not all(isinstance(each, dict) for each in layers):
        raise CheckFailed(
            "the engine inspector tells names alone: expected an engine with detailed profiling verbosity"
        )
    return [
        {
            "name": each.get("Name", ""),
            "type": each.get("LayerType", ""),
            "inputs": [_format(tensor) for tensor in each.get("Inputs", [])],
            "outputs": [_format(tensor) for tensor in each.get("Outputs", [])],
        }
        for each in layers
    ]


def _format(tensor: dict[str, Any]) -> str:
    return " ".join(
        str(value) for name, value in tensor.items() if "format" in name.lower() or "datatype" in name.lower()
    )


def assert_inspected(source: str, layers: list[dict[str, Any]], element: str) -> None:
    """CheckFailed unless what the engine multiplies is in `element`, as far as the inspector tells.

    Kernels that TensorRT fused whole with a cast take or give what the graph's ends have: so of a convolution or a
    matrix product one side at least must be in `element`, and neither in a float type that no end has.
    """
    compute = [layer for layer in layers if any(part in layer["type"].lower() for part in ("conv", "gemm", "matrix"))]
    wrong = [f"{each['type']} {each['name']} is in {_told(each)}" for each in compute if not _is_in(each, element)]
    if not compute and not any(_is_in(layer, element) for layer in layers):
        console.say(
            f"{source}: the engine's inspector names no convolution and nothing in {element} (all may be one kernel): "
            "only the network that it was built from is known to be"
        )
    if wrong:
        raise CheckFailed(f"{source}: expected the engine to compute in {element}, received {'; '.join(wrong)}")


def _told(layer: dict[str, Any]) -> str:
    return " ".join([*layer["inputs"], *layer["outputs"]]).lower()


def _is_in(layer: dict[str, Any], element: str) -> bool:
    return any(word in _told(layer) for word in {"HALF": ("half", "fp16"), "FLOAT": ("float", "fp32")}[element])
