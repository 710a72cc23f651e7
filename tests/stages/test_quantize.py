from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import onnx
import pytest

from pipeline.errors import CheckFailed, UsageError
from pipeline.graph import calibration, edit, quantization
from pipeline.records import manifest
from pipeline.stages import build, half, quantize
from pipeline.tensorrt import bindings as library
from pipeline.tensorrt import builder
from tests.support import SMALL, command, one_line

ENGINES = pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="needs tensorrt-rtx")


@pytest.fixture(scope="module")
def folded(chain) -> manifest.Artifact:
    return manifest.read(chain / "mnist_cnn.onnx")


@pytest.fixture(scope="module")
def arrays(few) -> dict[str, np.ndarray]:
    with np.load(few) as file:
        kept = {name: file[name][:1000] for name in file}
    return kept


def saved(path: Path, arrays: dict[str, np.ndarray], **changes: np.ndarray) -> str:
    np.savez(path, **{**arrays, **changes})
    return str(path)


def with_outlier(folded: manifest.Artifact, out: Path, factor: float = 2000) -> manifest.Artifact:
    """The same function, with one channel of the second convolution's output many times larger than the others."""
    model, values = onnx.load(folded.path), edit.weights(onnx.load(folded.path))
    first, second = [node for node in model.graph.node if node.op_type == "Conv"][1:3]
    weight, bias, after = (values[name].copy() for name in (*first.input[1:3], second.input[1]))
    weight[0], bias[0], after[:, 0] = weight[0] * factor, bias[0] * factor, after[:, 0] / factor
    edit.store(model, {first.input[1]: weight, first.input[2]: bias, second.input[1]: after})
    content = model.SerializeToString()
    return manifest.write(out / folded.name, content, facts=folded.facts, parents=folded.parents)


def test_the_chain_has_it_small_with_every_choice_on_record(chain, folded):
    made = manifest.read(chain / "mnist_cnn.int8.onnx")
    facts = made.facts
    assert made.bytes <= 20_000 and facts.weights == 9424 and facts.failed == []
    plain, corrected = list(facts.methods)[:3], list(facts.methods)[3]
    assert facts.method in facts.methods and plain == list(quantization.METHODS)
    assert corrected.removesuffix("-bias-corrected") in plain
    assert facts.methods[facts.method] == max(facts.methods.values())
    assert len(facts.layers) == 7 and facts.held_out == 1500 and facts.calibrated_on == 1500 and facts.p >= 0.05
    assert made.parents == {folded.name: folded.sha256} and facts.difference < 0.2
    row = next(row for row in manifest.read(chain / "verification.json").facts.rows if row.kind == "int8")
    assert row.parent == folded.name and "int8" in row.arithmetic
    assert "int8" in {row.kind for row in manifest.read(chain / "latency.json").facts.rows}


def test_the_same_training_images_give_the_same_bytes_whatever_the_test_images(folded, arrays, tmp_path):
    inverted = {"test_images": 255 - arrays["test_images"], "test_labels": arrays["test_labels"][::-1]}
    sets = [saved(tmp_path / "a.npz", arrays), saved(tmp_path / "b.npz", arrays, **inverted)]
    sets.append(saved(tmp_path / "c.npz", arrays, train_images=arrays["train_images"] // 2))
    made = [quantize.run(folded, out=tmp_path / Path(each).stem, data=each) for each in sets]
    assert made[0].sha256 == made[1].sha256 != made[2].sha256
    assert made[0].facts.difference != made[1].facts.difference
    chosen = ("method", "methods", "layers", "correct", "p")
    assert all(getattr(made[0].facts, name) == getattr(made[1].facts, name) for name in chosen)


def test_a_layer_that_int8_spoils_is_kept_out_and_named(folded, arrays, tmp_path, capsys):
    hard = with_outlier(folded, tmp_path)
    made = quantize.run(hard, out=tmp_path, data=saved(tmp_path / "few.npz", arrays))
    layers = {each.name: each for each in made.facts.layers}
    dearest = max(layers.values(), key=lambda each: each.cost)
    assert not dearest.int8 and dearest.name == list(layers)[2] and made.facts.failed == []
    assert sum(each.int8 for each in layers.values()) >= 4 and made.facts.p >= 0.05
    quantize.show(made)
    assert f"{dearest.name}" in capsys.readouterr().out


def test_a_weight_that_float16_cannot_hold_is_found_before_the_costly_calibration(folded, few, tmp_path, monkeypatch):
    monkeypatch.delattr(calibration, "ranges")
    with pytest.raises(CheckFailed, match="in float16 it would have weights over 65504"):
        half.run(with_outlier(folded, tmp_path, 1e9), out=tmp_path, data=str(few))


def test_what_cannot_pass_is_a_value_that_says_by_how_much(chain, arrays, tmp_path, monkeypatch):
    monkeypatch.setattr(quantization, "limit", lambda counts, largest, method: 1e-3)
    data = saved(tmp_path / "few.npz", arrays)
    error = one_line(command("quantize", chain / "mnist_cnn.onnx", "--data", data, "--out", tmp_path), 1)
    assert "more errors" in error and "McNemar p" in error and "costs most" in error
    made = manifest.read(tmp_path / "mnist_cnn.int8.onnx")
    assert made.facts.failed and [each.int8 for each in made.facts.layers].count(True) == 1


def test_too_few_training_images_and_nothing_to_quantise_are_refused(folded, arrays, tmp_path):
    one = {name: arrays[name][:1] for name in ("train_images", "train_labels")}
    with pytest.raises(UsageError, match="1 training image: expected 2 or more"):
        quantize.run(folded, out=tmp_path, data=saved(tmp_path / "one.npz", arrays, **one))
    model = onnx.load(folded.path)
    for node in model.graph.node:
        node.name = ""
        if node.op_type == "Conv":  # weights that are computed
            node.input[1] = f"{node.input[1]}_computed"
    for name in [node.input[1].removesuffix("_computed") for node in model.graph.node if node.op_type == "Conv"]:
        model.graph.node.insert(0, onnx.helper.make_node("Neg", [name], [f"{name}_computed"]))
    strange = manifest.write(tmp_path / folded.name, model.SerializeToString(), facts=folded.facts)
    with pytest.raises(CheckFailed, match="expected a convolution or matrix product with constant weights"):
        quantize.run(strange, out=tmp_path, data=saved(tmp_path / "few.npz", arrays))


@ENGINES
def test_tensorrt_builds_it_with_its_convolutions_in_int8(chain, tmp_path):
    made = chain / "mnist_cnn.int8.onnx"
    result = command("build", made, "--runtime", "tensorrt-rtx", "--target", "sm86", "--out", tmp_path)
    assert result.returncode == 0 and "7 of 7 products compute in INT8" in result.stdout, result.stderr
    layers = manifest.read(tmp_path / "mnist_cnn.int8.engine").facts.layers
    products = [layer for layer in layers if layer.type == "CONVOLUTION"]
    assert [layer.inputs[:2] for layer in products] == [["INT8", "INT8"]] * 7
    assert {out for layer in products for out in layer.outputs} == {"HALF"}


@ENGINES
def test_a_convolution_that_is_not_in_int8_is_noticed(folded, chain, tmp_path):
    limits = dict.fromkeys((node.input[0] for node in quantization.layers(onnx.load(folded.path)).values()), 255.0)
    first = next(iter(quantization.layers(onnx.load(folded.path))))
    content = quantization.quantize(onnx.load(folded.path), limits, [first]).SerializeToString()
    with pytest.raises(CheckFailed, match="expected 7 convolutions or matrix products in INT8, received 6"):
        builder.build("try.onnx", content, "INT8", library.load("tensorrt-rtx"), builder.Plan(targets=("sm86",)), 7)
    assert build.ELEMENTS["int8"] == "INT8"


def test_a_run_can_go_without_it(folder, few, tmp_path):
    assert "Invalid value for '--without'" in one_line(command("run", "--without", "fold", "--out", tmp_path), 2)
    for name in ("mnist_cnn.int8.onnx", "verification.json"):
        (folder / name).unlink()
    result = command("run", "--data", few, "--out", folder, *SMALL, "--without", "quantize", "--without", "bench")
    assert result.returncode == 0 and "quantize left out: --without" in result.stderr, result.stderr
    assert not (folder / "mnist_cnn.int8.onnx").exists()
    kinds = {row.kind for row in manifest.read(folder / "verification.json").facts.rows}
    assert {"half", "folded"} <= kinds and "int8" not in kinds
