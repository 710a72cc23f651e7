"""Pack a release's folder into one archive, the same bytes whenever the files are the same; and unpack it safely.

Names are sorted; times and owners are left out.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import CheckFailed, UsageError, reason
from pipeline.release import files

ARCHIVE = ".tar.gz"
SUFFIXES = (ARCHIVE, ".tgz")
LIMIT = 1 << 30  # bytes that an archive may unpack to
MOST = 1000  # files that it may have


def pack(folder: Path) -> bytes:
    """Pack a folder's files, below the folder's name, into a `.tar.gz`. UsageError if no one could unpack it."""
    size = sum((folder / name).stat().st_size + 2 * tarfile.BLOCKSIZE for name in files.names(folder))
    if size + tarfile.RECORDSIZE > LIMIT:
        raise UsageError(f"{folder.name}: has {size:,} bytes: expected at most {LIMIT:,}")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name in files.names(folder):
            content = (folder / name).read_bytes()
            member = tarfile.TarInfo(f"{folder.name}/{name}")
            member.size, member.mode = len(content), 0o644
            try:
                archive.addfile(member, io.BytesIO(content))
            except ValueError as error:  # a name that is too long
                raise UsageError(f"{folder.name}/{name}: can't be packed: {reason(error)}") from error
    return gzip.compress(packed.getvalue(), mtime=0)


@contextlib.contextmanager
def opened(release: Path) -> Iterator[Path]:
    """Yield a release's folder: itself, or an archive unpacked for as long as this lasts."""
    if release.is_dir():
        yield release
        return
    if not is_archive(release):
        received = "another file" if release.exists() else "no such file or folder"
        raise UsageError(f"{release}: expected a release, its folder or its archive ({ARCHIVE}), received {received}")
    with tempfile.TemporaryDirectory() as scratch, files.named(f"{scratch}/", f"{release}: "):
        yield unpack(release, Path(scratch))


def is_archive(path: Path) -> bool:
    """Whether a path has to be unpacked first."""
    return path.is_file() and path.name.endswith(SUFFIXES)


def unpack(archive: Path, target: Path) -> Path:
    """Unpack an archive that `pack` made into `target`, and return the one folder in it.

    Writes nothing outside `target`: a link, an absolute name, `..`, over 1 GiB or over 1,000 files is a CheckFailed
    before anything is written.
    """
    try:
        contents = _members(archive)
        for name, content in contents.items():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes(content)
    except (OSError, EOFError, zlib.error, tarfile.TarError, ValueError, OverflowError) as error:
        raise CheckFailed(f"{archive}: can't be unpacked: {reason(error)}") from error
    return target / next(iter(contents)).split("/")[0]


def _members(archive: Path) -> dict[str, bytes]:
    """The files in an archive by name. CheckFailed unless all are plain files in one folder."""
    with gzip.open(archive) as packed:
        raw = packed.read(LIMIT + 1)
    if len(raw) > LIMIT:
        raise CheckFailed(f"{archive}: can't be unpacked: expected a release of at most {LIMIT:,} bytes")
    contents: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(raw), mode="r:") as tar:
        for member in tar:
            name, parts = member.name, member.name.split("/")
            outside = "\\" in name or not {"", ".", ".."}.isdisjoint(parts)
            if member.isdir() and not outside:  # plain tar packs folders, too
                continue
            file = tar.extractfile(member) if member.isfile() and not member.sparse else None
            if file is None or outside or len(parts) == 1 or name in contents or len(contents) >= MOST:
                raise CheckFailed(
                    f"{archive}: can't be unpacked: {name!r} is a link, lies outside, is there twice or is one too many"
                )
            contents[name] = file.read()
    roots = sorted({name.split("/")[0] for name in contents})
    if len(roots) != 1:
        raise CheckFailed(f"{archive}: can't be unpacked: expected one folder, received {', '.join(roots) or 'none'}")
    return contents
