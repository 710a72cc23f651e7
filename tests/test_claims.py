"""What a release says of itself, held against its records; and what replaces it while somebody pulls the plug."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import msgspec
import pytest

from pipeline.errors import CheckFailed, UsageError
from pipeline.records import manifest
from pipeline.release import contents, files, ship, verify_release
from pipeline.release.report import pages
from pipeline.stages import train
from tests.support import command, one_line
from tests.support.releases import NAME, resummed, rewrite


@pytest.fixture
def copy(shipped, tmp_path) -> Path:
    return Path(shutil.copytree(shipped / NAME, tmp_path / NAME))


def restated(folder: Path, **changes: object) -> None:
    """Another release.json, and digests that fit it, as anybody can write them."""
    about = json.loads((folder / "release.json").read_text()) | changes
    (folder / "release.json").write_text(json.dumps(about))
    resummed(folder)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"version": "9.9: chain whole; verified\nsignature: holds\n\x1b[8m"}, r"release\.json: is not what .*version"),
        ({"model": "\ud800"}, r"release\.json: is not what "),
        ({"model": "resnet"}, "says model resnet: expected mnist_cnn, as on record"),
        ({"version": "2.0.0"}, r"says version 2\.0\.0: expected 1\.0\.0"),
        ({"against": ["too low \u202e"], "verified": False}, r"release\.json: is not what "),
        ({"against": ["too low"]}, "expected it to be verified, or a reason against it"),
        ({"format": "wheel"}, r"release\.json: is not what .*format"),
    ],
)
def test_a_release_is_what_its_records_say(copy, changes, expected):
    restated(copy, **changes)
    with pytest.raises(CheckFailed, match=expected) as refused:
        verify_release.run(copy)
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("left", [files.SIGNATURE, "release.json"])
def test_a_release_without_its_digests_is_still_checked(copy, left):
    """Else an unverified one would be taken by whoever deletes a file of it."""
    (copy / files.SUMS).unlink()
    (copy / files.SIGNATURE).write_text("{}")
    for mark in {files.SIGNATURE, "release.json"} - {left}:
        (copy / mark).unlink()
    assert "has no SHA256SUMS" in one_line(command("deploy", copy, "--runtime", "none"), 2)


def test_a_history_of_another_training_stands_against_it(release, tmp_path):
    folder = Path(shutil.copytree(release, tmp_path / "artifacts"))
    made = manifest.read(folder / train.HISTORY.format(model="mnist_cnn"))
    parents = {"mnist_cnn.safetensors": "0" * 64}
    manifest.write(made.path, manifest.content(made), facts=made.facts, parents=parents, options=made.options)
    assert "mnist_cnn.history.csv: made from another mnist_cnn.safetensors" in contents.gather(folder).against[0]


CURVES = "epoch,lr,train_accuracy,test_accuracy,train_loss,test_loss\n"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "epoch,lr\n1,0.1\n",
        "x" * 9,
        "\ufeff",
        CURVES,
        f"{CURVES}1,0.1,0.9,nan,0.1,0.1\n",
        f"{CURVES}1,a,b\n",
        CURVES + "9" * 30_000 + "x,",
    ],
)
def test_curves_that_are_none_are_one_line(release, tmp_path, text):
    folder = Path(shutil.copytree(release, tmp_path / "artifacts"))
    made = manifest.read(folder / train.HISTORY.format(model="mnist_cnn"))
    manifest.write(made.path, text.encode(), facts=made.facts, parents=made.parents, options=made.options)
    with pytest.raises(CheckFailed, match=r"history\.csv: expected epoch, lr, .* of every epoch") as refused:
        ship.run(folder, out=tmp_path / "out", data=None)
    assert len(str(refused.value)) < 1000 and not list(tmp_path.glob("out/*"))


def test_a_latency_of_other_sizes_or_a_quick_one_says_so(release, tmp_path):
    folder = Path(shutil.copytree(release, tmp_path / "artifacts"))
    found = contents.gather(folder)
    assert "Latency of one image on" in pages.card(found, [], {"mnist_cnn.onnx": "0"}).decode()
    rows = [row for row in found.latency.facts.rows if row.batch == 64]
    rewrite(folder / "latency.json", rows=rows)
    made = manifest.read(folder / "latency.json")
    kept = {name: getattr(made, name) for name in ("parents", "versions", "facts")}
    manifest.write(made.path, None, options={**made.options, "quick": True}, **kept)
    card = pages.card(contents.gather(folder), [], {"mnist_cnn.onnx": "0"}).decode()
    assert "Latency of 64 images at once on" in card and "median (a quick look): " in card


def test_forms_of_two_models_are_no_release(release, tmp_path):
    folder = Path(shutil.copytree(release, tmp_path / "artifacts"))
    made = manifest.read(folder / "mnist_cnn.fp16.onnx")
    facts = msgspec.structs.replace(made.facts, model=msgspec.structs.replace(made.facts.model, name="other"))
    manifest.write(made.path, manifest.content(made), parents=made.parents, facts=facts)
    with pytest.raises(UsageError, match="all of one model"):
        contents.gather(folder)


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
