"""Read and write IDX, MNIST's file format: http://yann.lecun.com/exdb/mnist/."""

from __future__ import annotations

import gzip
import io
import zlib
from pathlib import Path

import numpy as np

from pipeline.errors import UsageError

LIMIT = 1 << 30  # bytes that a gzip file may unpack to
TYPES = {"uint8": 8, "int32": 12}


def read(path: Path) -> np.ndarray:
    """Read an IDX file of unsigned bytes, gzipped or not, as a writable uint8 array.

    Raises UsageError if it holds something else or is cut off.
    """
    raw = content(path)
    if len(raw) < 4 or raw[:3] != b"\0\0\x08":
        raise UsageError(f"{path}: expected an IDX file of unsigned bytes, received one that starts with {raw[:4]!r}")
    start = 4 + 4 * raw[3]
    shape = np.frombuffer(raw[4:start], ">u4").tolist() if len(raw) >= start else []
    expected = start + int(np.prod(shape, dtype=object)) if shape else None
    if expected != len(raw):
        raise UsageError(f"{path}: expected {expected} bytes for shape {shape}, received {len(raw)}; is it cut off?")
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape).copy()


def labels(images: Path) -> np.ndarray | None:
    """Read the label file beside an IDX image file; None if there is none."""
    path = labels_beside(images)
    return read(path) if path and path.is_file() else None


def labels_beside(images: Path) -> Path | None:
    """Return where the labels of an IDX image file are expected: `*labels*idx1*` for `*images*idx3*`."""
    name = images.name.replace("images", "labels").replace("idx3", "idx1")
    return images.with_name(name) if name != images.name else None


def content(path: Path) -> bytes:
    """Return the bytes of a file, unpacked if it is gzipped."""
    raw = path.read_bytes()
    return gunzip(raw, str(path)) if raw.startswith(b"\x1f\x8b") else raw


def gunzip(packed: bytes, name: str) -> bytes:
    """Unpack a gzip file. UsageError if it is damaged or unpacks to more than LIMIT bytes."""
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(packed)) as opened:
            unpacked = opened.read(LIMIT + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(f"{name}: expected a whole gzip file: {error}") from error
    if len(unpacked) > LIMIT:
        raise UsageError(f"{name}: expected a gzip file that unpacks to {LIMIT} bytes at most")
    return unpacked


def header(array: np.ndarray) -> bytes:
    """Return an IDX header: two zero bytes, the type, the number of dimensions, each size as big-endian int32."""
    return bytes([0, 0, TYPES[array.dtype.name], array.ndim]) + np.asarray(array.shape, ">i4").tobytes()


def file(array: np.ndarray) -> bytes:
    """Return a uint8 array as an IDX file."""
    return header(array) + array.tobytes()
