"""Make a release of a folder of artifacts: files, proof, card, report, test set, digests, signature, one archive."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import pipeline
from pipeline import console
from pipeline.data import imagesets
from pipeline.data.imagesets import ImageSet
from pipeline.errors import CheckFailed, UsageError
from pipeline.machine import extras as installs
from pipeline.records import code, disk, kinds, manifest
from pipeline.records.manifest import Artifact
from pipeline.records.releases import About, Release
from pipeline.release import archives, contents, files, inspection, provenance, signing, triton
from pipeline.release.contents import Contents
from pipeline.release.report import measures, pages
from pipeline.stages import DEFAULTS, Data, images

KIND = "release"
NEEDS = ("onnxruntime", "matplotlib", "jinja2", "PIL")


def run(
    folder: Path = DEFAULTS["out"],
    *,
    out: Annotated[Path, "Folder for the release's folder and its archive."] = Path("release"),
    data: Data = None,
    format: Annotated[Literal["folder", "triton"], "triton: a model repository of Triton Inference Server."] = "folder",
    sign_key: Annotated[
        Path | None, "Elliptic-curve private key (PEM) to sign with: model-signing's model.sig."
    ] = None,
    sigstore: Annotated[bool, "Sign with one's identity instead, by Sigstore; needs a network."] = False,
    builder: Annotated[str, "Who builds, as a URI, for the provenance statement."] = "urn:edge-pipeline:local",
    unverified: Annotated[bool, "Ship what isn't proven, marked as unverified everywhere."] = False,
) -> Artifact:
    """Gather a release: the ONNX files with their records and proof, card, report, test set, provenance, one archive.

    The same artifacts and code give the same archive, byte for byte. The files are run once more over the test set.

    Raises CheckFailed if verification is missing, failed, or was made for other bytes; only --unverified ships then,
    and the name, card, report, provenance and release.json say so.
    """
    _expect_usable(folder, out, sign_key, sigstore)
    found = contents.gather(folder)
    _refuse(folder, found.against, unverified)
    split, reference = images(found.forms[0], data), found.forms[0].facts.reference
    if split.digests != reference.digests:
        raise UsageError(f"--data {data or found.model.data}: is {split.name}: expected {reference.name}")
    answers = measures.answers(found.forms, split)
    against = found.against or measures.against(answers, split, found.verification, found.model.gate)
    _refuse(folder, against, unverified)
    if unverified and not against:
        console.say("--unverified: nothing stands against this release; it is shipped as verified")
    name = "-".join([found.model.name, found.model.version, *["triton"] * (format == "triton")])
    name += "-unverified" * bool(against)
    target, archive = out / name, out / f"{name}{archives.ARCHIVE}"
    files.expect_free(target, archive, signed=bool(sign_key or sigstore))
    if not found.history:
        console.say(f"{folder}: has no training history: the report goes without its curves")
    made = _triton(found) if format == "triton" else _folder(found, against, split, measures.summary(answers, split))
    made[inspection.ABOUT] = _json(kinds.plain(_about(found, against, format)))
    made["LICENSE"] = _licence()
    made["provenance.json"] = _json(provenance.statement(found, made, builder, not against))
    earlier = target / files.SIGNATURE
    signature = earlier.read_bytes() if earlier.is_file() else b""
    with files.staged(target, made) as part:
        _sign(part, sign_key, sigstore, signature)
    return manifest.write(
        archive,
        archives.pack(target),
        facts=Release(about=_about(found, against, format), folder=str(target), files=len(made)),
        parents=[*found.forms, *found.reports],
        options={"format": format, "builder": builder, "signed": bool(sign_key or sigstore)},
        versions=manifest.versions("numpy", "onnx", "matplotlib", "jinja2", "pillow"),
        code=code.digest(__name__),
    )


def _expect_usable(folder: Path, out: Path, sign_key: Path | None, sigstore: bool) -> None:
    """UsageError, before any work is done, for what would fail at its end."""
    installs.require("ship", NEEDS)
    if sign_key and sigstore:
        raise UsageError("--sign-key and --sigstore are two ways to sign: expected one of them")
    if folder.is_file():
        raise UsageError(f"{folder}: is a file: expected the folder it lies in, {folder.parent}")
    if sign_key or sigstore:
        signing.needed()
    if sign_key:
        signing.private_key(sign_key)
    disk.check_writable(out)


def _refuse(folder: Path, against: list[str], unverified: bool) -> None:
    if against and not unverified:
        raise CheckFailed(f"{folder}: {'; '.join(against)}; --unverified ships it, marked as such")


def _folder(found: Contents, against: list[str], split: ImageSet, measured: dict[str, Any]) -> dict[str, bytes]:
    """The release that people, `deploy` and model hubs read."""
    made = {}
    for each in [*found.forms, *found.reports]:
        made[each.name] = manifest.content(each)
    made[manifest.FILE] = manifest.packed([*found.ancestors, *found.forms, *found.reports])
    made[files.TEST_SET] = imagesets.pack(split)
    made["report.html"] = pages.report(found, against, split, measured, provenance.code())
    card = pages.card(found, against, made)
    return made | {"MODEL_CARD.md": card, "README.md": card}  # the latter is where model hubs look


def _triton(found: Contents) -> dict[str, bytes]:
    """The model repository; beside its models only what Triton passes over: files."""
    made = triton.files(found.forms)
    for each in [found.verification, found.latency]:
        if each:
            made[each.name] = manifest.content(each)
    return made


def _about(found: Contents, against: list[str], format: str) -> About:
    return About(
        kind=KIND,
        model=found.model.name,
        version=found.model.version,
        format=format,
        verified=not against,
        against=against,
        made_by=f"edge-pipeline {pipeline.__version__}",
    )


def _sign(folder: Path, key: Path | None, sigstore: bool, earlier: bytes) -> None:
    if sigstore:
        signing.sign_keyless(folder)
    elif key and earlier and signing.still_signs(folder, earlier, key):
        (folder / files.SIGNATURE).write_bytes(earlier)  # so that the archive's bytes stay, too
    elif key:
        signing.sign(folder, key)


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()


def _licence() -> bytes:
    """The project's licence: beside the sources, or in the installed distribution's metadata."""
    from importlib import metadata

    beside = Path(pipeline.__file__).parents[1] / "LICENSE"
    if beside.is_file():
        return beside.read_bytes()
    listed = metadata.files("edge-pipeline") or []
    return next(path for path in listed if path.name == "LICENSE").read_binary()


def show(release: Artifact) -> None:
    """What is in it, and the one line that the receiver needs."""
    about = release.facts.about
    state = "verified" if about.verified else f"UNVERIFIED: {'; '.join(about.against)}"
    signed = "signed" if release.options["signed"] else "not signed"
    console.result(
        f"{release.facts.folder}: {about.model} {about.version}, {release.facts.files} files, {signed}; {state}"
    )
