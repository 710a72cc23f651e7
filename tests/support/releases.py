"""Releases, and changes to them whose digests fit."""

from __future__ import annotations

from pathlib import Path

import msgspec

from pipeline.records import manifest
from pipeline.release import files

NAME = "mnist_cnn-1.0.0"


def rewrite(path: Path, **changes) -> None:
    """Alter a report and its record alike, as somebody would who knows how."""
    made = manifest.read(path)
    facts = msgspec.structs.replace(made.facts, **{name: each for name, each in changes.items() if name != "parents"})
    parents = changes.get("parents", made.parents)
    manifest.write(path, None, facts=facts, parents=parents, options=made.options, versions=made.versions)


def resummed(folder: Path) -> None:
    """Digests that fit whatever the files have become."""
    names = [name for name in files.names(folder) if name not in (files.SUMS, files.SIGNATURE)]
    (folder / files.SUMS).write_bytes(files.sums({name: (folder / name).read_bytes() for name in names}))
