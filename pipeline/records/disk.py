"""Files and folders: atomic writes, digests, and an exclusive lock on an output folder."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from pipeline import console
from pipeline.errors import UsageError

_here = threading.local()  # the folders that this thread holds already


def digest(path: Path) -> str:
    """sha256 of a file, in hex."""
    with path.open("rb") as file:
        sha = hashlib.sha256()
        while block := file.read(1 << 20):
            sha.update(block)
    return sha.hexdigest()


def save(path: Path, content: bytes) -> None:
    """Write a file as a whole or not at all."""
    save_all((path, content))


def save_all(*files: tuple[Path, bytes]) -> None:
    """Write files one after the other, each as a whole or not at all.

    All contents are on disk under other names before the first file is replaced, so a full disk changes nothing. A kill
    leaves `.NAME.part` behind, which the next write of that file reuses.
    """
    parts: list[Path] = []
    try:
        for number, (path, content) in enumerate(files, 1):
            path.parent.mkdir(parents=True, exist_ok=True)
            again = path in [later for later, _ in files[number:]]  # the last content has the name that is reused
            parts.append(path.with_name(f".{path.name}.part{'2' * again}"))
            with parts[-1].open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for part, (path, _) in zip(parts, files, strict=True):
            os.replace(part, path)
    except BaseException:
        for part in parts:
            part.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def held(folder: Path | None) -> Iterator[None]:
    """Hold an exclusive lock on an output folder; other processes wait. The thread that holds it may take it again.

    The lock is the system's, on the folder itself: no file stays behind, and it ends with the process that holds it.
    Where the system has none (Windows, some network file systems), nothing is held. A folder that is created for the
    lock is removed again if it stays empty.
    """
    mine: set[Path] = vars(_here).setdefault("folders", set())
    if folder is None or os.name == "nt" or folder.absolute() in mine:
        yield
        return
    import fcntl

    created = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            console.say(f"another pipeline writes to {folder}: waiting until it is done")
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:
            pass  # no locks on this file system
        mine.add(folder.absolute())
        yield
    finally:
        mine.discard(folder.absolute())
        os.close(handle)
        for path in created:
            with contextlib.suppress(OSError):
                path.rmdir()


def check_writable(folder: Path, option: str = "--out") -> None:
    """UsageError, before any work is done, if artifacts can't be written to a folder."""
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        tempfile.TemporaryDirectory(dir=nearest).cleanup()  # permissions don't tell: root has them where nothing can be
    except OSError:
        raise UsageError(
            f"{option} {folder}: expected a folder that can be written to; can't create files in {nearest}"
        ) from None
