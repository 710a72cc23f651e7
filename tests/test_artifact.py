from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import flip

from pipeline import artifact
from pipeline.errors import CheckFailed, UsageError


def make(path: Path, content: bytes = b"weights") -> artifact.Artifact:
    return artifact.write(path, content, kind="file", options={"opset": 18}, facts={"shape": (1, 28)})


def test_what_is_written_is_read_back(tmp_path):
    parent = make(tmp_path / "parent.bin", b"other")
    made = artifact.write(tmp_path / "a.bin", b"weights", kind="file", parents=[parent], facts={"shape": (1, 28)})
    assert artifact.read(tmp_path / "a.bin") == made
    assert made.parents == {"parent.bin": parent.sha256}
    assert made.facts == {"shape": [1, 28]}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.bin", "a.bin.json", "parent.bin", "parent.bin.json"]


@pytest.mark.parametrize("name", ["a.bin", "a.bin.json"])
def test_every_altered_byte_is_noticed(tmp_path, name):
    make(tmp_path / "a.bin")
    intact = (tmp_path / name).read_bytes()
    for offset in range(len(intact)):
        flip(tmp_path / name, offset)
        with pytest.raises(CheckFailed, match=r"a\.bin"):
            artifact.read(tmp_path / "a.bin")
        (tmp_path / name).write_bytes(intact)
    artifact.read(tmp_path / "a.bin")


def test_an_altered_file_names_expected_and_received(tmp_path):
    made = make(tmp_path / "a.bin")
    flip(tmp_path / "a.bin")
    with pytest.raises(CheckFailed) as caught:
        artifact.read(tmp_path / "a.bin")
    assert made.sha256 in str(caught.value) and artifact.digest(tmp_path / "a.bin") in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"record_sha256": 1}', "[" * 100_000, '{"kind": "onnx"}', "\x00"])
def test_a_sidecar_that_is_no_record_is_refused(tmp_path, text):
    make(tmp_path / "a.bin")
    (tmp_path / "a.bin.json").write_text(text)
    with pytest.raises(CheckFailed, match="record"):
        artifact.read(tmp_path / "a.bin")


def test_a_record_with_its_own_digest_but_wrong_types_is_refused(tmp_path):
    made = make(tmp_path / "a.bin").record()
    (tmp_path / "a.bin.json").write_bytes(artifact._serialise({**made, "facts": []}))
    with pytest.raises(CheckFailed, match="record"):
        artifact.read(tmp_path / "a.bin")


def test_missing_file_and_missing_record_say_what_to_do(tmp_path):
    with pytest.raises(UsageError, match="pipeline run"):
        artifact.read(tmp_path / "a.bin")
    (tmp_path / "a.bin").write_bytes(b"weights")
    with pytest.raises(UsageError, match="copy both"):
        artifact.read(tmp_path / "a.bin")


@pytest.mark.parametrize("step", ["part", "between", "record"])
def test_a_write_that_is_cut_short_leaves_nothing_that_is_trusted(tmp_path, monkeypatch, step):
    """Killed while writing the file, between the file and its record, or while writing the record."""
    make(tmp_path / "a.bin", b"old")
    calls, replace = [], artifact.os.replace

    def dies(source, target):
        calls.append(target)
        if step == "part" or (step == "record" and len(calls) == 2):
            raise KeyboardInterrupt
        replace(source, target)
        if step == "between":
            raise KeyboardInterrupt

    monkeypatch.setattr(artifact.os, "replace", dies)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "a.bin", b"new")
    with pytest.raises(UsageError):
        artifact.read(tmp_path / "a.bin")
    assert not list(tmp_path.glob(".*.part"))


def test_records_are_json_for_people(tmp_path):
    make(tmp_path / "a.bin")
    assert json.loads((tmp_path / "a.bin.json").read_text())["options"] == {"opset": 18}
