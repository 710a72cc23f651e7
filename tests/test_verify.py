from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import onnx
import pytest
from conftest import command, flip, one_line
from onnx import numpy_helper

from pipeline import artifact, dataset
from pipeline.errors import CheckFailed, UsageError
from pipeline.stages import card, verify

FORMS = ["mnist_cnn.safetensors", "mnist_cnn.folded.safetensors", "mnist_cnn.onnx"] + ["mnist_cnn.fp16.onnx"] * 3


@pytest.fixture(scope="module")
def rows(chain) -> list[dict]:
    return json.loads((chain / "verification.json").read_text())["rows"]


def test_every_form_is_measured_in_every_arithmetic(rows):
    assert [row["form"] for row in rows] == FORMS
    assert len({(row["form"], row["runtime"], row["arithmetic"]) for row in rows}) == 6


def test_folded_and_onnx_answer_as_the_checkpoint_does(rows):
    for row in rows[1:3]:
        assert row["differ"] == 0 and row["largest_logit_difference"] < 1e-3


def test_float16_answers_nearly_as_the_checkpoint_does_in_true_float16_too(rows):
    assert {row["arithmetic"] for row in rows[3:]} == {
        "float32 sums, as tensor cores",
        "float16 sums, worst case",
        "float32 on float16 weights",
    }
    for row in rows[3:]:
        assert row["differ"] <= 5 and row["largest_logit_difference"] < 0.2


def test_figures_are_those_of_the_logits(chain, data, rows):
    """Counted again by other means: plain ONNX Runtime, plain numpy."""
    import onnxruntime

    test = dataset.test(data)
    session = onnxruntime.InferenceSession(chain / "mnist_cnn.onnx", providers=["CPUExecutionProvider"])
    predictions = session.run(None, {"images": test.images})[0].argmax(1)
    assert rows[2]["correct"] == int((predictions == test.labels).sum())
    assert rows[2]["accuracy"] == rows[2]["correct"] / 10_000
    low, high = rows[2]["interval"]
    assert low < rows[2]["accuracy"] < high


def test_the_gate_fails_by_name_with_exit_code_1(chain, data):
    result = command("verify", chain / "mnist_cnn.onnx", "--gate", "0.9999", "--data", data)
    error = one_line(result, 1)
    assert "mnist_cnn.onnx" in error and "under the gate of 99.99%" in error and "FAILED" in result.stdout
    shown = command("verify", chain / "mnist_cnn.onnx", "--gate", "0.9999", "--data", data, "--json")
    assert json.loads(shown.stdout)["facts"]["passed"] is False and shown.returncode == 1


def test_a_single_file_needs_no_torch_and_writes_nothing(chain, data):
    before = (chain / "verification.json").read_bytes()
    code = (
        "import sys; from pipeline.cli import main\n"
        "try: main()\n"
        "finally: print(sorted({'torch', 'torchvision', 'models.mnist_cnn'} & set(sys.modules)), file=sys.stderr)"
    )
    line = [sys.executable, "-c", code, "verify", chain / "mnist_cnn.onnx", "--gate", "0.9", "--data", data]
    result = subprocess.run(list(map(str, line)), capture_output=True, text=True)
    assert result.returncode == 0 and result.stderr.splitlines()[-1] == "[]", result.stderr
    assert "compared with the checkpoint's recorded answers" in " ".join(result.stdout.split())
    assert (chain / "verification.json").read_bytes() == before


def test_the_recorded_answers_are_the_checkpoints(chain, data):
    recorded = artifact.read(chain / "mnist_cnn.onnx").facts["reference"]
    (row,) = json.loads(command("verify", chain / "mnist_cnn.onnx", "--json", "--data", data, "--gate", "0").stdout)[
        "facts"
    ]["rows"]
    assert row["wrong"] == recorded["wrong"] and row["differ"] == 0


def test_a_flipped_byte_is_noticed(folder, data):
    flip(folder / "mnist_cnn.onnx", 5000)
    assert "mnist_cnn.onnx: altered: expected sha256" in one_line(command("verify", folder, "--data", data), 1)
    result = command("status", folder)
    assert "altered" in result.stdout and "mnist_cnn.onnx" in one_line(result, 1)


def altered(form: artifact.Artifact, out, change) -> artifact.Artifact:
    """A form whose weights were changed, with a record that says so honestly."""
    model = onnx.load(form.path)
    for tensor in model.graph.initializer:
        value = numpy_helper.to_array(tensor)
        if value.dtype == np.float32:
            tensor.CopyFrom(numpy_helper.from_array(change(value).astype(np.float32), tensor.name))
    return artifact.write(out / form.name, model.SerializeToString(), kind="onnx", parents=[], facts=card(form))


def test_a_form_that_got_worse_fails_even_above_the_gate(chain, data, tmp_path):
    rng = np.random.default_rng(0)
    form = artifact.read(chain / "mnist_cnn.onnx")
    noisy = altered(form, tmp_path, lambda value: value * (1 + rng.normal(0, 0.3, value.shape)))
    with pytest.raises(CheckFailed, match=r"mnist_cnn\.onnx .*is worse than the checkpoint"):
        verify.run(noisy, data=data, gate=0.1)


def test_logits_that_are_no_numbers_fail(chain, data, tmp_path):
    form = artifact.read(chain / "mnist_cnn.onnx")
    with pytest.raises(CheckFailed, match="not finite"):
        verify.run(altered(form, tmp_path, lambda value: value * np.nan), data=data, gate=0.0)


def test_another_set_is_named_and_compared_with_the_first_form(chain, data, tmp_path):
    test = dataset.test(data)
    np.savez(tmp_path / "own.npz", images=test.images[:300], labels=test.labels[:300])
    forms = [artifact.read(chain / name) for name in ("mnist_cnn.onnx", "mnist_cnn.fp16.onnx")]
    made = verify.run(*forms, out=tmp_path, data=tmp_path / "own.npz", gate=0.9)
    assert made.facts["data"]["name"] == "own.npz" and made.facts["data"]["images"] == 300
    assert made.facts["compared_with"] == "mnist_cnn.onnx"
    assert made.facts["rows"][0]["largest_logit_difference"] == 0
    assert artifact.read(tmp_path / "verification.json").parents.keys() >= {"own.npz", "mnist_cnn.onnx"}


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((5, 32, 32), np.uint8), np.zeros(5, int), r"\[1, 32, 32\].*expects \[1, 28, 28\]"),
        (np.zeros((5, 28, 28), np.uint8), np.full(5, 10), "labels go from 10 to 10: expected 0 to 9"),
    ],
)
def test_a_set_that_does_not_fit_the_model_is_refused(chain, tmp_path, images, labels, message):
    np.savez(tmp_path / "own.npz", images=images, labels=labels)
    with pytest.raises(UsageError, match=message):
        verify.run(artifact.read(chain / "mnist_cnn.onnx"), data=tmp_path / "own.npz", gate=None)


def test_what_cannot_be_verified_is_wrong_use(chain, data, tmp_path):
    assert "nothing to verify" in one_line(command("verify", tmp_path, "--data", data), 2)
    assert "no such file" in one_line(command("verify", "nothing.onnx", "--data", data), 2)
    assert "no runtime runs" in one_line(command("verify", chain / "latency.json", "--data", data), 2)
    (tmp_path / "bare.onnx").write_bytes((chain / "mnist_cnn.onnx").read_bytes())
    assert "copy both" in one_line(command("verify", tmp_path / "bare.onnx", "--data", data), 2)


@pytest.mark.parametrize("gate", ["nan", "99.4", "-1"])
def test_a_gate_is_a_share(chain, data, gate):
    assert "--gate: expected a share from 0 to 1" in one_line(
        command("verify", chain / "mnist_cnn.onnx", "--data", data, "--gate", gate), 2
    )


def test_forms_of_one_name_or_of_two_trainings_are_not_mixed_up(chain, data, tmp_path):
    form = artifact.read(chain / "mnist_cnn.onnx")
    with pytest.raises(UsageError, match="two files of one name"):
        verify.run(form, form, data=data, gate=None)
    facts = {**card(form), "reference": {**form.facts["reference"], "correct": 1}}
    other = artifact.write(tmp_path / "other.onnx", form.path.read_bytes(), kind="onnx", facts=facts)
    with pytest.raises(UsageError, match="comes from another training"):
        verify.run(form, other, data=data, gate=None)


def test_a_form_worse_than_its_parent_fails(chain, data, tmp_path, monkeypatch):
    """The reference is set aside, so that only the comparison with the parent is left to notice."""
    rng = np.random.default_rng(0)
    form = artifact.read(chain / "mnist_cnn.onnx")
    noisy = altered(form, tmp_path, lambda value: value * (1 + rng.normal(0, 0.3, value.shape)))
    child = artifact.write(
        tmp_path / "child.onnx", noisy.path.read_bytes(), kind="onnx", parents=[form], facts=card(form)
    )
    monkeypatch.setattr(verify.statistics, "mcnemar", lambda worse, better: 0.01 if worse > better else 1.0)
    monkeypatch.setitem(
        verify.run.__globals__,
        "_reference",
        lambda answers, forms, split: {"name": "itself", "predictions": answers[-1][1].argmax(1), "logits": None},
    )
    with pytest.raises(CheckFailed, match=r"child\.onnx .*is worse than mnist_cnn\.onnx, which it was made from"):
        verify.run(form, child, data=data, gate=0.1)


@pytest.mark.parametrize("kind", ["onnx", "fp16"])
def test_a_file_that_is_no_onnx_or_has_weights_outside_is_refused(chain, data, tmp_path, kind):
    facts = card(artifact.read(chain / "mnist_cnn.onnx"))
    bad = artifact.write(tmp_path / "bad.onnx", b"not ONNX", kind=kind, facts=facts)
    with pytest.raises(CheckFailed, match=r"bad\.onnx"):
        verify.run(bad, data=data, gate=None)
    model = onnx.load(chain / "mnist_cnn.onnx")
    model.graph.initializer[0].external_data.add(key="location", value="../../etc/passwd")
    outside = artifact.write(tmp_path / "outside.onnx", model.SerializeToString(), kind=kind, facts=facts)
    with pytest.raises(CheckFailed, match="lie in another file"):
        verify.run(outside, data=data, gate=None)
