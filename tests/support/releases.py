"""Releases, and changes to them whose digests fit."""

from __future__ import annotations

from pathlib import Path

import msgspec

from pipeline.records import kinds, manifest
from pipeline.release import files

NAME = "mnist_cnn-1.0.0"


def rewrite(path: Path, content: bytes | None = None, *, parents=None, options=None, **facts: object) -> None:
    """Alter an artifact, the facts of one or its record, with digests that fit."""
    artifact = manifest.read(path)
    if content is None and artifact.kind not in kinds.REPORTS:
        content = manifest.content(artifact)
    manifest.write(
        path,
        content,
        facts=msgspec.structs.replace(artifact.facts, **facts),
        parents=parents or artifact.parents,
        options=artifact.options | (options or {}),
        versions=artifact.versions,
    )


def resum(folder: Path) -> None:
    """Fit SHA256SUMS to whatever the files have become."""
    (folder / files.SUMS).write_bytes(files.sums(files.digests(folder)))


def snapshot(folder: Path) -> dict[Path, bytes]:
    """Every file's content."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
