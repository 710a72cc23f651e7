"""The manifest of a folder, `chain.json`: of every artifact what it is, its digest, what it was made from and how.

A record carries the sha256 of its file and, over everything else in it, its own; the manifest is written in one way
only. So `read` notices a byte altered in either. Digests show alteration by accident or by somebody who doesn't touch
the rest of the chain; against somebody who rewrites all of it, sign.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec

from pipeline import console
from pipeline.errors import CheckFailed, UsageError, reason
from pipeline.records import disk, kinds
from pipeline.records.facts import Facts

FILE = "chain.json"
AGAIN = "restore it or make the artifact again"


@dataclass(frozen=True)
class Artifact:
    """A file of the chain and what is on record about it. `path` is None if it was never written."""

    path: Path | None
    kind: str
    sha256: str
    bytes: int
    facts: Any  # of the type in `kinds.KINDS`; None of a report whose file wasn't read
    parents: dict[str, str] = field(default_factory=dict)  # file name -> sha256
    options: dict[str, Any] = field(default_factory=dict)  # those that have a say in the bytes
    versions: dict[str, str] = field(default_factory=dict)  # of the libraries that made it
    code: str = ""  # digest of the code that made it

    @property
    def name(self) -> str:
        return self.path.name if self.path else self.kind

    def record(self) -> dict[str, Any]:
        """Everything on record, facts included, as JSON types."""
        body = {name: value for name, value in vars(self).items() if name not in ("path", "facts")}
        return {**body, "facts": kinds.plain(self.facts)}


def versions(*packages: str) -> dict[str, str]:
    """Versions of Python and of the installed ones among these distributions."""
    installed = {"python": platform.python_version()}
    for package in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            installed[package] = metadata.version(package)
    return installed


def write(
    path: Path | None,
    content: bytes | None,
    *,
    facts: Facts,
    parents: Iterable[Artifact] | Mapping[str, str] = (),
    options: Mapping[str, Any] | None = None,
    versions: Mapping[str, str] | None = None,
    code: str = "",
) -> Artifact:
    """Write a file, then its record: without one, a file isn't trusted. A report has no `content` but its facts.

    Without a path, only describe the artifact. Raises UsageError if something in it can't be put on record, such as a
    file name with control characters.
    """
    if not isinstance(parents, Mapping):
        parents = {parent.name: parent.sha256 for parent in parents}
    kind, values = kinds.kind(facts), kinds.plain(facts)
    try:
        values = kinds.plain(kinds.facts(kind, values))
        if content is None:
            content = (_text(values) + "\n").encode(errors="backslashreplace")  # a picture's name may be no text
        record = {
            "kind": kind,
            "sha256": hashlib.sha256(content).hexdigest(),
            "bytes": len(content),
            "parents": dict(parents),
            "options": json.loads(_text(options or {})),
            "versions": dict(versions or {}),
            "code": code,
        } | ({} if kind in kinds.REPORTS else {"facts": values})
        artifact = _artifact(path, record, values)
    except msgspec.ValidationError as error:
        raise UsageError(f"{path or kind}: can't be put on record: {error}") from error
    if path is not None:
        with disk.held(path.parent):
            records, intact = _load(path.parent)
            if not intact:
                console.say(f"{path.parent / FILE}: altered; records that can't be read are dropped")
            # Between the first two, a kill leaves the file without a record: not trusted, and not called altered.
            without = [(path.parent / FILE, _serialised(records))] if records.pop(path.name, None) else []
            records[path.name] = {**record, "record_sha256": _own(path.name, record)}
            disk.save_all(*without, (path, content), (path.parent / FILE, _serialised(records)))
    return artifact


def read(path: Path) -> Artifact:
    """The artifact at `path`, after its bytes and its record were checked.

    Raises UsageError if the file or its record isn't there, CheckFailed if either was altered.
    """
    if path.is_dir():
        raise UsageError(f"{path}: is a folder: expected one file of it")
    if not path.is_file():
        raise UsageError(f"{path}: no such file or folder; `pipeline run` makes artifacts")
    if path.name == FILE:
        raise UsageError(f"{path}: holds the records of the files beside it: expected one of those")
    record = _record(path)
    if record.get("kind") in kinds.REPORTS:
        content = path.read_bytes()
        _expect(path, record.get("sha256"), hashlib.sha256(content).hexdigest())
        return _checked(path, record, content)
    _expect(path, record.get("sha256"), disk.digest(path))
    return _checked(path, record)


def recall(path: Path) -> Artifact:
    """What is on record about a file that may not be here itself, such as the checkpoint of a shipped `.onnx`.

    A report's facts are in its file: they are None.
    """
    return _checked(path, _record(path))


def content(artifact: Artifact) -> bytes:
    """The artifact's bytes, checked once more, so that what is used is what was checked."""
    if artifact.path is None:
        raise UsageError(f"{artifact.name}: expected an artifact with a file")
    data = artifact.path.read_bytes()
    _expect(artifact.path, artifact.sha256, hashlib.sha256(data).hexdigest())
    return data


def names(folder: Path) -> list[str]:
    """The names that have a record in a folder's manifest, sorted, whether or not their files are there."""
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder; `pipeline run --out {folder}` makes it")
    return sorted(name for name in _load(folder)[0] if kinds.is_file_name(name))


def is_intact(folder: Path) -> bool:
    """Tell whether a folder's manifest has the very form that `write` gives it, or isn't there."""
    return _load(folder)[1]


def recorded(folder: Path) -> list[Path]:
    """The files in a folder that have a record, whether or not they still match it."""
    return [folder / name for name in names(folder) if (folder / name).is_file()]


def claimed_kind(path: Path) -> str | None:
    """The kind that a file's record names, unchecked; None if it has none."""
    record = _load(path.parent)[0].get(path.name)
    kind = record.get("kind") if isinstance(record, dict) else None
    return kind if isinstance(kind, str) else None


def packed(artifacts: Iterable[Artifact]) -> bytes:
    """A manifest of these artifacts, as it would lie beside them."""
    records = {}
    for each in artifacts:
        record = each.record()
        if each.kind in kinds.REPORTS:
            del record["facts"]
        records[each.name] = {**record, "record_sha256": _own(each.name, record)}
    return _serialised(records)


def _load(folder: Path) -> tuple[dict[str, Any], bool]:
    """A manifest's records by name, unchecked, and whether it has the very form that `write` gives it."""
    try:
        raw = (folder / FILE).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return {}, True
    try:
        records = json.loads(raw)
        return (records, _serialised(records) == raw) if isinstance(records, dict) else ({}, False)
    except (ValueError, TypeError, RecursionError):
        return {}, False


def _record(path: Path) -> dict[str, Any]:
    """A file's record, without its own digest, which was checked."""
    manifest = path.parent / FILE
    records, intact = _load(path.parent)
    if not intact:
        raise CheckFailed(f"{manifest}: altered, and with it the record of {path.name}; {AGAIN}")
    if path.name not in records:
        raise UsageError(
            f"{path}: has no record in {manifest}; copy that file, too, or make it again; "
            "`pipeline adopt` takes an ONNX file from elsewhere"
        )
    record = records[path.name]
    if not isinstance(record, dict) or record.pop("record_sha256", None) != _own(path.name, record):
        raise CheckFailed(f"{manifest}: the record of {path.name} was altered; {AGAIN}")
    return record


def _checked(path: Path, record: dict[str, Any], report: bytes | None = None) -> Artifact:
    """The artifact of a record whose digest holds. CheckFailed if something isn't as its kind must have it."""
    try:
        return _artifact(path, record, json.loads(report) if report is not None else record.get("facts"))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        where = path if report is not None else f"{path.parent / FILE}: the record of {path.name}"
        raise CheckFailed(f"{where}: isn't valid for its kind: {reason(error)}; make the artifact again") from error


def _artifact(path: Path | None, record: dict[str, Any], values: Any) -> Artifact:
    """Raises msgspec.ValidationError where a record or facts aren't as their kind's."""
    if path is not None and not kinds.is_file_name(path.name):
        raise msgspec.ValidationError(f"Expected a plain file name, got {path.name!r}")
    body = kinds.plain(msgspec.convert(record, kinds.Record))
    body.pop("facts", None)
    if body["kind"] in kinds.OPTIONS:
        msgspec.convert(body["options"], kinds.OPTIONS[body["kind"]])
    known = None if values is None and body["kind"] in kinds.REPORTS else kinds.facts(body["kind"], values)
    return Artifact(path, facts=known, **body)


def _expect(path: Path, expected: str | None, received: str) -> None:
    if received != expected:
        raise CheckFailed(
            f"{path}: altered: expected sha256 {expected}, received {received}; restore the file or make it again"
        )


def _text(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)


def _own(name: str, record: Mapping[str, Any]) -> str:
    """A record's own digest; the file's name is part of it."""
    return hashlib.sha256(_text({"name": name, **record}).encode()).hexdigest()


def _serialised(records: Mapping[str, Any]) -> bytes:
    return (_text(dict(sorted(records.items()))) + "\n").encode()
