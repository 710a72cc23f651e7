"""Records: what is written is read back, what was altered is noticed, what was cut short is not trusted."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import msgspec
import pytest

from pipeline.errors import CheckFailed, UsageError
from pipeline.records import code, disk, kinds, manifest
from pipeline.records.forms import Reference
from pipeline.records.reports import History
from tests.support import ROOT, command, flip

FACTS = History()


def make(path: Path, content: bytes = b"weights") -> manifest.Artifact:
    return manifest.write(path, content, facts=FACTS, options={"opset": 18})


def test_what_is_written_is_read_back(tmp_path):
    parent = make(tmp_path / "parent.bin", b"other")
    written = manifest.write(tmp_path / "a.bin", b"weights", facts=FACTS, parents=[parent], code="0" * 64)
    assert manifest.read(tmp_path / "a.bin") == written
    assert written.parents == {"parent.bin": parent.sha256} and written.kind == "history"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.bin", "chain.json", "parent.bin"]
    assert manifest.names(tmp_path) == ["a.bin", "parent.bin"]


@pytest.mark.parametrize("name", ["a.bin", "chain.json"])
def test_every_altered_byte_is_noticed(tmp_path, name):
    make(tmp_path / "a.bin")
    intact = (tmp_path / name).read_bytes()
    for offset in range(len(intact)):
        flip(tmp_path / name, offset)
        with pytest.raises((CheckFailed, UsageError), match=r"a\.bin"):
            manifest.read(tmp_path / "a.bin")
        (tmp_path / name).write_bytes(intact)
    manifest.read(tmp_path / "a.bin")


def test_an_altered_file_names_expected_and_received(tmp_path):
    written = make(tmp_path / "a.bin")
    flip(tmp_path / "a.bin")
    with pytest.raises(CheckFailed) as caught:
        manifest.read(tmp_path / "a.bin")
    assert written.sha256 in str(caught.value) and disk.digest(tmp_path / "a.bin") in str(caught.value)


def rewritten(folder: Path, name: str, **changes: object) -> None:
    """Change a record as an editor would: the rest of the manifest stays well-formed."""
    records = json.loads((folder / "chain.json").read_text())
    records[name] |= changes
    (folder / "chain.json").write_bytes(manifest._serialised(records))


def test_an_altered_record_spoils_its_own_artifact_alone(tmp_path):
    make(tmp_path / "a.bin")
    make(tmp_path / "b.bin")
    rewritten(tmp_path, "a.bin", bytes=8)
    with pytest.raises(CheckFailed, match=r"the record of a\.bin was altered"):
        manifest.read(tmp_path / "a.bin")
    assert manifest.read(tmp_path / "b.bin")
    make(tmp_path / "a.bin")
    assert manifest.read(tmp_path / "a.bin") and manifest.read(tmp_path / "b.bin")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"a.bin": 1}', '{"a.bin": {}}', "[" * 100_000, "\x00"])
def test_a_manifest_that_is_none_is_refused_and_can_be_made_again(tmp_path, text):
    make(tmp_path / "a.bin")
    (tmp_path / "chain.json").write_text(text)
    with pytest.raises((CheckFailed, UsageError), match=r"a\.bin"):
        manifest.read(tmp_path / "a.bin")
    assert make(tmp_path / "a.bin") == manifest.read(tmp_path / "a.bin")


@pytest.mark.parametrize(
    "changes",
    [{"kind": "no such kind"}, {"kind": []}, {"sha256": None}, {"bytes": -1}, {"sha256": "x"},
     {"parents": {"../a": "0" * 64}}, {"more": 1}, {"options": {"x": "\x1b[8m"}}, {"facts": {"more": 1}}, {"facts": 3},
     {"code": "x"}],
)  # fmt: skip
def test_a_record_with_a_digest_that_fits_but_without_sense_is_refused(tmp_path, changes):
    """As somebody writes it who knows how digests are made."""
    make(tmp_path / "a.bin")
    records = json.loads((tmp_path / "chain.json").read_text())
    record = {key: value for key, value in records["a.bin"].items() if key != "record_sha256"} | changes
    records["a.bin"] = {**record, "record_sha256": manifest._own("a.bin", record)}
    (tmp_path / "chain.json").write_bytes(manifest._serialised(records))
    with pytest.raises(CheckFailed, match=r"a\.bin"):
        manifest.read(tmp_path / "a.bin")


def test_answers_that_do_not_add_up_are_refused():
    for correct, wrong in ((9, {}), (9, {"10": 3})):
        with pytest.raises(msgspec.ValidationError, match="expected 10 answers"):
            msgspec.convert({"name": "x", "digests": {}, "n": 10, "correct": correct, "wrong": wrong}, Reference)


def test_missing_file_and_missing_record_say_what_to_do(tmp_path):
    with pytest.raises(UsageError, match="pipeline run"):
        manifest.read(tmp_path / "a.bin")
    (tmp_path / "a.bin").write_bytes(b"weights")
    with pytest.raises(UsageError, match="copy that file, too, or make it again"):
        manifest.read(tmp_path / "a.bin")


@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_write_that_is_cut_short_leaves_nothing_that_is_trusted(tmp_path, monkeypatch, after):
    """Killed before the old record goes, between file and record, or before the new record is there."""
    make(tmp_path / "a.bin", b"old")
    calls, replace = [], disk.os.replace

    def dies(source, target):
        if len(calls) == after:
            raise KeyboardInterrupt
        calls.append(target)
        replace(source, target)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(disk.os, "replace", dies)
        make(tmp_path / "a.bin", b"new")
    if after:
        with pytest.raises(UsageError):
            manifest.read(tmp_path / "a.bin")
    else:
        assert manifest.content(manifest.read(tmp_path / "a.bin")) == b"old"
    assert not list(tmp_path.glob(".*.part*"))
    assert make(tmp_path / "a.bin", b"new") == manifest.read(tmp_path / "a.bin")


def test_a_report_is_its_own_record(chain):
    """Its facts stand in its file alone, typed when it is read."""
    report = manifest.read(chain / "verification.json")
    record = json.loads((chain / "chain.json").read_text())["verification.json"]
    assert "facts" not in record and report.facts.rows[0].form == "mnist_cnn.safetensors"
    assert json.loads((chain / "verification.json").read_text()) == kinds.plain(report.facts)


def test_a_codes_digest_is_over_all_that_the_module_imports(tmp_path, monkeypatch):
    package = shutil.copytree(ROOT / "pipeline", tmp_path / "pipeline")
    monkeypatch.setattr(code, "PACKAGE", package)

    def digests() -> list[str]:
        code._imports.cache_clear()
        code._source.cache_clear()
        return [code.digest(f"pipeline.stages.{name}") for name in ("fold", "half", "verify")]

    before = digests()
    for name, changed in (("graph/float16.py", [False, True, True]), ("graph/edit.py", [True, True, True]),
                          ("records/disk.py", [False] * 3), ("stages/verify.py", [False, False, True])):  # fmt: skip
        text = (package / name).read_text()
        (package / name).write_text(text.replace("\n", "\r\n"))
        assert digests() == before, "line endings don't count"
        (package / name).write_text(text + "\nMORE = 1\n")
        assert [new != old for new, old in zip(digests(), before, strict=True)] == changed, name
        (package / name).write_text(text)
    code._imports.cache_clear()
    code._source.cache_clear()


def test_a_clone_with_other_line_endings_is_not_altered(tmp_path):
    """Git for Windows turns \\n into \\r\\n unless .gitattributes says otherwise."""
    subprocess.run(["git", "clone", "-q", "-c", "core.autocrlf=true", ROOT, tmp_path / "clone"], check=True)
    assert b"\r\n" not in (tmp_path / "clone/artifacts/chain.json").read_bytes()
    result = command("status", tmp_path / "clone/artifacts", "--json")
    assert result.returncode == 0 and "altered" not in result.stdout
