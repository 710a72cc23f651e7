from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import msgspec
import pytest

from pipeline.data import imagesets
from pipeline.errors import CheckFailed, UsageError
from pipeline.records import disk, manifest
from pipeline.records.reports import LabelledImages
from pipeline.release import contents, files, provenance, ship
from pipeline.release.report import pages
from pipeline.training import models
from tests.support import DIGITS, command, flip, one_line
from tests.support.releases import NAME, rewrite, snapshot

MINE = LabelledImages(name="mine", images=3, digests={"a": "b" * 64})
HISTORY = "mnist_cnn.history.csv"


@pytest.fixture
def spoilt(release, tmp_path) -> Path:
    """The committed files, for a test to spoil."""
    return Path(shutil.copytree(release, tmp_path / "artifacts"))


def forget(folder: Path, name: str) -> None:
    """Remove a record."""
    records = json.loads((folder / manifest.FILE).read_text())
    del records[name]
    (folder / manifest.FILE).write_bytes(manifest._serialised(records))


def overstate(folder: Path) -> None:
    """Make the verification, and its record, claim more than the files can do."""
    facts = manifest.read(folder / "verification.json").facts
    rows = [msgspec.structs.replace(row, correct=9999, accuracy=0.9999) for row in facts.rows]
    rewrite(folder / "verification.json", rows=rows)


def another_kind(folder: Path) -> None:
    manifest.write(folder / "verification.json", None, facts=manifest.read(folder / "latency.json").facts)


def test_the_same_artifacts_give_the_same_archive(release, shipped, tmp_path):
    result = command("ship", release, "--out", tmp_path, "--data", "mnist")
    assert result.returncode == 0, result.stderr
    again = tmp_path / f"{NAME}.tar.gz"
    assert again.read_bytes() == (shipped / f"{NAME}.tar.gz").read_bytes()
    assert disk.digest(again) in result.stdout and "not signed; verified" in result.stdout
    assert manifest.read(again).parents["mnist_cnn.onnx"] == manifest.read(release / "mnist_cnn.onnx").sha256


def test_it_has_what_a_receiver_needs_and_the_sums_are_sha256sums(shipped, release, digits):
    folder = shipped / NAME
    names = set(files.names(folder))
    assert names >= {"mnist_cnn.onnx", "mnist_cnn.fp16.onnx", "verification.json", "latency.json", "test-set.npz"}
    assert names >= {"MODEL_CARD.md", "README.md", "report.html", "provenance.json", "LICENSE", "SHA256SUMS"}
    for name in ("mnist_cnn.onnx", "mnist_cnn.fp16.onnx"):
        assert (folder / name).read_bytes() == (release / name).read_bytes()
        assert manifest.read(folder / name).facts.model.version == "1.0.0"
    done = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("OK") == len(names) - 1
    packed = imagesets.load(str(folder / "test-set.npz"), "test", (1, 28, 28), DIGITS)
    assert packed.name == "MNIST test set" and packed.digests == digits.digests


UNPROVEN = {
    "no verification": (lambda at: (at / "verification.json").unlink(), "verification.json: missing"),
    "no latency": (lambda at: (at / "latency.json").unlink(), "latency.json: missing"),
    "another report": (another_kind, "verification.json: missing"),
    "failed": (lambda at: rewrite(at / "verification.json", passed=False, failures=["too low"]), "failed: too low"),
    "gate": (lambda at: rewrite(at / "verification.json", gate=0.9), "gate of 90.00%: expected the model's 99.40%"),
    "other parents": (
        lambda at: rewrite(at / "verification.json", parents={"mnist_cnn.onnx": "0" * 64}), "received " + "0" * 64
    ),
    "other bytes": (
        lambda at: rewrite(at / "mnist_cnn.fp16.onnx", b"x"), "other bytes of mnist_cnn.fp16.onnx: expected sha256 "
    ),
    "other images": (
        lambda at: rewrite(at / "verification.json", data=MINE),
        "made with mine, 3 images: expected MNIST test set, 10000 images",
    ),
    "no checkpoint": (lambda at: forget(at, "mnist_cnn.safetensors"), "expected the record of what it was made from"),
    "a proven file less": (lambda at: (at / "mnist_cnn.fp16.onnx").unlink(), "mnist_cnn.fp16.onnx: missing"),
    "other history": (
        lambda at: rewrite(at / HISTORY, parents={"mnist_cnn.safetensors": "0" * 64}),
        f"{HISTORY}: made from another mnist_cnn.safetensors",
    ),
    "overstated": (overstate, "right when shipped: expected [9999]"),
}  # fmt: skip


@pytest.mark.parametrize(("spoil", "expected"), UNPROVEN.values(), ids=UNPROVEN)
def test_what_is_not_proven_is_refused(spoilt, tmp_path, spoil, expected):
    spoil(spoilt)
    with pytest.raises(CheckFailed, match="--unverified") as refused:
        ship.run(spoilt, out=tmp_path / "out")
    assert expected in str(refused.value)
    assert not (tmp_path / "out").exists()


LONG = [pytest.param(case, marks=pytest.mark.exhaustive) for case in ("no verification", "overstated")]


@pytest.mark.parametrize("case", ["failed", *LONG])
def test_unverified_ships_it_and_says_so_everywhere(spoilt, tmp_path, case):
    spoil, expected = UNPROVEN[case]
    spoil(spoilt)
    made = ship.run(spoilt, out=tmp_path / "out", unverified=True)
    folder = tmp_path / "out" / f"{NAME}-unverified"
    assert made.path.name == f"{NAME}-unverified.tar.gz" and not made.facts.about.verified
    assert expected in json.loads((folder / "release.json").read_text())["against"][0]
    assert "UNVERIFIED" in (folder / "MODEL_CARD.md").read_text()
    assert 'id="verdict">UNVERIFIED<' in (folder / "report.html").read_text()
    statement = json.loads((folder / "provenance.json").read_text())
    assert statement["predicate"]["buildDefinition"]["externalParameters"]["verified"] is False
    assert "is marked as unverified" in one_line(command("verify-release", folder), 1)
    assert "UNVERIFIED" in command("verify-release", folder, "--allow-unverified").stdout


@pytest.mark.parametrize("name", ["mnist_cnn.onnx", "verification.json", "chain.json", "latency.json"])
def test_what_is_altered_never_ships(spoilt, tmp_path, name):
    flip(spoilt / name, 200)
    for more in ([], ["--unverified"]):
        assert "altered" in one_line(command("ship", spoilt, "--out", tmp_path / "out", *more), 1)
    assert not (tmp_path / "out").exists()


CURVES = "epoch,lr,train_accuracy,test_accuracy,train_loss,test_loss\n"


@pytest.mark.parametrize(
    "text",
    ["", "epoch,lr\n1,0.1\n", "x" * 9, "\ufeff", CURVES, f"{CURVES}1,0.1,0.9,nan,0.1,0.1\n", f"{CURVES}1,a,b\n",
     CURVES + "9" * 30_000 + "x,"],
)  # fmt: skip
def test_curves_that_are_none_are_one_line(spoilt, tmp_path, text):
    rewrite(spoilt / HISTORY, text.encode())
    with pytest.raises(CheckFailed, match=r"history\.csv: expected epoch, lr, .* of every epoch") as refused:
        ship.run(spoilt, out=tmp_path / "out")
    assert len(str(refused.value)) < 1000 and not list(tmp_path.glob("out/*"))


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda at: (at / NAME / "SHA256SUMS").unlink(), "is not a release"),
        (lambda at: (at / NAME / "notes.txt").write_text("mine"), "has notes.txt, which a new release would remove"),
        (lambda at: (at / NAME / ".git").mkdir(), r"has \.git, which a new release would remove"),
        (lambda at: (at / NAME / "model.sig").write_text("{}"), "is signed, and the new release is not"),
        (lambda at: forget(at, f"{NAME}.tar.gz"), "was not made by `pipeline ship`"),
    ],
)
def test_what_shipping_again_would_lose_is_left_alone(release, shipped, tmp_path, spoil, expected):
    out = Path(shutil.copytree(shipped, tmp_path / "out"))
    spoil(out)
    before = snapshot(out)
    with pytest.raises(UsageError, match=expected):
        ship.run(release, out=out)
    assert snapshot(out) == before


def test_an_exchange_that_fails_leaves_the_earlier_release(tmp_path, monkeypatch):
    folder, move = tmp_path / NAME, os.replace
    with files.staged(folder, {"a": b"earlier"}):
        pass
    before = (folder / "SHA256SUMS").read_bytes()

    def failing(source, target):
        if Path(source).name == NAME and Path(target) == folder:
            raise OSError(5, "Input/output error")
        move(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(OSError, match="Input/output"), files.staged(folder, {"a": b"later"}):
        pass
    assert (folder / "SHA256SUMS").read_bytes() == before and [path.name for path in tmp_path.iterdir()] == [NAME]


def test_an_exchange_that_was_killed_leaves_the_earlier_release(tmp_path):
    """Between two moves the earlier one lies aside: it comes back, and keeps its rights."""
    folder = tmp_path / NAME
    with files.staged(folder, {"a": b"earlier"}) as part:
        (part / files.SIGNATURE).write_text("{}")
    (tmp_path / f".{NAME}.part").mkdir()
    folder.rename(tmp_path / f".{NAME}.part" / "earlier")
    with pytest.raises(UsageError, match="is signed"):
        files.expect_free(folder, tmp_path / "a.tar.gz", signed=False)
    assert (folder / "a").read_bytes() == b"earlier"


def test_wrong_use_is_one_line(spoilt, tmp_path):
    def refused(folder: object, *options: object) -> str:
        return one_line(command("ship", folder, "--out", tmp_path, *options), 2)

    (tmp_path / "key.pem").write_text("no key")
    assert "--sign-key" in refused(spoilt, "--sign-key", tmp_path / "key.pem")
    assert "expected an ONNX file to ship" in refused("tests")
    assert "no such folder" in refused("nowhere")
    card = manifest.read(spoilt / "mnist_cnn.fp16.onnx").facts.model
    rewrite(spoilt / "mnist_cnn.fp16.onnx", model=msgspec.structs.replace(card, name="other"))
    (spoilt / "verification.json").unlink()
    assert "all of one model" in refused(spoilt)


def test_of_two_models_in_a_folder_the_verified_one_is_shipped(chain, tmp_path):
    shutil.copytree(chain, tmp_path / "chain")
    form = manifest.read(chain / "mnist_cnn.onnx")
    other = msgspec.structs.replace(form.facts, model=msgspec.structs.replace(form.facts.model, name="other"))
    manifest.write(tmp_path / "chain/other.onnx", manifest.content(form), facts=other, parents=form.parents)
    found = contents.gather(tmp_path / "chain")
    assert {each.name for each in found.forms} == {f"mnist_cnn{end}" for end in (".onnx", ".fp16.onnx", ".int8.onnx")}
    assert found.model.name == "mnist_cnn" and "other.onnx" not in {each.name for each in found.line}


def test_a_manifest_that_cannot_be_read_is_told_not_a_missing_file(spoilt, tmp_path):
    (spoilt / manifest.FILE).write_text("[")
    assert f"{spoilt / manifest.FILE}: altered" in one_line(command("ship", spoilt, "--out", tmp_path), 1)
    assert f"{spoilt / manifest.FILE}: altered" in one_line(command("status", spoilt), 1)


def test_the_provenance_is_an_in_toto_statement_that_reaches_the_pixels(shipped):
    from google.protobuf import json_format
    from in_toto_attestation.predicates.provenance.v1.provenance_pb2 import Provenance
    from in_toto_attestation.v1.statement import Statement

    statement = json.loads((shipped / NAME / "provenance.json").read_text())
    checked = json_format.ParseDict(statement, Statement([], "", {}).pb)
    assert checked.type == provenance.STATEMENT and checked.predicate_type == provenance.PREDICATE
    predicate = json_format.ParseDict(statement["predicate"], Provenance())
    inputs = {each.name: each.digest["sha256"] for each in predicate.build_definition.resolved_dependencies}
    assert inputs.items() >= imagesets.load("mnist", "train", (1, 28, 28), DIGITS).digests.items()
    assert len(inputs["code"]) == 64 and predicate.run_details.builder.id.startswith("urn:")
    for subject in statement["subject"]:
        assert disk.digest(shipped / NAME / subject["name"]) == subject["digest"]["sha256"]
    steps = statement["predicate"]["buildDefinition"]["internalParameters"]
    assert steps["mnist_cnn.safetensors"]["options"]["lr"] == 0.04
    assert steps["mnist_cnn.fp16.onnx"]["from"] == {"mnist_cnn.onnx": steps["mnist_cnn.onnx"]["sha256"]}


def test_the_card_is_one_that_a_model_hub_reads(shipped):
    from huggingface_hub import ModelCard

    card = ModelCard.load(shipped / NAME / "README.md")
    assert card.data.license == "mit" and card.data.library_name == "onnx"
    results = {each.metric_name: each.metric_value for each in card.data.eval_results}
    proven = manifest.read(shipped / NAME / "verification.json").facts
    assert list(results.values()) == [row.accuracy for row in proven.rows] and min(results.values()) >= 0.994
    (proof,) = (each for each in proven.certified if each.execution == "A1")
    assert f"{proof.at_least:.2%} or more for every summation order".replace("%", " %") in card.text
    assert all(each.dataset_type == "ylecun/mnist" and each.dataset_split == "test" for each in card.data.eval_results)
    assert (shipped / NAME / "MODEL_CARD.md").read_text() == (shipped / NAME / "README.md").read_text()


def test_a_certificate_that_the_verification_does_not_have_is_told(chain, tmp_path, capsys):
    shutil.copytree(chain, tmp_path / "chain")
    ship._remark_unused(contents.gather(tmp_path / "chain"))
    assert "verify" not in capsys.readouterr().err
    rewrite(tmp_path / "chain/verification.json", options={"certificates": {}}, certified=[])
    ship._remark_unused(contents.gather(tmp_path / "chain"))
    assert "mnist_cnn.certificate.json: not in verification.json; run `pipeline verify`" in capsys.readouterr().err


def test_a_latency_of_other_sizes_or_a_quick_one_says_so(spoilt):
    artifacts = contents.gather(spoilt)
    assert "Latency of one image on" in pages.card(artifacts).decode()
    rows = [row for row in artifacts.latency.facts.rows if row.batch == 64]
    rewrite(spoilt / "latency.json", rows=rows, options={"quick": True})
    card = pages.card(contents.gather(spoilt)).decode()
    assert "Latency of 64 images at once on" in card and "median (a quick look): " in card


def test_the_layer_table_on_record_is_the_networks(release):
    recorded = manifest.recall(release / "mnist_cnn.safetensors").facts.layers
    model = models.get("mnist_cnn")
    assert recorded == models.layers(model.build(), model.input)
    assert len(recorded) == 24 and sum(row.parameters for row in recorded) == 9596


def test_tools_find_what_the_files_are(shipped):
    """What Netron shows: the properties and the descriptions of model, input and output."""
    import onnx

    correct = manifest.recall(shipped / NAME / "mnist_cnn.safetensors").facts.reference.correct
    for name, parent in (("mnist_cnn.onnx", "mnist_cnn.unfolded.onnx"), ("mnist_cnn.fp16.onnx", "mnist_cnn.onnx")):
        model = onnx.load(shipped / NAME / name)
        properties = {each.key: each.value for each in model.metadata_props}
        assert properties["classes"] == "0,1,2,3,4,5,6,7,8,9" and properties["licence"] == "MIT"
        assert properties["accuracy"] == f"{correct / 10_000:.4f} of 10000 images, MNIST test set"
        assert "raw uint8" in model.graph.input[0].doc_string
        assert properties["parent_sha256"] == manifest.recall(shipped / NAME / parent).sha256
        assert model.doc_string and "logits" in model.graph.output[0].doc_string
