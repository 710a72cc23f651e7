"""An in-toto statement of a release: what was made, from which pixels and code, how, and by whom.

The form is SLSA's: https://slsa.dev/spec/v1.0/provenance in https://github.com/in-toto/attestation. It has no time of
its own, so the same release has the same bytes. Without a signature it is a claim like any other.
"""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pipeline
from pipeline.records import disk, manifest
from pipeline.release.contents import Contents

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:edge-pipeline:ship:v1"
SOURCES = ("pipeline", "models")


def statement(contents: Contents, files: Mapping[str, bytes], builder: str, verified: bool) -> dict[str, Any]:
    """The statement about `files` (their sha256), traced by the records in `contents`. JSON types."""
    line = [*contents.ancestors, *contents.forms, *contents.reports]
    made = {each.name for each in line}
    pixels = {name: sha for each in line for name, sha in each.parents.items() if name not in made}
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in sorted(files.items())}
    return {
        "_type": STATEMENT,
        "subject": [{"name": name, "digest": {"sha256": sha}} for name, sha in digests.items()],
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {"model": contents.model.name, "verified": verified},
                "internalParameters": {each.name: step(each) for each in line},
                "resolvedDependencies": [
                    *({"name": name, "digest": {"sha256": sha}} for name, sha in sorted(pixels.items())),
                    code(),
                ],
            },
            "runDetails": {
                "builder": {"id": builder, "version": {"edge-pipeline": pipeline.__version__}},
            },
        },
    }


def step(made: manifest.Artifact) -> dict[str, Any]:
    """How one file was made."""
    return {
        "kind": made.kind,
        "sha256": made.sha256,
        "from": made.parents,
        "options": made.options,
        "versions": made.versions,
        "code": made.code,
    }


def code() -> dict[str, Any]:
    """The code that ships: a digest over its Python files, and the revision where it lies in a git checkout."""
    root = Path(pipeline.__file__).parents[1]
    sources = sorted(path for name in SOURCES for path in (root / name).rglob("*.py"))
    lines = "".join(f"{disk.digest(path)}  {path.relative_to(root).as_posix()}\n" for path in sources)
    found: dict[str, Any] = {"name": "code", "digest": {"sha256": hashlib.sha256(lines.encode()).hexdigest()}}
    if revision := _git(root, "rev-parse", "HEAD"):
        found["digest"]["gitCommit"] = revision
        found["annotations"] = {"altered": bool(_git(root, "status", "--porcelain", "--", *SOURCES))}
    return found


def _git(root: Path, *arguments: str) -> str | None:
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
