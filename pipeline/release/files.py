"""A release's folder with its SHA256SUMS: written aside, put in an earlier release's place, and checked."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from pipeline.errors import CheckFailed, PipelineError, UsageError
from pipeline.records import disk, manifest

SUMS, SIGNATURE, ABOUT, TEST_SET = "SHA256SUMS", "model.sig", "release.json", "test-set.npz"
TIMINGS = "timings"  # folder of files that TensorRT's builder makes, one a GPU and version
EARLIER = "earlier"  # an earlier folder, while it is being replaced
# What others add to a release's folder, and no part of it: a model hub and its client, and desktops showing a folder.
HUBS = (".git", ".gitattributes", ".cache/huggingface", ".huggingface")
DESKTOPS = re.compile(r"\.DS_Store|\._.+|Thumbs\.db|desktop\.ini")


def names(folder: Path) -> list[str]:
    """The release's files below a folder, sorted; what `passed_over` names is left out.

    Raises CheckFailed at anything that is neither file nor folder. A link is a file where a hub's client made it: in
    `snapshots/REVISION`, to a file in the `blobs` beside `snapshots`.
    """
    own = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if _added(name):
            continue
        linked = path.is_symlink() and not _into_hubs_cache(path, folder)
        if linked or not (path.is_file() or path.is_dir()):
            raise CheckFailed(
                f"{path}: is a link or no plain file: expected plain files only; `cp -rL` makes a copy without links"
            )
        if path.is_file():
            own.append(name.as_posix())
    return own


def passed_over(folder: Path) -> list[str]:
    """What is in a folder besides its release, sorted: the files and folders that hubs and desktops add."""
    return sorted({added for path in folder.rglob("*") if (added := _added(path.relative_to(folder)))})


def within(folder: Path) -> str:
    """Name a release in a folder that is none itself, to be said behind an error; empty if there is none."""
    return next((f"; there is one in {path.parent}" for path in sorted(folder.glob(f"*/{SUMS}"))), "")


def _added(name: Path) -> str | None:
    """The file or folder of a hub or a desktop that a name is or lies in; None if it is the release's own."""
    hub = next((hub for hub in HUBS if name.is_relative_to(hub)), None)
    return hub or (name.as_posix() if DESKTOPS.fullmatch(name.name) else None)


def _into_hubs_cache(link: Path, folder: Path) -> bool:
    snapshots = folder.resolve().parent
    return snapshots.name == "snapshots" and link.is_file() and link.resolve().parent == snapshots.parent / "blobs"


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[Path]:
    """Yield a folder that has the release's files and nothing else: itself, or a copy for as long as this lasts."""
    own = names(folder)
    if not passed_over(folder) and not any((folder / name).is_symlink() for name in own):
        yield folder
        return
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / folder.resolve().name
        for name in own:
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, copy / name)
        with named(str(copy), str(folder)):
            yield copy


@contextlib.contextmanager
def named(copy: str, original: str) -> Iterator[None]:
    """Let errors name the original, which their readers know, in place of a temporary copy."""
    try:
        yield
    except PipelineError as error:
        error.args = (str(error).replace(copy, original),)
        raise


def digests(folder: Path) -> dict[str, str]:
    """sha256, by name, of every file of a release but SHA256SUMS and the signature."""
    return {name: disk.digest(folder / name) for name in names(folder) if name not in (SUMS, SIGNATURE)}


def sums(digests: Mapping[str, str]) -> bytes:
    """The content of SHA256SUMS, as `sha256sum -c` reads it.

    A comment has the list's own digest, so that an altered list isn't taken for an altered file.
    """
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items()))
    return f"{lines}# {hashlib.sha256(lines.encode()).hexdigest()} of the lines above\n".encode()


def check(folder: Path) -> dict[str, str]:
    """Compare every file of a release but the signature with SHA256SUMS, and return their sha256 by name.

    Raises CheckFailed, naming each file that was altered, is missing or doesn't belong.
    """
    raw, received = (folder / SUMS).read_bytes(), digests(folder)
    try:
        pairs = [line.split("  ", 1) for line in raw.decode().splitlines() if not line.startswith("#")]
        expected = {name: digest for digest, name in pairs}
        intact = sums(expected) == raw
    except ValueError:
        intact = False
    if not intact:
        raise CheckFailed(f"{folder / SUMS}: altered: expected the sha256 and names that `pipeline ship` wrote")
    wrong = [f"{name}: missing" for name in sorted(expected.keys() - received.keys())]
    wrong += [f"{name}: not in {SUMS}, so no part of the release" for name in sorted(received.keys() - expected.keys())]
    for name in sorted(received.keys() & expected.keys()):
        if received[name] != expected[name]:
            wrong.append(f"{name}: altered: expected sha256 {expected[name]}, received {received[name]}")
    if wrong:
        raise CheckFailed(f"{folder}: {'; '.join(wrong)}")
    return expected


@contextlib.contextmanager
def staged(folder: Path, contents: Mapping[str, bytes]) -> Iterator[Path]:
    """Write a release with its SHA256SUMS and yield it, to be signed; then put it in an earlier one's place."""
    with replaced(folder) as part:
        for name, content in contents.items():
            (part / name).parent.mkdir(parents=True, exist_ok=True)
            (part / name).write_bytes(content)
        (part / SUMS).write_bytes(sums(digests(part)))
        yield part


@contextlib.contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """Yield an empty folder elsewhere, to be filled; then put it in the place of an earlier `folder`.

    After a failure or a kill there is either the earlier folder or the new one, once `put_back` was called.
    """
    scratch = _scratch(folder)
    part = scratch / folder.name  # signatures contain the folder's name
    try:
        put_back(folder)
        shutil.rmtree(scratch, ignore_errors=True)  # left by a run that was killed
        part.mkdir(parents=True)
        yield part
        if folder.exists():
            os.replace(folder, scratch / EARLIER)
        os.replace(part, folder)
    finally:
        put_back(folder)
        shutil.rmtree(scratch, ignore_errors=True)


def _scratch(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.part")


def put_back(folder: Path) -> None:
    """Restore an earlier folder if a failure or a kill came between its removal and the next one's arrival."""
    if (_scratch(folder) / EARLIER).is_dir() and not folder.exists():
        os.replace(_scratch(folder) / EARLIER, folder)


def expect_free(folder: Path, archive: Path, *, signed: bool) -> None:
    """UsageError if a release here would replace anything but an earlier one, or a signed one by an unsigned one."""
    put_back(folder)
    remedy = "move it or give another --out"
    if archive.exists() and not (archive.is_file() and manifest.claimed_kind(archive) == "release"):
        raise UsageError(f"{archive}: exists and was not made by `pipeline ship`: {remedy}")
    if not folder.exists():
        return
    if not (folder / SUMS).is_file():
        raise UsageError(f"{folder}: exists and is not a release: {remedy}")
    # An earlier release may have been altered, but must have no files besides its own.
    listed = {line.partition("  ")[2] for line in (folder / SUMS).read_text(errors="replace").splitlines()}
    present = {*names(folder), *(name for name in passed_over(folder) if not DESKTOPS.fullmatch(Path(name).name))}
    if more := sorted(present - listed - {SUMS, SIGNATURE}):
        raise UsageError(f"{folder}: has {', '.join(more)}, which a new release would remove: {remedy}")
    if (folder / SIGNATURE).is_file() and not signed:
        raise UsageError(f"{folder}: is signed, and the new release is not: give --sign-key or --sigstore, or {remedy}")
