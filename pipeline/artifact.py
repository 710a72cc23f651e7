"""The record of a file in the chain: what it is, its digest, what it was made from and how. Standard library only.

Beside every file NAME that a stage writes lies its record NAME.json. The record carries the file's sha256 and,
over everything else in it, its own: a byte altered in either is noticed by `read`. Digests show alteration by
accident or by somebody who doesn't touch the rest of the chain; against somebody who rewrites all of it, sign.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from pipeline import schema
from pipeline.errors import CheckFailed, UsageError

SUFFIX = ".json"
_FIELDS = {"kind": str, "sha256": str, "bytes": int, "parents": dict, "options": dict, "versions": dict, "facts": dict}


@dataclass(frozen=True)
class Artifact:
    """A file of the chain and what is on record about it. `path` is None if it was never written."""

    path: Path | None
    kind: str
    sha256: str
    bytes: int
    parents: dict[str, str] = field(default_factory=dict)  # file name -> sha256
    options: dict[str, Any] = field(default_factory=dict)  # those that have a say in the bytes
    versions: dict[str, str] = field(default_factory=dict)  # of what made it
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.path.name if self.path else self.kind

    def record(self) -> dict[str, Any]:
        """What goes into the sidecar: JSON types only."""
        body = asdict(self)
        del body["path"]
        return body


def versions(*packages: str) -> dict[str, str]:
    """Versions of Python and of the installed ones among these distributions."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def digest(path: Path) -> str:
    """sha256 of a file, in hex."""
    with path.open("rb") as file:
        sha = hashlib.sha256()
        while block := file.read(1 << 20):
            sha.update(block)
    return sha.hexdigest()


def sidecar(path: Path) -> Path:
    """Where the record of a file lies."""
    return path.with_name(path.name + SUFFIX)


def save(path: Path, content: bytes) -> None:
    """Write a file as a whole or not at all: what a kill leaves behind is `.NAME.part`, which the next write reuses."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _prepared((path, content)) as (part,):
        os.replace(part, path)


@contextlib.contextmanager
def _prepared(*files: tuple[Path, bytes]) -> Iterator[list[Path]]:
    """Contents on disk under other names, to be moved into place; on a full disk, nothing that was there is touched."""
    parts = [path.with_name(f".{path.name}.part") for path, _ in files]
    try:
        for part, (_, content) in zip(parts, files, strict=True):
            with part.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        yield parts
    except BaseException:
        for part in parts:
            part.unlink(missing_ok=True)
        raise


def write(
    path: Path | None,
    content: bytes,
    *,
    kind: str,
    parents: Sequence[Artifact] | Mapping[str, str] = (),
    options: Mapping[str, Any] | None = None,
    versions: Mapping[str, str] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Artifact:
    """Write `content` and its record, the record last: without one, a file isn't trusted. No path: only describe."""
    if not isinstance(parents, Mapping):
        parents = {parent.name: parent.sha256 for parent in parents}
    sha = hashlib.sha256(content).hexdigest()
    made = Artifact(path, kind, sha, len(content), dict(parents), _plain(options), dict(versions or {}), _plain(facts))
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _prepared((path, content), (sidecar(path), serialised(made))) as (part, record):
            sidecar(path).unlink(missing_ok=True)
            os.replace(part, path)
            os.replace(record, sidecar(path))
    return made


def read(path: Path) -> Artifact:
    """The artifact at `path`, after its bytes and its record were checked.

    Raises UsageError if the file or its record isn't there, CheckFailed if either was altered.
    """
    if path.is_dir():
        raise UsageError(f"{path}: is a folder: expected one file of it")
    if not path.is_file():
        raise UsageError(f"{path}: no such file or folder; `pipeline run` makes artifacts")
    if path.suffix == SUFFIX and not sidecar(path).is_file() and path.with_suffix("").is_file():
        raise UsageError(f"{path}: is a record: expected the file it is about, {path.with_suffix('').name}")
    if not sidecar(path).is_file():
        raise UsageError(
            f"{path}: its record {sidecar(path).name} is not beside it, as it is for every file made here; copy both, "
            "or make it again"
        )
    record = _parse(sidecar(path))
    _same(path, record["sha256"], digest(path))
    return Artifact(path=path, **record)


def recall(path: Path) -> Artifact:
    """What is on record about a file that may not be here itself, such as the checkpoint of a shipped `.onnx`."""
    return Artifact(path=path, **_parse(sidecar(path)))


def content(artifact: Artifact) -> bytes:
    """The artifact's bytes, checked once more, so that what is used is what was checked."""
    data = artifact.path.read_bytes()
    _same(artifact.path, artifact.sha256, hashlib.sha256(data).hexdigest())
    return data


def _same(path: Path, expected: str, received: str) -> None:
    if received != expected:
        raise CheckFailed(
            f"{path}: altered: expected sha256 {expected}, received {received}; restore the file or make it again"
        )


def claimed_kind(path: Path) -> str | None:
    """The kind that a file's record names, unchecked; None if that can't be read."""
    try:
        return json.loads(sidecar(path).read_bytes())["kind"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


def recorded(folder: Path) -> list[Path]:
    """The files in a folder that have a record beside them, whether or not they still match it."""
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder; `pipeline run --out {folder}` makes it")
    return sorted(path for path in folder.iterdir() if path.is_file() and sidecar(path).is_file())


def _plain(values: Mapping[str, Any] | None) -> dict[str, Any]:
    """In JSON types only, so that an artifact just written equals the one that is read later."""
    return json.loads(json.dumps(dict(values or {}), allow_nan=False))


def serialised(artifact: Artifact) -> bytes:
    """The bytes of an artifact's record, as they stand beside it."""
    return _serialise(artifact.record())


def _serialise(record: dict[str, Any]) -> bytes:
    body = json.dumps(record, indent=1, ensure_ascii=False)
    own = hashlib.sha256(body.encode()).hexdigest()
    return (json.dumps({**record, "record_sha256": own}, indent=1, ensure_ascii=False) + "\n").encode()


def _parse(path: Path) -> dict[str, Any]:
    """The record in a sidecar. Anything but the very bytes that `write` gave it counts as altered."""
    altered = CheckFailed(f"{path}: the record was altered or is no record; restore it or make the artifact again")
    raw = path.read_bytes()
    try:
        record = json.loads(raw)
        del record["record_sha256"]
        intact = _serialise(record) == raw
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise altered from error
    if not intact or record.keys() != _FIELDS.keys():
        raise altered
    if not all(isinstance(record[name], kind) for name, kind in _FIELDS.items()):
        raise altered
    if fact := schema.wrong(record):
        raise CheckFailed(f"{path}: {fact!r} isn't as in a record of kind {record['kind']!r}; make the artifact again")
    return record
