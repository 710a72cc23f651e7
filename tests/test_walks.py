"""Other networks, other images and files from elsewhere, from the first command to a shipped release."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pipeline.data import imagesets
from pipeline.errors import CheckFailed
from pipeline.graph import adopt as passes
from pipeline.records import manifest
from pipeline.stages import adopt
from tests.support import command, light, one_line
from tests.support.elsewhere import COLOURS, classifier, pictures

MODEL = """
from torch import nn
from torchvision import models
from pipeline import Model, Recipe

class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
                                   nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8))
        self.pool = nn.Sequential(nn.Hardswish(), nn.AdaptiveAvgPool2d(2))
        self.head = nn.Linear(32, 3)

    def forward(self, images):
        x = self.stem(images)
        x = self.pool(x + self.block(x))
        return self.head(x.view(x.size(0), -1))  # which PyTorch can't do with channels last in memory

MODEL = Model(title="Colours", data="{data}", input=(3, 64, 64), classes=("red", "green", "blue"),
              mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), gate={gate}, network={network},
              recipes={{"default": Recipe(epochs=1, batch_size=8, lr=0.01, rotation=5.0)}})
"""


def walked(tmp_path: Path, network: str, train: int, test: int) -> Path:
    """`run` and `ship` of a network on class folders; gives the folder of artifacts."""
    pictures(tmp_path / "colours", train, test)
    (tmp_path / "models").mkdir()
    text = MODEL.format(data="colours", gate=0.0, network=network)
    (tmp_path / "models/colours.py").write_text(text)
    ran = command("run", "colours", "--quick", "--batch", "1", "--headroom", "2", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr[-2000:]
    shipped = command("ship", cwd=tmp_path)
    assert shipped.returncode == 0 and "verified" in shipped.stdout, shipped.stderr
    checked = command("verify-release", "release/colours-1.0.0", cwd=tmp_path)
    assert checked.returncode == 0, checked.stderr
    return tmp_path / "out"


def assert_proven(out: Path, norms: int, left: int) -> None:
    """Every BatchNorm accounted for, fold exact, float16 near, every layer of the engine HALF."""
    folded, half, engine = (manifest.read(out / f"colours{end}") for end in (".onnx", ".fp16.onnx", ".engine"))
    assert (folded.facts.batch_norms, folded.facts.batch_norms_left) == (norms, left)
    assert folded.facts.difference < 1e-4 and half.facts.difference < 0.05
    assert "BatchNormalization" not in folded.facts.operators
    between = [layer for layer in engine.facts.layers if layer.type not in ("CAST", "SHAPE", "CONSTANT")]
    compute = [layer for layer in between if layer.type in ("CONVOLUTION", "MATRIX_MULTIPLY")]
    assert compute and all(layer.inputs[0] == layer.outputs[0] == "HALF" for layer in compute)
    rows = manifest.read(out / "verification.json").facts.rows
    assert {row.form for row in rows} == {
        f"colours{end}" for end in (".safetensors", ".unfolded.onnx", ".onnx", ".fp16.onnx", ".int8.onnx")
    }
    assert all(row.finite for row in rows)


def test_a_residual_rgb_network_on_class_folders_is_shipped(tmp_path):
    out = walked(tmp_path, "Residual", 8, 6)
    assert_proven(out, 3, 0)
    release = tmp_path / "release/colours-1.0.0"
    card = (release / "MODEL_CARD.md").read_text() + (release / "report.html").read_text()
    assert "igit" not in card and "MNIST" not in card
    packed = imagesets.load(str(release / "test-set.npz"), "test", (3, 64, 64), COLOURS)
    assert packed.digests == manifest.read(out / "colours.onnx").facts.reference.digests, (
        "all three channels are packed"
    )
    deployed = command("deploy", release, "--runtime", "none", "--quick", "--batch", "1", "--out", tmp_path / "device")
    assert deployed.returncode == 0, deployed.stderr
    predicted = command("predict", tmp_path / "colours/test", "--model", release / "colours.onnx", "--json")
    facts = json.loads(predicted.stdout)["facts"]
    assert facts["labelled"] == 18 and facts["correct"] == manifest.read(out / "colours.onnx").facts.reference.correct
    assert "expected a model of digits" in one_line(
        command("demo", "--model", release / "colours.onnx", "--port", "0"), 2
    )


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("network", "norms", "left"),
    # MobileNet's own BatchNorm has a momentum of .01: after an epoch it has hardly seen the images, and in float16 the
    # answers to all of them are the same, which `verify` rightly refuses.
    [("lambda: models.resnet18(num_classes=3)", 20, 0),
     ("lambda: models.mobilenet_v3_small(num_classes=3, norm_layer=nn.BatchNorm2d)", 34, 0),
     ("lambda: models.densenet121(num_classes=3)", 121, 62)],
)  # fmt: skip
def test_torchvisions_networks_are_shipped(tmp_path, network, norms, left):
    assert_proven(walked(tmp_path, network, 30, 20), norms, left)


@pytest.fixture
def colours(tmp_path) -> Path:
    return pictures(tmp_path / "colours", 8, 6)


WORDS = ["--name", "theirs", "--classes", "red,green,blue", "--mean", ".485,.456,.406", "--std", ".229,.224,.225"]


def test_a_file_adopted_again_makes_what_came_of_it_stale(tmp_path, colours):
    """And one that gets hardly an image right is told what may be wrong; a trained network of its name is kept."""
    out, words = tmp_path / "out", [*WORDS, "--data", colours, "--out", tmp_path / "out"]
    file = classifier(tmp_path)
    assert "chance" not in command("adopt", file, *words, "--classes", "green,red,blue").stderr
    assert command("fold", "--out", out, "--data", colours).returncode == 0
    assert [row["state"] for row in rows(out)][:2] == ["fresh", "fresh"]
    again = command("adopt", file, *words)
    assert "no better than chance: expected --classes in the order of its outputs" in again.stderr
    assert again.returncode == 0 and rows(out)[1] == {
        "stage": "fold", "file": "theirs.onnx", "state": "stale", "why": "theirs.unfolded.onnx has changed"
    }  # fmt: skip
    assert "--model their: expected one whose files are in" in one_line(command("status", out, "--model", "their"), 2)


def rows(out: Path) -> list[dict[str, str]]:
    """What `status` says of the stages."""
    return json.loads(command("status", out, "--json").stdout)


def test_a_trained_network_of_its_name_is_kept(chain, tmp_path):
    words = [*WORDS, "--name", "mnist_cnn", "--data", "mnist", "--out", chain]
    error = one_line(command("adopt", classifier(tmp_path), *words), 2)
    assert "mnist_cnn.unfolded.onnx: was exported from a network trained here: expected another --out" in error


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"last": "LogSoftmax"},
        {"last": ""},
        {"layout": "NHWC"},
        {"batch": 4},
        {"opset": 7},
        {"opset": 13},
        {"opset": 18},
        {"target": "Constant"},
        {"target": "Constant", "batch": 4},
    ],
    ids=str,
)
def test_a_file_from_elsewhere_is_adopted_in_any_form(tmp_path, colours, how):
    file = classifier(tmp_path, **how)
    result = command("adopt", file, *WORDS, "--data", colours, "--out", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    adopted = manifest.read(tmp_path / "out/theirs.unfolded.onnx")
    assert (
        adopted.facts.difference < 1e-5 and adopted.facts.adopted == how.get("opset", 9) and adopted.facts.opset == 18
    )
    assert adopted.parents.keys() == {"theirs.onnx as adopted"}
    accuracy = adopted.facts.reference.correct / 18
    assert adopted.facts.model.gate == pytest.approx(max(0, accuracy - adopt.MARGIN), abs=1e-4)
    assert "18 images tell little: the 95 % interval of" in result.stderr


def test_a_reshape_target_that_a_constant_shares_is_freed_for_the_batch_alone(tmp_path, colours):
    model = onnx.load(classifier(tmp_path, batch=4))
    model.graph.node[4].input[0] = "moved"
    more = [helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(np.arange(24, dtype=np.float32))),
            helper.make_node("Reshape", ["k", "s"], ["rows"]), helper.make_node("ReduceMean", ["rows"], ["m"], axes=[0]),
            helper.make_node("Add", ["f", "m"], ["moved"])]  # fmt: skip
    for node in reversed(more):
        model.graph.node.insert(4, node)
    onnx.save(model, tmp_path / "theirs.onnx")
    result = command("adopt", tmp_path / "theirs.onnx", *WORDS, "--data", colours, "--out", tmp_path / "out")
    assert result.returncode == 0, result.stderr


def test_a_file_that_a_later_stage_would_replace_is_not_adopted(tmp_path, colours):
    error = one_line(command("adopt", classifier(tmp_path), *WORDS, "--data", colours, "--out", tmp_path), 2)
    assert "theirs.onnx: later stages write a file of this name" in error


def test_a_file_whose_name_cannot_be_put_on_record_is_refused_at_once(tmp_path):
    file = classifier(tmp_path).rename(tmp_path / ".net.onnx")
    error = one_line(command("adopt", file, *WORDS, "--data", "nowhere", "--out", tmp_path), 2)
    assert ".net.onnx: can't be put on record: expected a printable name" in error


def test_an_adopted_file_walks_the_chain_to_a_release(tmp_path, colours):
    (tmp_path / "names.txt").write_text("red\ngreen\nblue\n")
    words = [*WORDS[:3], tmp_path / "names.txt", *WORDS[4:], "--gate", "0.1", "--title", "Their colours"]
    adopted = command("adopt", classifier(tmp_path), *words, "--data", colours, "--out", tmp_path / "out")
    assert adopted.returncode == 0, adopted.stderr
    ran = command("run", "theirs", "--out", tmp_path / "out", "--quick", "--batch", "1")
    assert ran.returncode == 0, ran.stderr
    assert "train" not in ran.stderr.split(" made:")[0] and "passed: gate 10.00%" in ran.stdout
    assert "difference to the file's own answers" in command("show", tmp_path / "out/theirs.unfolded.onnx").stdout
    states = json.loads(command("status", tmp_path / "out", "--json").stdout)
    assert {link["state"] for link in states if link["stage"]} == {"fresh"}
    shipped = command("ship", tmp_path / "out", "--out", tmp_path / "release")
    assert shipped.returncode == 0, shipped.stderr
    assert command("verify-release", tmp_path / "release/theirs-1.0.0").returncode == 0


def changed(file: Path, change) -> Path:
    model = onnx.load(file)
    change(model)
    onnx.save(model, file)
    return file


def _half(model: onnx.ModelProto) -> None:
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
            value = next(each for each in model.graph.input if each.name == tensor.name)
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16


def _second_input(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1]))
    model.graph.node.append(helper.make_node("Identity", ["more"], ["unused"]))


def _sequence(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_sequence_value_info("more", TensorProto.FLOAT, None))


def _by_the_batch(model: onnx.ModelProto) -> None:
    """Centre each channel by the batch's mean, as a BatchNorm in training mode would."""
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_param = "n"
    conv = next(node for node in model.graph.node if node.op_type == "Conv")
    conv.output[0] = "uncentred"
    model.graph.node.insert(1, helper.make_node("ReduceMean", ["uncentred"], ["m"], axes=[0, 2, 3]))
    model.graph.node.insert(2, helper.make_node("Sub", ["uncentred", "m"], ["c"]))
    numbers = next(each for each in model.graph.initializer if each.name == "s")
    numbers.CopyFrom(numpy_helper.from_array(np.array([-1, 6]), "s"))


@pytest.mark.parametrize(
    ("change", "words", "code", "expected"),
    [
        (_by_the_batch, [], 1, "an answer depends on the batch's other images; alone it differs by"),
        (_half, [], 1, "has float16 weights already"),
        (_second_input, [], 1, "has 2 inputs"),
        (_sequence, [], 1, "float32[1,3,16,16], more sequence_type)"),
        (lambda model: model.opset_import[0].__setattr__("version", 6), [], 1, "operator set 6: expected 7 or later"),
        (lambda model: None, ["--classes", "red,green"], 2, "gives 3 scores an image: expected 3 names by --classes, received 2"),
        (lambda model: None, ["--mean", "1,2"], 2, "--mean 1,2: expected one number, or 3"),
        (lambda model: None, ["--std", "x"], 2, "--std x: expected numbers"),
        (lambda model: None, ["--classes", "red"], 2, "expected two or more different names"),
        (lambda model: None, ["--classes", "names.txt"], 2, "--classes names.txt: expected two or more different names, or a text file with one per line; there is no such file"),
        (lambda model: None, ["--version", "1/2"], 2, "--version: expected letters, digits, points, dashes and underscores, received '1/2'"),
        (lambda model: None, ["--name", "../x"], 2, "--name: expected letters, digits and underscores, received '../x'"),
        (lambda model: None, ["--std", "0"], 2, "--std: expected a number >= 1e-12, received 0.0"),
        (lambda model: None, ["--gate", "99"], 2, "--gate: expected a number <= 1.0, received 99"),
        (lambda model: None, ["--data", ""], 2, "expected a value, received nothing"),
        (lambda model: None, ["--data", "nowhere"], 2, "nowhere: no such file or folder"),
    ],
)  # fmt: skip
def test_what_cannot_be_adopted_is_one_line(tmp_path, colours, change, words, code, expected):
    file = changed(classifier(tmp_path), change)
    error = one_line(command("adopt", file, *WORDS, "--data", colours, "--out", tmp_path / "out", *words), code)
    assert expected in error and not list((tmp_path / "out").glob("*"))


# Not quantised: minutes each, for what zfnet512's large weights, resnet50 and densenet121 show.
SLOW = ("light_vgg19", "light_bvlc_alexnet", "light_inception_v1", "light_inception_v2")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if "squeeze" in name else pytest.mark.exhaustive) for name in light.NAMES]
)
def test_caffe2s_networks_are_adopted_folded_and_halved(tmp_path, name):
    """Real files of operator set 9, with random weights: through to a verification, or refused by name."""
    model = light.filled(name)
    images = np.random.default_rng(0).integers(0, 256, (6, 3, 224, 224), np.uint8)
    np.savez(
        tmp_path / "set.npz",
        train_images=images,
        train_labels=np.arange(6),
        test_images=images[:4],
        test_labels=np.arange(4),
    )
    onnx.save(model, tmp_path / f"{name}.onnx")
    (tmp_path / "names.txt").write_text("\n".join(f"c{number}" for number in range(1000)))
    words = ["--name", name, "--classes", tmp_path / "names.txt", "--mean", "0.48,0.46,0.41", "--std", "0.23"]
    words += ["--gate", "0"]
    out = ["--out", tmp_path / "out"]
    adopted = command("adopt", tmp_path / f"{name}.onnx", *words, "--data", tmp_path / "set.npz", *out)
    assert adopted.returncode == 0, adopted.stderr
    data = ["--data", tmp_path / "set.npz"]
    for stage in (
        ["fold", *data],
        ["half", "--headroom", "2", *data],
        *([] if name in SLOW else [["quantize", *data]]),
        ["build", "--runtime", "tensorrt-rtx"],
    ):
        ran = command(*stage, *out)
        assert ran.returncode == 0, ran.stderr[-2000:]
    folded = manifest.read(tmp_path / f"out/{name}.onnx")
    assert folded.facts.difference < 1e-4 and "BatchNormalization" not in folded.facts.operators
    if name not in SLOW:
        quantised = manifest.read(tmp_path / f"out/{name}.int8.onnx")
        assert quantised.bytes < 0.3 * folded.bytes and sum(each.int8 for each in quantised.facts.layers) >= 5
    engine = manifest.read(tmp_path / f"out/{name}.engine").facts
    assert all("FLOAT" not in {*layer.inputs, *layer.outputs} for layer in engine.layers if layer.type != "CAST")


def test_a_quantised_file_is_refused_by_name(tmp_path):
    quantised = onnx.load(classifier_with("QuantizeLinear", tmp_path))
    with pytest.raises(CheckFailed, match="is quantised already"):
        passes.parse(quantised.SerializeToString(), "q.onnx")


def classifier_with(operator: str, folder: Path) -> Path:
    nodes = [helper.make_node(operator, ["images", "scale", "zero"], ["q"]),
             helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["logits"])]  # fmt: skip
    tensors = [numpy_helper.from_array(np.float32(0.1), "scale"), numpy_helper.from_array(np.uint8(0), "zero")]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, 4, 4]) for name in ("images", "logits")]
    made = helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
    onnx.save(
        helper.make_model(made, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), folder / "quantised.onnx"
    )
    return folder / "quantised.onnx"
