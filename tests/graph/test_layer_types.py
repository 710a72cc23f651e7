from __future__ import annotations

import json

import pytest

from pipeline.errors import CheckFailed
from pipeline.tensorrt import precision as layer_types


def report(*layers: dict) -> str:
    return json.dumps({"Layers": list(layers), "Bindings": ["images", "logits"]})


def ten(kind: str, there: str, out: str | None = None) -> dict:
    """A layer as TensorRT 10's inspector tells of it: one field for format and type."""
    tensors = [[{"Name": "t", "Dimensions": [1, 8, 26, 26], "Format/Datatype": each}] for each in (there, out or there)]
    return {"Name": f"/{kind}", "LayerType": kind, "Inputs": tensors[0], "Outputs": tensors[1], "TacticName": "sm87_x"}


def eleven(kind: str, there: str) -> dict:
    """As TensorRT 11's does: two fields."""
    tensor = [{"Name": "t", "Dimensions": [1, 8, 26, 26], "Format": "Row major linear", "Datatype": there}]
    return {"Name": f"/{kind}", "LayerType": kind, "Inputs": tensor, "Outputs": tensor}


HALF = "Channel major FP16 format where channel % 8 == 0"
FLOAT = "Row major linear FP32"


@pytest.mark.parametrize(
    "layers",
    [
        [ten("Reformat", "Row major linear UINT8", HALF), ten("CaskConvolution", HALF), ten("CaskGemm", HALF, FLOAT)],
        [ten("CaskConvolution", "Half"), ten("CaskPooling", "Half")],
        [eleven("CaskConvolution", "Half"), eleven("Cast", "Float")],
    ],
)
def test_an_engine_in_half_is_taken_and_isnt_one_in_float(layers):
    found = layer_types.inspected(report(*layers))
    layer_types.assert_inspected("try.onnx", found, "HALF")
    with pytest.raises(CheckFailed, match=r"try.onnx: expected the engine to compute in FLOAT, received CaskConv"):
        layer_types.assert_inspected("try.onnx", found, "FLOAT")


@pytest.mark.parametrize("layer", [ten("CaskConvolution", FLOAT), eleven("CaskGemmConvolution", "Float")])
def test_a_float32_kernel_in_an_fp16_engine_is_refused_by_name(layer):
    """What TensorRT 11 made of other exporters' engines."""
    found = layer_types.inspected(report(ten("CaskConvolution", HALF), layer))
    with pytest.raises(CheckFailed) as caught:
        layer_types.assert_inspected("try.onnx", found, "HALF")
    assert (
        f"{layer['LayerType']} {layer['Name']} is in" in str(caught.value) and str(caught.value).count(" is in ") == 1
    )


@pytest.mark.parametrize("told", ['{"Layers": ["conv1", "conv2"]}', "{}"])
def test_names_alone_are_no_proof(told):
    with pytest.raises(CheckFailed, match="detailed profiling verbosity"):
        layer_types.inspected(told)


def test_an_inspector_that_cannot_tell_is_said_to_be_no_proof(capsys):
    whole = ten("Myelin", "Row major linear UINT8", FLOAT)
    layer_types.assert_inspected("try.onnx", layer_types.inspected(report(whole)), "HALF")
    assert "names no convolution and nothing in HALF" in capsys.readouterr().err
    layer_types.assert_inspected("try.onnx", layer_types.inspected(report(ten("CaskConvolution", HALF))), "HALF")
    assert not capsys.readouterr().err


def test_accumulators_are_told_as_far_as_kernels_names_tell():
    names = {
        "a": "sm80_xmma_fprop_implicit_gemm_f16f16_f16f32_f32_nhwckrsc_nhwc_tilesize128x128x32_stage4_warpsize2x2x1",
        "b": "sm80_xmma_fprop_implicit_gemm_f16f16_f16f16_f16_nhwckrsc_nhwc_tilesize64x64x64_stage3_warpsize2x2x1",
        "c": "__myl_CastMulConv_0x1f",
    }
    layers = [ten("CaskConvolution", HALF) | {"Name": name, "TacticName": kernel} for name, kernel in names.items()]
    found = layer_types.inspected(report(*layers, ten("CaskPooling", HALF)))
    assert layer_types.accumulators(found) == {"float32": ["a"], "float16": ["b"], "not told": ["c"]}
