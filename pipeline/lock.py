"""A folder in, nobody else's stage writing to it out: a second one waits until the first is done, or was killed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from pipeline import console


@contextlib.contextmanager
def held(folder: Path | None) -> Iterator[None]:
    """Hold a folder for as long as this lasts. It is made for that, and removed again if it stays empty.

    The lock is the system's, on the folder itself: no file stays behind, and it ends with the process that holds it.
    Where the system has none (Windows, some network file systems), nothing is held.
    """
    try:
        import fcntl
    except ImportError:
        fcntl = None
    if folder is None or fcntl is None:
        yield
        return
    made = [path for path in (folder, *folder.parents) if not path.exists()]
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
        yield
    finally:
        os.close(handle)
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()
