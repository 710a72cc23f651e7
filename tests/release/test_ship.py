from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import msgspec
import pytest

from pipeline.data import imagesets
from pipeline.errors import CheckFailed, UsageError
from pipeline.records import disk, manifest
from pipeline.records.reports import LabelledImages
from pipeline.release import files, provenance, ship
from pipeline.training import models
from tests.support import DIGITS, command, flip, one_line
from tests.support.releases import NAME, rewrite

MINE = LabelledImages(name="mine", images=3, digests={"a": "b" * 64})


@pytest.fixture
def spoilt(release, tmp_path) -> Path:
    """The committed files, for a test to spoil."""
    return Path(shutil.copytree(release, tmp_path / "artifacts"))


def forget_alone(folder: Path, name: str) -> None:
    """Remove a record, and leave its file."""
    content = (folder / name).read_bytes()
    forget(folder, name)
    (folder / name).write_bytes(content)


def forget(folder: Path, *names: str) -> None:
    """Remove records, and files if they are there, as if they had never been made."""
    records = json.loads((folder / manifest.FILE).read_text())
    for name in names:
        records.pop(name)
        (folder / name).unlink(missing_ok=True)
    (folder / manifest.FILE).write_bytes(manifest._serialised(records))


def test_the_same_artifacts_give_the_same_archive(release, shipped, tmp_path):
    result = command("ship", release, "--out", tmp_path, "--data", "mnist")
    assert result.returncode == 0, result.stderr
    again = tmp_path / f"{NAME}.tar.gz"
    assert again.read_bytes() == (shipped / f"{NAME}.tar.gz").read_bytes()
    assert disk.digest(again) in result.stdout and "not signed; verified" in result.stdout
    assert manifest.read(again).parents["mnist_cnn.onnx"] == manifest.read(release / "mnist_cnn.onnx").sha256


def test_it_has_what_a_receiver_needs_and_the_sums_are_sha256sums(shipped, release):
    folder = shipped / NAME
    names = set(files.names(folder))
    assert names >= {"mnist_cnn.onnx", "mnist_cnn.fp16.onnx", "verification.json", "latency.json", "test-set.npz"}
    assert names >= {"MODEL_CARD.md", "README.md", "report.html", "provenance.json", "LICENSE", "SHA256SUMS"}
    for name in ("mnist_cnn.onnx", "mnist_cnn.fp16.onnx"):
        assert (folder / name).read_bytes() == (release / name).read_bytes()
        assert manifest.read(folder / name).facts.model.version == "1.0.0"
    done = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("OK") == len(names) - 1


def test_the_test_set_in_it_is_known_as_mnists(shipped, digits):
    packed = imagesets.load(str(shipped / NAME / "test-set.npz"), "test", (1, 28, 28), DIGITS)
    assert packed.name == "MNIST test set" and packed.digests == digits.digests


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda at: (at / "verification.json").unlink(), "verification.json: missing"),
        (lambda at: (at / "latency.json").unlink(), "latency.json: missing"),
        (lambda at: rewrite(at / "verification.json", passed=False, failures=["too low"]), "failed: too low"),
        (lambda at: rewrite(at / "verification.json", gate=0.9), "gate of 90.00%: expected the model's 99.40%"),
        (lambda at: rewrite(at / "verification.json", parents={"mnist_cnn.onnx": "0" * 64}), "received " + "0" * 64),
        (
            lambda at: rewrite(at / "verification.json", data=MINE),
            "made with mine, 3 images: expected MNIST test set, 10000 images",
        ),
        (lambda at: forget(at, "mnist_cnn.safetensors"), "expected the record of what it was made from"),
        (lambda at: claim(at), "right when shipped: expected [9999]"),
    ],
)  # fmt: skip
def test_what_is_not_proven_is_refused(spoilt, tmp_path, spoil, expected):
    spoil(spoilt)
    with pytest.raises(CheckFailed, match="--unverified") as refused:
        ship.run(spoilt, out=tmp_path / "out", data=None)
    assert expected in str(refused.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda at: (at / "verification.json").unlink(), "verification.json: missing"),
        (lambda at: rewrite(at / "verification.json", passed=False, failures=["too low"]), "failed: too low"),
        (lambda at: claim(at), "right when shipped: expected [9999]"),
    ],
)
def test_unverified_ships_it_and_says_so_everywhere(spoilt, tmp_path, spoil, expected):
    spoil(spoilt)
    made = ship.run(spoilt, out=tmp_path / "out", data=None, unverified=True)
    folder = tmp_path / "out" / f"{NAME}-unverified"
    assert made.path.name == f"{NAME}-unverified.tar.gz" and not made.facts.about.verified
    assert expected in json.loads((folder / "release.json").read_text())["against"][0]
    assert "UNVERIFIED" in (folder / "MODEL_CARD.md").read_text()
    assert 'id="verdict">UNVERIFIED<' in (folder / "report.html").read_text()
    statement = json.loads((folder / "provenance.json").read_text())
    assert statement["predicate"]["buildDefinition"]["externalParameters"]["verified"] is False
    assert "is marked as unverified" in one_line(command("verify-release", folder), 1)
    assert "UNVERIFIED" in command("verify-release", folder, "--allow-unverified").stdout


def claim(at: Path) -> None:
    """A verification that says more than the file can do; its record, too."""
    facts = manifest.read(at / "verification.json").facts
    rows = [msgspec.structs.replace(row, correct=9999, accuracy=0.9999) for row in facts.rows]
    rewrite(at / "verification.json", rows=rows)


@pytest.mark.parametrize("name", ["mnist_cnn.onnx", "verification.json", "chain.json", "latency.json"])
def test_what_is_altered_never_ships(spoilt, tmp_path, name):
    flip(spoilt / name, 200)
    for more in ([], ["--unverified"]):
        line = ["ship", spoilt, "--out", tmp_path / "out", *more]
        assert "altered" in one_line(command(*line), 1)
    assert not (tmp_path / "out").exists()


def test_a_model_of_another_training_does_not_ship_with_this_ones_proof(chain, spoilt, tmp_path):
    for name in ("mnist_cnn.onnx", "mnist_cnn.fp16.onnx"):
        made = manifest.read(chain / name)
        facts = {"parents": made.parents, "facts": made.facts, "options": made.options, "versions": made.versions}
        manifest.write(spoilt / name, made.path.read_bytes(), **facts)
    with pytest.raises(CheckFailed, match=r"other bytes of mnist_cnn\.onnx: expected sha256 .* received"):
        ship.run(spoilt, out=tmp_path / "out", data=None)


def test_something_else_in_its_place_is_left_alone(release, tmp_path):
    mine = tmp_path / NAME / "thesis.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    with pytest.raises(UsageError, match="is no release"):
        ship.run(release, out=tmp_path, data=None)
    assert mine.read_text() == "mine" and len(list(tmp_path.iterdir())) == 1


def test_wrong_use_is_one_line(tmp_path, release):
    (tmp_path / "key.pem").write_text("no key")
    assert "--sign-key" in one_line(command("ship", release, "--out", tmp_path, "--sign-key", tmp_path / "key.pem"), 2)
    assert "expected an ONNX file to ship" in one_line(command("ship", "tests", "--out", tmp_path), 2)
    assert "no such folder" in one_line(command("ship", "nowhere", "--out", tmp_path), 2)


def test_the_provenance_is_an_in_toto_statement_that_reaches_the_pixels(shipped, digits):
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
    assert len(results) == 4 and all(value == 0.995 for value in results.values())
    assert all(each.dataset_type == "ylecun/mnist" and each.dataset_split == "test" for each in card.data.eval_results)
    assert (shipped / NAME / "MODEL_CARD.md").read_text() == (shipped / NAME / "README.md").read_text()


def test_the_layer_table_on_record_is_the_networks(release):
    recorded = manifest.recall(release / "mnist_cnn.safetensors").facts.layers
    model = models.get("mnist_cnn")
    assert recorded == models.layers(model.build(), model.input)
    assert len(recorded) == 24 and sum(row.parameters for row in recorded) == 9596


def test_tools_find_what_the_files_are(shipped):
    """What Netron shows: the properties and the descriptions of model, input and output."""
    import onnx

    for name, parent in (("mnist_cnn.onnx", "mnist_cnn.unfolded.onnx"), ("mnist_cnn.fp16.onnx", "mnist_cnn.onnx")):
        model = onnx.load(shipped / NAME / name)
        properties = {each.key: each.value for each in model.metadata_props}
        assert properties["classes"] == "0,1,2,3,4,5,6,7,8,9" and properties["licence"] == "MIT"
        assert properties["accuracy"].startswith("0.9950") and "raw uint8" in model.graph.input[0].doc_string
        assert properties["parent_sha256"] == manifest.recall(shipped / NAME / parent).sha256
        assert model.doc_string and "logits" in model.graph.output[0].doc_string


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda at: (at / NAME / "notes.txt").write_text("mine"), "notes.txt, which no release put there"),
        (lambda at: (at / NAME / ".git").mkdir(), ".git, which no release put there"),
        (lambda at: (at / NAME / "model.sig").write_text("{}"), "is signed, this one would not be"),
        (lambda at: forget_alone(at, f"{NAME}.tar.gz"), "was not made by `pipeline ship`"),
    ],
)
def test_what_shipping_again_would_lose_is_left_alone(release, shipped, tmp_path, spoil, expected):
    out = Path(shutil.copytree(shipped, tmp_path / "out"))
    spoil(out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match=expected):
        ship.run(release, out=out, data=None)
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_a_release_without_one_of_the_proven_files_is_refused(spoilt, tmp_path):
    forget(spoilt, "mnist_cnn.fp16.onnx")
    with pytest.raises(CheckFailed, match=r"mnist_cnn\.fp16\.onnx: missing"):
        ship.run(spoilt, out=tmp_path / "out", data=None)
