"""Make a release of a folder of artifacts: files, proof, card, report, test set, digests, signature, one archive."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

import pipeline
from pipeline import console
from pipeline.data import imagesets, sources
from pipeline.data.imagesets import ImageSet
from pipeline.errors import CheckFailed, UsageError
from pipeline.machine import extras as installs
from pipeline.records import code, disk, kinds, manifest
from pipeline.records.manifest import Artifact
from pipeline.records.releases import About, Release
from pipeline.release import archives, files, provenance, signing, triton
from pipeline.release.contents import Contents, boards, gather
from pipeline.release.report import measures, pages
from pipeline.stages import DEFAULTS, Data, certify, images

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
    sigstore: Annotated[bool, "Sign with your identity instead, through Sigstore; needs a network."] = False,
    builder: Annotated[str, "URI of the builder, for the provenance statement."] = "urn:edge-pipeline:local",
    timings: Annotated[
        Path | None, "Folder of kernels' timings that a deployment left: the next on such a device builds faster."
    ] = None,
    board: Annotated[
        tuple[Path, ...], "Folder of a board's report, as `deploy` leaves it, to show in report.html; several times."
    ] = (),
    unverified: Annotated[bool, "Ship what isn't proven, marked as unverified everywhere."] = False,
) -> Artifact:
    """Gather a release: the ONNX files with their records and proof, card, report, test set, provenance, one archive.

    The same artifacts and code give the same archive, byte for byte. The files are run once more over the test set.

    Raises CheckFailed if verification is missing, failed, or was made for other bytes; only --unverified ships then,
    and the name, card, report, provenance and release.json say so.
    """
    signed = bool(sign_key or sigstore)
    installs.require("ship", (*NEEDS, *(signing.NEEDS if signed else ())))
    if sign_key and sigstore:
        raise UsageError("--sign-key, --sigstore: expected at most one of them")
    if format == "triton" and (timings or board):
        option = "--timings" if timings else "--board"
        raise UsageError(f"{option}: a Triton repository has no place for them: expected --format folder")
    timed = {f"{files.TIMINGS}/{path.name}": path for path in sorted(timings.glob("*.timings"))} if timings else {}
    if timings and not timed:
        raise UsageError(
            f"--timings {timings}: expected files *.timings, as `pipeline deploy` leaves in {files.TIMINGS}"
        )
    if sign_key:
        signing.read_key(sign_key, private=True)
    disk.check_writable(out)
    contents = gather(folder)
    contents.boards = boards(board, contents.forms)
    _refuse(folder, contents, unverified)
    _remark_unused(contents)
    form, model = contents.forms[0], contents.model
    split, reference = images(form, data), form.facts.reference
    if split.digests != reference.digests:
        raise UsageError(f"--data {data or model.data}: is {split.name}: expected {reference.name}")
    contents.forms, contents.ancestors = list(map(_public, contents.forms)), list(map(_public, contents.ancestors))
    files.expect_free(*_target(contents, format, out), signed=signed)
    if contents.history:
        pages.epochs(contents.history)
    answers = measures.answers(contents.forms, split)
    if contents.verification and not contents.against:
        contents.against = measures.against(answers, split, contents.verification, model.gate)
        _refuse(folder, contents, unverified)
    if unverified and not contents.against:
        console.say("--unverified: every check passes, so the release is marked as verified")
    target, archive = _target(contents, format, out)
    files.expect_free(target, archive, signed=signed)  # again, since it is named by the reasons against it
    about = About(
        kind=KIND,
        model=model.name,
        version=model.version,
        format=format,
        verified=not contents.against,
        against=contents.against,
        made_by=f"edge-pipeline {pipeline.__version__}",
    )
    if format == "triton":  # the server looks into folders only, so proof may lie beside the models
        shipped = triton.files(contents.forms) | _files(filter(None, [contents.verification, contents.latency]))
    else:
        shipped = _folder(contents, split, answers)
        shipped |= {name: path.read_bytes() for name, path in timed.items()}
    shipped[files.ABOUT] = _json(kinds.plain(about))
    if model.licence == "MIT":  # else it is for its owner to add one
        shipped["LICENSE"] = _licence()
    shipped["provenance.json"] = _json(provenance.statement(contents, shipped, builder))
    with files.staged(target, shipped) as part:
        if signed:
            signing.sign(part, sign_key, target / files.SIGNATURE)
    return manifest.write(
        archive,
        archives.pack(target),
        facts=Release(about=about, folder=str(target), files=len(shipped)),
        parents=[*contents.forms, *contents.reports],
        options={"format": format, "builder": builder, "signed": signed}
        | ({"boards": {name: report.sha256 for name, report in contents.boards.items()}} if board else {}),
        versions=manifest.versions("numpy", "onnx", "matplotlib", "jinja2", "pillow"),
        code=code.digest(__name__),
    )


def _target(contents: Contents, format: str, out: Path) -> tuple[Path, Path]:
    """A release's folder and its archive."""
    name = f"{contents.model.name}-{contents.model.version}" + ("-triton" if format == "triton" else "")
    name += "-unverified" if contents.against else ""
    return out / name, out / f"{name}{archives.ARCHIVE}"


def _refuse(folder: Path, contents: Contents, unverified: bool) -> None:
    if contents.against and not unverified:
        raise CheckFailed(f"{folder}: {'; '.join(contents.against)}; --unverified ships it, marked as such")


def _remark_unused(contents: Contents) -> None:
    """Say on stderr if a certificate proves something that the verification doesn't have."""
    if verification := contents.verification:
        used = verification.options.get("certificates", {})
        for made in certify.proven(contents.forms, verification.facts.data.digests):
            if certify.of_all_images(made) and used.get(made.name) != made.sha256:
                console.say(f"{made.name}: not in {verification.name}; run `pipeline verify` to have it in the release")


def _public(form: Artifact) -> Artifact:
    """The artifact with its image set's name instead of a path on this machine."""
    card = msgspec.structs.replace(form.facts.model, data=sources.public(form.facts.model.data))
    return dataclasses.replace(form, facts=msgspec.structs.replace(form.facts, model=card))


def _folder(contents: Contents, split: ImageSet, answers: measures.Answers) -> dict[str, bytes]:
    """The files for people, `deploy` and model hubs."""
    if not contents.history:
        console.say("no training history: the report has no training curves")
    shipped = _files([*contents.forms, *contents.reports])
    shipped[manifest.FILE] = manifest.packed([*contents.line, *contents.reports])
    shipped[files.TEST_SET] = imagesets.pack(split)
    shipped["report.html"] = pages.report(contents, split, measures.summary(answers, split), provenance.code())
    shipped["MODEL_CARD.md"] = shipped["README.md"] = pages.card(contents)  # the latter is where model hubs look
    return shipped


def _files(artifacts: Iterable[Artifact]) -> dict[str, bytes]:
    """The artifacts' files by name, checked once more."""
    return {each.name: manifest.content(each) for each in artifacts}


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()


def _licence() -> bytes:
    """The project's licence: beside the sources, or in the installed distribution's metadata."""
    beside = Path(pipeline.__file__).parents[1] / "LICENSE"
    if beside.is_file():
        return beside.read_bytes()
    listed = metadata.files("edge-pipeline") or []
    return next(path for path in listed if path.name == "LICENSE").read_binary()


def show(release: Artifact) -> None:
    """Print what is in it, and whether it is verified and signed."""
    about = release.facts.about
    state = "verified" if about.verified else f"UNVERIFIED: {'; '.join(about.against)}"
    signed = "signed" if release.options["signed"] else "not signed"
    console.result(
        f"{release.facts.folder}: {about.model} {about.version}, {release.facts.files} files, {signed}; {state}"
    )
