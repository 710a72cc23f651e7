from __future__ import annotations

import json
import re
import subprocess
import sys

import numpy as np
import onnx
import pytest
from msgspec.structs import replace
from onnx import numpy_helper

from pipeline.errors import CheckFailed, UsageError
from pipeline.records import manifest
from pipeline.stages import verify
from tests.support import command, flip, one_line, surroundings

FORMS = ["mnist_cnn.safetensors", "mnist_cnn.unfolded.onnx", "mnist_cnn.onnx", *["mnist_cnn.fp16.onnx"] * 3]
FORMS += ["mnist_cnn.int8.onnx"]


@pytest.fixture(scope="module")
def rows(chain) -> list[dict]:
    return json.loads((chain / "verification.json").read_text())["rows"]


def test_every_form_is_measured_in_every_arithmetic(rows):
    assert [row["form"] for row in rows] == FORMS
    assert len({(row["form"], row["runtime"], row["arithmetic"]) for row in rows}) == 7


def test_folded_and_onnx_answer_as_the_checkpoint_does(rows):
    for row in rows[1:3]:
        assert row["differ"] == 0 and row["largest_logit_difference"] < 1e-3


def test_float16_answers_nearly_as_the_checkpoint_does_in_true_float16_too(rows):
    assert {row["arithmetic"] for row in rows[3:6]} == {
        "one rounding an operator, float32 sums",
        "float16 sums in blocks of 64, a sample",
        "float32 on float16 weights",
    }
    for row in rows[3:6]:
        assert row["differ"] <= 3 and row["largest_logit_difference"] < 0.2


def test_figures_are_those_of_the_logits(chain, digits, rows):
    """Counted again by other means: plain ONNX Runtime, plain numpy."""
    import onnxruntime

    test = digits
    session = onnxruntime.InferenceSession(chain / "mnist_cnn.onnx", providers=["CPUExecutionProvider"])
    predictions = session.run(None, {"images": test.images[:500]})[0].argmax(1)
    assert rows[2]["correct"] == int((predictions == test.labels[:500]).sum())
    assert rows[2]["accuracy"] == rows[2]["correct"] / 500
    low, high = rows[2]["interval"]
    assert low < rows[2]["accuracy"] < high


def test_the_gate_fails_by_name_with_exit_code_1(chain, few):
    result = command("verify", chain / "mnist_cnn.onnx", "--gate", "0.9999", "--data", few)
    error = one_line(result, 1)
    assert "mnist_cnn.onnx" in error and "under the gate of 99.99%" in error and "FAILED" in result.stdout
    shown = command("verify", chain / "mnist_cnn.onnx", "--gate", "0.9999", "--data", few, "--json")
    assert json.loads(shown.stdout)["facts"]["passed"] is False and shown.returncode == 1


def test_a_single_file_needs_no_torch_and_writes_nothing(chain, few):
    before = (chain / "verification.json").read_bytes()
    code = (
        "import sys; from pipeline.cli.main import main\n"
        "try: main()\n"
        "finally: print(sorted({'torch', 'torchvision'} & set(sys.modules)), file=sys.stderr)"
    )
    line = [sys.executable, "-c", code, "verify", chain / "mnist_cnn.onnx", "--gate", "0.8", "--data", few]
    result = subprocess.run(list(map(str, line)), capture_output=True, text=True, env=surroundings())
    assert result.returncode == 0 and result.stderr.splitlines()[-1] == "[]", result.stderr
    assert "compared with the network's recorded answers" in " ".join(result.stdout.split())
    assert (chain / "verification.json").read_bytes() == before


def test_the_recorded_answers_are_the_checkpoints(chain, few):
    recorded = manifest.read(chain / "mnist_cnn.onnx").facts.reference
    (row,) = json.loads(command("verify", chain / "mnist_cnn.onnx", "--json", "--data", few, "--gate", "0").stdout)[
        "facts"
    ]["rows"]
    assert row["wrong"] == recorded.wrong and row["differ"] == 0


def test_a_flipped_byte_is_noticed(folder, few):
    flip(folder / "mnist_cnn.onnx", 5000)
    assert "mnist_cnn.onnx: altered: expected sha256" in one_line(command("verify", folder, "--data", few), 1)
    result = command("status", folder)
    assert "altered" in result.stdout and "mnist_cnn.onnx" in one_line(result, 1)


def altered(form: manifest.Artifact, out, change) -> manifest.Artifact:
    """A form whose weights were changed, with a record that says so honestly."""
    model = onnx.load(form.path)
    for tensor in model.graph.initializer:
        value = numpy_helper.to_array(tensor)
        if value.dtype == np.float32:
            tensor.CopyFrom(numpy_helper.from_array(change(value).astype(np.float32), tensor.name))
    return manifest.write(out / form.name, model.SerializeToString(), facts=form.facts)


def test_a_form_that_got_worse_fails_even_above_the_gate(chain, few, tmp_path):
    rng = np.random.default_rng(0)
    form = manifest.read(chain / "mnist_cnn.onnx")
    noisy = altered(form, tmp_path, lambda value: value * (1 + rng.normal(0, 0.3, value.shape)))
    (failure, *_) = verify.run(noisy, data=str(few), gate=0.1).facts.failures
    assert re.search(r"mnist_cnn\.onnx .*is worse than the network", failure)


def test_logits_that_are_no_numbers_fail(chain, few, tmp_path):
    form = manifest.read(chain / "mnist_cnn.onnx")
    (failure, *_) = verify.run(
        altered(form, tmp_path, lambda value: value * np.nan), data=str(few), gate=0.0
    ).facts.failures
    assert re.search(r"not finite", failure)


def test_another_set_is_named_and_compared_with_the_first_form(chain, digits, tmp_path):
    test = digits
    np.savez(tmp_path / "own.npz", images=test.images[600:900], labels=test.labels[600:900])
    forms = [manifest.read(chain / name) for name in ("mnist_cnn.onnx", "mnist_cnn.fp16.onnx")]
    made = verify.run(*forms, out=tmp_path, data=str(tmp_path / "own.npz"), gate=0.7)
    assert made.facts.data.name == "own.npz" and made.facts.data.images == 300
    assert made.facts.compared_with == "mnist_cnn.onnx"
    assert made.facts.rows[0].largest_logit_difference == 0
    assert manifest.read(tmp_path / "verification.json").parents.keys() >= {"test-images", "mnist_cnn.onnx"}


@pytest.mark.parametrize(("n", "remarked"), [(20, True), (99, True), (100, False)])
def test_how_little_few_images_tell_is_remarked(chain, digits, tmp_path, capsys, n, remarked):
    np.savez(tmp_path / "own.npz", images=digits.images[600 : 600 + n], labels=digits.labels[600 : 600 + n])
    made = verify.run(manifest.read(chain / "mnist_cnn.onnx"), data=str(tmp_path / "own.npz"), gate=0.5)
    verify.show(made)
    said, (low, high) = capsys.readouterr().err, made.facts.rows[0].interval
    assert (f"own.npz: {n} images tell little: the 95 % interval of " in said) is remarked
    assert (f"{low:.2%} – {high:.2%}, {100 * (high - low):.0f} percentage points wide" in said) is remarked


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((5, 32, 32), np.uint8), np.zeros(5, int), r"\[5, 1, 32, 32\].*expected uint8 \[n, 1, 28, 28\]"),
        (np.zeros((5, 28, 28), np.uint8), np.full(5, 10), "labels go from 10 to 10: expected 0 to 9"),
    ],
)
def test_a_set_that_does_not_fit_the_model_is_refused(chain, tmp_path, images, labels, message):
    np.savez(tmp_path / "own.npz", images=images, labels=labels)
    with pytest.raises(UsageError, match=message):
        verify.run(manifest.read(chain / "mnist_cnn.onnx"), data=str(tmp_path / "own.npz"), gate=None)


def test_what_cannot_be_verified_is_wrong_use(chain, few, tmp_path):
    assert "nothing to verify" in one_line(command("verify", tmp_path, "--data", few), 2)
    assert "no such file" in one_line(command("verify", "nothing.onnx", "--data", few), 2)
    assert "no runtime runs" in one_line(command("verify", chain / "latency.json", "--data", few), 2)
    (tmp_path / "bare.onnx").write_bytes((chain / "mnist_cnn.onnx").read_bytes())
    assert "copy that file, too" in one_line(command("verify", tmp_path / "bare.onnx", "--data", few), 2)


@pytest.mark.parametrize("gate", ["nan", "99.4", "-1"])
def test_a_gate_is_a_share(chain, few, gate):
    assert "--gate: expected a share from 0 to 1" in one_line(
        command("verify", chain / "mnist_cnn.onnx", "--data", few, "--gate", gate), 2
    )


def test_forms_of_one_name_or_of_two_trainings_are_not_mixed_up(chain, few, tmp_path):
    form = manifest.read(chain / "mnist_cnn.onnx")
    with pytest.raises(UsageError, match="two files of one name"):
        verify.run(form, form, data=str(few), gate=None)
    known = form.facts.reference
    reference = replace(known, n=known.n + 1, correct=known.correct + 1)
    other = manifest.write(
        tmp_path / "other.onnx", form.path.read_bytes(), facts=replace(form.facts, reference=reference)
    )
    with pytest.raises(UsageError, match="comes from a different training run"):
        verify.run(form, other, data=str(few), gate=None)


def test_a_form_worse_than_its_parent_fails(chain, few, tmp_path, monkeypatch):
    """The reference is set aside, so that only the comparison with the parent is left to notice."""
    rng = np.random.default_rng(0)
    form = manifest.read(chain / "mnist_cnn.onnx")
    noisy = altered(form, tmp_path, lambda value: value * (1 + rng.normal(0, 0.3, value.shape)))
    child = manifest.write(tmp_path / "child.onnx", noisy.path.read_bytes(), parents=[form], facts=form.facts)
    monkeypatch.setattr(verify.statistics, "mcnemar", lambda worse, better: 0.01 if worse > better else 1.0)
    monkeypatch.setattr(verify, "_reference", lambda answers, _: verify._Reference("itself", answers[-1].predictions))
    (failure, *_) = verify.run(form, child, data=str(few), gate=0.1).facts.failures
    assert re.search(r"child\.onnx .*is worse than mnist_cnn\.onnx, which it was made from", failure)


@pytest.mark.parametrize("name", ["mnist_cnn.onnx", "mnist_cnn.fp16.onnx"])
def test_a_file_that_is_no_onnx_or_has_weights_outside_is_refused(chain, few, tmp_path, name):
    facts = manifest.read(chain / name).facts
    bad = manifest.write(tmp_path / "bad.onnx", b"not ONNX", facts=facts)
    with pytest.raises(CheckFailed, match=r"bad\.onnx"):
        verify.run(bad, data=str(few), gate=None)
    model = onnx.load(chain / "mnist_cnn.onnx")
    model.graph.initializer[0].external_data.add(key="location", value="../../etc/passwd")
    outside = manifest.write(tmp_path / "outside.onnx", model.SerializeToString(), facts=facts)
    with pytest.raises(CheckFailed, match="weights outside the file"):
        verify.run(outside, data=str(few), gate=None)
