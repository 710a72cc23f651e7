"""A release's folder with its SHA256SUMS: written aside, put in an earlier one's place, and checked."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from pipeline.errors import CheckFailed, UsageError
from pipeline.records import manifest

SUMS, SIGNATURE, TEST_SET = "SHA256SUMS", "model.sig", "test-set.npz"
EARLIER = "earlier"  # an earlier release, while it is being replaced
IGNORED = {".git", ".gitattributes"}  # what a model hub adds; model-signing leaves them out, too


def sums(files: Mapping[str, bytes]) -> bytes:
    """The content of SHA256SUMS, as `sha256sum -c` reads it."""
    return _written({name: hashlib.sha256(content).hexdigest() for name, content in files.items()})


def _written(digests: Mapping[str, str]) -> bytes:
    """The list, and in a comment its own digest: so that an altered list isn't taken for an altered file."""
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items()))
    return f"{lines}# {hashlib.sha256(lines.encode()).hexdigest()} of the lines above\n".encode()


@contextlib.contextmanager
def staged(folder: Path, files: Mapping[str, bytes]) -> Iterator[Path]:
    """A release's folder with its SHA256SUMS, elsewhere, to be signed; then put in place of an earlier release.

    What is there stays until all of it is done: after a failure or a kill there is the earlier release or this one.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = _scratch(folder)
    part = scratch / folder.name  # signatures carry the folder's name
    try:
        _put_back(folder)
        shutil.rmtree(scratch, ignore_errors=True)  # of one that was killed
        for name, content in {**files, SUMS: sums(files)}.items():
            path = part / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        yield part
        if folder.exists():
            os.replace(folder, scratch / EARLIER)
        os.replace(part, folder)
    finally:
        _put_back(folder)
        shutil.rmtree(scratch, ignore_errors=True)


def _scratch(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.part")


def _put_back(folder: Path) -> None:
    """An earlier release, where a failure or a kill came between its being moved away and the next one's coming."""
    if (_scratch(folder) / EARLIER).is_dir() and not folder.exists():
        os.replace(_scratch(folder) / EARLIER, folder)


def expect_free(folder: Path, archive: Path, *, signed: bool) -> None:
    """UsageError if a release here would replace anything but an earlier release: its folder and its archive.

    Nor is a signed one replaced by one that isn't.
    """
    _put_back(folder)
    move = "move it or give another --out"
    if archive.exists() and not (archive.is_file() and manifest.claimed_kind(archive) == "release"):
        raise UsageError(f"{archive}: is there already and was not made by `pipeline ship`: {move}")
    if not folder.exists():
        return
    if not (folder / SUMS).is_file():
        raise UsageError(f"{folder}: is there already and is no release: expected a free name; {move}")
    # Whatever was altered in an earlier release, it is replaced: only its own files must be.
    listed = {line.partition("  ")[2] for line in (folder / SUMS).read_text(errors="replace").splitlines()}
    there = {*names(folder), *(path.name for path in folder.iterdir() if path.name in IGNORED)}
    if more := sorted(there - listed - {SUMS, SIGNATURE}):
        raise UsageError(
            f"{folder}: has {', '.join(more)}, which no release put there and a new one would remove: {move}"
        )
    if (folder / SIGNATURE).is_file() and not signed:
        raise UsageError(f"{folder}: is signed, this one would not be: expected --sign-key or --sigstore; or {move}")


def names(folder: Path) -> list[str]:
    """The files of a folder, below it, sorted; CheckFailed at anything that is neither file nor folder."""
    found = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if name.parts[0] in IGNORED:
            continue
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise CheckFailed(f"{path}: is a link or no plain file: expected plain files alone in a release")
        if path.is_file():
            found.append(name.as_posix())
    return found


def expect_release(folder: Path) -> None:
    """UsageError if a folder isn't what `staged` makes."""
    if not (folder / SUMS).is_file():
        within = [path.parent for path in sorted(folder.glob(f"*/{SUMS}"))]
        hint = f"; there is one in {within[0]}" if within else ""
        raise UsageError(f"{folder}: has no {SUMS}: expected a release, as `pipeline ship` makes it{hint}")


def check(folder: Path) -> dict[str, str]:
    """Hold every file of a release against SHA256SUMS; gives sha256 by name. The signature isn't among them.

    Raises CheckFailed, naming each file that was altered, is missing or doesn't belong; UsageError if it is no release.
    """
    expect_release(folder)
    raw = (folder / SUMS).read_bytes()
    expected = _listed(raw, folder / SUMS)
    there = set(names(folder)) - {SUMS, SIGNATURE}
    received = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in there}
    wrong = [f"{name}: missing" for name in sorted(expected.keys() - there)]
    wrong += [f"{name}: not in {SUMS}, so no part of the release" for name in sorted(there - expected.keys())]
    for name in sorted(there & expected.keys()):
        if received[name] != expected[name]:
            wrong.append(f"{name}: altered: expected sha256 {expected[name]}, received {received[name]}")
    if wrong:
        raise CheckFailed(f"{folder}: {'; '.join(wrong)}")
    return expected


def _listed(raw: bytes, path: Path) -> dict[str, str]:
    """Anything but the very bytes that `sums` gives counts as altered."""
    try:
        pairs = [line.split("  ", 1) for line in raw.decode().splitlines() if not line.startswith("#")]
        expected = {name: digest for digest, name in pairs}
    except ValueError as error:
        raise CheckFailed(f"{path}: altered: is no list of digests and names") from error
    safe = all(PurePosixPath(name).parts and inside(name) for name in expected)
    digests = all(len(digest) == 64 and set(digest) <= set("0123456789abcdef") for digest in expected.values())
    if not (expected and safe and digests and _written(expected) == raw):
        raise CheckFailed(f"{path}: altered: is not the list of sha256 and names that `pipeline ship` wrote")
    return expected


def inside(name: str) -> bool:
    """Whether a name, as written in a release, is a plain path below its folder."""
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and "\\" not in name and path.as_posix() == name
