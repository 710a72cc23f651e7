"""An in-toto statement of a release: from which pixels and code its files were made, how, and by whom.

The form is SLSA's: https://slsa.dev/spec/v1.0/provenance in https://github.com/in-toto/attestation. It has no time of
its own, so the same release has the same bytes. Without a signature it proves nothing.
"""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pipeline
from pipeline.records import disk
from pipeline.records.manifest import Artifact
from pipeline.release import contents
from pipeline.release.contents import Contents

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:edge-pipeline:ship:v1"
SOURCES = ("pipeline", "models")


def statement(release: Contents, files: Mapping[str, bytes], builder: str) -> dict[str, Any]:
    """The statement about these files, with every step on record, as JSON types."""
    line = [*release.line, *release.reports]
    pixels = sorted(contents.sources(line).items())
    return {
        "_type": STATEMENT,
        "subject": [_resource(name, hashlib.sha256(files[name]).hexdigest()) for name in sorted(files)],
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {"model": release.model.name, "verified": not release.against},
                "internalParameters": {each.name: _step(each) for each in line},
                "resolvedDependencies": [*(_resource(name, sha) for name, sha in pixels), code()],
            },
            "runDetails": {"builder": {"id": builder, "version": {"edge-pipeline": pipeline.__version__}}},
        },
    }


def _resource(name: str, sha256: str) -> dict[str, Any]:
    return {"name": name, "digest": {"sha256": sha256}}


def _step(artifact: Artifact) -> dict[str, Any]:
    """How an artifact was made."""
    return {
        "kind": artifact.kind,
        "sha256": artifact.sha256,
        "from": artifact.parents,
        "options": artifact.options,
        "versions": artifact.versions,
        "code": artifact.code,
    }


def code() -> dict[str, Any]:
    """A digest of the Python files that ship, and in a git checkout its revision and whether they were changed."""
    root = Path(pipeline.__file__).parents[1]
    paths = sorted(path for name in SOURCES for path in (root / name).rglob("*.py"))
    lines = "".join(f"{disk.digest(path)}  {path.relative_to(root).as_posix()}\n" for path in paths)
    resource = _resource("code", hashlib.sha256(lines.encode()).hexdigest())
    if revision := _git(root, "rev-parse", "HEAD"):
        resource["digest"]["gitCommit"] = revision
        resource["annotations"] = {"altered": bool(_git(root, "status", "--porcelain", "--", *SOURCES))}
    return resource


def _git(root: Path, *arguments: str) -> str | None:
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
