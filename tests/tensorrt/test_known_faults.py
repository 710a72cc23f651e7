from __future__ import annotations

import re

import onnx
import pytest
from onnx import parser

from pipeline.device import doctor
from pipeline.records import manifest
from pipeline.stages import build
from pipeline.tensorrt import bindings as library
from pipeline.tensorrt import builder, known_faults

GROUPED = "a = Conv<group = {group}>(x, w)  y = Relu(a)"
RESIDUAL = "a = Conv(x, w)  b = Conv(a, w)  c = Relu(b)  d = Add({operand}, c)  y = Concat<axis = 1>(a, d)"
ATTENTION = "a = MatMul(x, x)  b = {weigh}(a)  c = Cast<to = 10>(b)  y = MatMul(c, x)"
GRAPHS = {  # of each fault, by its number: a graph that has it, and the nearest that has not
    "4838": (GROUPED.format(group=2), GROUPED.format(group=1)),
    "4854": (RESIDUAL.format(operand="a"), RESIDUAL.format(operand="x")),
    "4419": (ATTENTION.format(weigh="Softmax"), ATTENTION.format(weigh="Relu")),
}


def graph(nodes: str) -> onnx.ModelProto:
    head = '<ir_version: 8, opset_import: ["" : 18]> net (float16[n, 4, 8, 8] x, float16[4, 4, 1, 1] w)'
    return parser.parse_model(f"{head} => (float16[n, c, h, v] y) {{ {nodes} }}")


def number(fault: known_faults.Fault) -> str:
    return fault.reference.rpartition("/")[2]


@pytest.mark.parametrize("fault", known_faults.FAULTS, ids=number)
def test_the_table_is_well_formed(fault):
    assert re.fullmatch(r"https://github\.com/NVIDIA/TensorRT/issues/\d+", fault.reference)
    numbers = [known_faults._numbers(version) for version in (fault.first, fault.fixed) if version]
    assert numbers == sorted(numbers) and all(each >= (library.OLDEST,) for each in numbers)
    assert fault.elements and {*fault.elements} <= {*build.ELEMENTS.values()}
    has, has_not = map(graph, GRAPHS[number(fault)])
    for model in (has, has_not):
        onnx.shape_inference.infer_shapes(model, check_type=True)
    assert fault.fits(has) and not fault.fits(has_not)
    assert not any(other.fits(has) for other in known_faults.FAULTS if other is not fault)


@pytest.mark.parametrize(
    ("runtime", "version", "expected"),
    [
        ("tensorrt", "10.2.0", []),
        ("tensorrt", "10.3.0.30", ["4419"]),
        ("tensorrt", "10.4.0", ["4419"]),
        ("tensorrt", "10.5.0", []),
        ("tensorrt", "10.16.1.11", []),
        ("tensorrt", "11.2.1.2", ["4838", "4854"]),
        ("tensorrt-rtx", "11.2.1.2", []),
    ],
)
def test_a_version_has_its_faults(runtime, version, expected):
    assert [number(fault) for fault in known_faults.of_version(runtime, version)] == expected


def test_the_shipped_network_has_none(release):
    for name in ("mnist_cnn.onnx", "mnist_cnn.fp16.onnx", "mnist_cnn.int8.onnx"):
        assert not any(fault.fits(onnx.load(release / name)) for fault in known_faults.FAULTS)


def test_build_tells_before_it_compiles_and_goes_on(device, chain, tmp_path, monkeypatch, capsys):
    """Without the compiler: its place takes one that looks at what was said before it."""
    source = manifest.read(chain / "mnist_cnn.fp16.onnx")
    model = onnx.load(source.path)
    (scores,) = model.graph.output
    more = [("Softmax", [scores.name], ["p"]), ("Transpose", [scores.name], ["t"]), ("MatMul", ["p", "t"], ["all"])]
    model.graph.node.extend(onnx.helper.make_node(*each) for each in more)
    model.graph.output[0].name = "all"
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    model.graph.output[0].type.tensor_type.shape.dim.extend([onnx.TensorShapeProto.Dimension()] * 2)
    attending = manifest.write(tmp_path / source.name, model.SerializeToString(), facts=source.facts)
    told = []
    monkeypatch.setattr(builder, "build", lambda *_: told.append(capsys.readouterr().err) or (b"an engine", []))
    monkeypatch.setattr(builder, "inspect", lambda *_: [])
    for form in (source, attending):
        assert build.run(form, out=tmp_path, runtime="tensorrt").kind == "engine"
    assert "issues/" not in told[0] and "issues/4419" in told[1]
    assert "wrong answers (`pipeline verify` of the engine tells) for attention" in told[1]


def test_doctor_names_those_of_the_installed_version(device, capsys):
    doctor.show(made := doctor.run())
    assert [line.rpartition("/")[2] for line in made.facts.faults] == ["4419"]
    assert "issues/4419" in capsys.readouterr().out
