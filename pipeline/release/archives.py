"""Pack a release's folder into one archive, the same bytes whenever the files are the same; and unpack it safely.

Sorted names, no times, no owners.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import io
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import CheckFailed, PipelineError, UsageError
from pipeline.release import files

ARCHIVE = ".tar.gz"
PACKED = (ARCHIVE, ".tgz")  # what is taken for one
LIMIT = 1 << 28  # bytes that an archive may unpack to, and files it may have
MOST = 1000


def pack(folder: Path) -> bytes:
    """The folder as a `.tar.gz`: every file below the folder's name."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name in files.names(folder):
            content = (folder / name).read_bytes()
            member = tarfile.TarInfo(f"{folder.name}/{name}")
            member.size, member.mode = len(content), 0o644
            archive.addfile(member, io.BytesIO(content))
    return gzip.compress(packed.getvalue(), mtime=0)


@contextlib.contextmanager
def opened(release: Path) -> Iterator[Path]:
    """A release's folder: itself, or an archive unpacked for as long as this lasts."""
    if release.is_dir():
        yield release
        return
    if not release.exists():
        raise UsageError(f"{release}: no such folder or archive")
    if not is_archive(release):
        raise UsageError(f"{release}: expected a release: its folder, or its archive ({ARCHIVE})")
    with tempfile.TemporaryDirectory() as scratch:
        try:
            yield unpack(release, Path(scratch))
        except PipelineError as error:  # who reads it knows the archive, not where it was unpacked
            error.args = (str(error).replace(f"{scratch}/", f"{release}: "),)
            raise


def is_archive(path: Path) -> bool:
    """Whether a path is to be unpacked before it is looked at."""
    return path.is_file() and path.name.endswith(PACKED)


def unpack(archive: Path, target: Path) -> Path:
    """Unpack an archive that `pack` made into `target`; gives the one folder in it.

    Writes nothing outside `target`: a link, an absolute name, `..`, over 256 MiB or over 1,000 files is a CheckFailed
    before anything is written.
    """
    found: dict[str, bytes] = {}
    damaged = f"{archive}: is no whole release archive"
    try:
        with gzip.open(archive) as packed:
            content = packed.read(LIMIT + 1)
        if len(content) > LIMIT:
            raise CheckFailed(f"{archive}: unpacks to more than {LIMIT} bytes: is no release")
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as tar:
            for member in tar:
                if member.isdir() and files.inside(member.name):  # as plain tar packs them
                    continue
                if not member.isfile() or not files.inside(member.name) or "/" not in member.name or len(found) >= MOST:
                    raise CheckFailed(f"{damaged}: {member.name!r} is a link, lies outside or doesn't belong")
                if member.name in found or member.sparse:
                    raise CheckFailed(f"{damaged}: {member.name!r} is there twice or with holes")
                found[member.name] = tar.extractfile(member).read()
    except (OSError, EOFError, zlib.error, tarfile.TarError, ValueError, OverflowError) as error:
        raise CheckFailed(f"{damaged}: {error}") from error
    roots = {name.split("/", 1)[0] for name in found}
    if len(roots) != 1:
        raise CheckFailed(f"{damaged}: expected one folder in it, received {', '.join(sorted(roots)) or 'none'}")
    for name, data in found.items():
        path = target / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        except (OSError, ValueError) as error:
            if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise CheckFailed(f"{damaged}: {name[:100]!r} can't be a file beside the others") from error
    return target / roots.pop()
