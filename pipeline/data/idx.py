"""IDX, MNIST's file format: http://yann.lecun.com/exdb/mnist/."""

from __future__ import annotations

import gzip
import io
import zlib
from pathlib import Path

import numpy as np

from pipeline.errors import UsageError

LIMIT = 1 << 30  # bytes that a gzipped file may unpack to
GZIP = b"\x1f\x8b"


def read(path: Path) -> np.ndarray:
    """The uint8 array in an IDX file, gzipped or not. UsageError if it holds something else or is cut off."""
    return parse(unpacked(path), str(path))


def unpacked(path: Path) -> bytes:
    """The bytes of a file, unpacked if it is gzipped."""
    raw = path.read_bytes()
    return gunzip(raw, limit=LIMIT, name=str(path)) if raw[:2] == GZIP else raw


def parse(raw: bytes, name: str) -> np.ndarray:
    """The uint8 array in the bytes of an IDX file; writable, as torch wants it."""
    if len(raw) < 4 or raw[:3] != b"\0\0\x08":
        raise UsageError(f"{name}: expected an IDX file of unsigned bytes, received one that starts with {raw[:4]!r}")
    ndim = raw[3]
    shape = [int(size) for size in np.frombuffer(raw[4 : 4 + 4 * ndim], ">u4")] if len(raw) >= 4 + 4 * ndim else []
    expected = 4 + 4 * ndim + int(np.prod(shape, dtype=object)) if shape else None
    if expected != len(raw):
        raise UsageError(f"{name}: expected {expected} bytes for shape {shape}, received {len(raw)}; is it cut off?")
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * ndim).reshape(shape).copy()


def header(array: np.ndarray) -> bytes:
    """An IDX header: two zero bytes, the type (8: uint8, 12: int32), the dimensions as big-endian int32."""
    kind = {"uint8": 8, "int32": 12}[array.dtype.name]
    return bytes([0, 0, kind, array.ndim]) + np.asarray(array.shape, ">i4").tobytes()


def file(array: np.ndarray) -> bytes:
    """uint8 values as an IDX file."""
    return header(array) + array.tobytes()


def gunzip(packed: bytes, *, limit: int, name: str = "download") -> bytes:
    """The content of a gzip file; UsageError if it is damaged or larger than `limit` bytes."""
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(packed)) as opened:
            content = opened.read(limit + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(f"{name}: is not a whole gzip file: {error}") from error
    if len(content) > limit:
        raise UsageError(f"{name}: unpacks to more than {limit} bytes")
    return content
