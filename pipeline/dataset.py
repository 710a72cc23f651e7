"""Images and labels as numpy arrays: MNIST, found or fetched and checked by digest, or a set of one's own."""

from __future__ import annotations

import dataclasses
import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import artifact, mnist
from pipeline.errors import UsageError, reason

TEST = {file: sha for file, sha in mnist.FILES.items() if file.startswith("t10k")}
HOLD_OUT_SEED = 2026  # the same images are held out whatever the training's seed


@dataclass(frozen=True)
class Split:
    """uint8 images `[n, 1, height, width]`, int64 labels `[n]`, what to call them, and each file's sha256."""

    name: str
    images: np.ndarray
    labels: np.ndarray
    digests: dict[str, str]

    def __len__(self) -> int:
        return len(self.labels)


def train(data: Path) -> Split:
    """The 60,000 training images of MNIST, fetched into the folder `data` if they aren't there."""
    return _split(data, "train", "MNIST training set")


def test(data: Path) -> Split:
    """The 10,000 test images of MNIST, or the labelled set in the `.npz` or IDX image file `data`.

    An `.npz` holds `images` (uint8 `[n, 28, 28]` or `[n, 1, 28, 28]`) and `labels` `[n]`; beside an IDX file
    `*images-idx3-ubyte` lies `*labels-idx1-ubyte`. Raises UsageError on anything else.
    """
    if not _is_file(data):
        return _split(data, "t10k", "MNIST test set")
    files = _test_files(data)
    images, labels = _read_npz(data) if len(files) == 1 else map(idx, files)
    return _checked(data, images, labels)


def split(data: Path, hold_out: int, limit: int | None) -> tuple[Split, Split]:
    """What to train on and what to measure on: the training images (the first `limit` of them) and the test set, or,
    with `hold_out`, the rest of the training images and so many held out, always the same ones."""
    images = train(data)
    if not hold_out:
        return _part(images, slice(limit)), test(data)
    order = np.random.default_rng(HOLD_OUT_SEED).permutation(len(images))
    kept, held = order[:-hold_out], order[-hold_out:]
    held_out = dataclasses.replace(_part(images, held), name=f"{hold_out} held-out images, {images.name}", digests={})
    return _part(images, kept[:limit]), held_out


def _part(images: Split, which: Any) -> Split:
    return dataclasses.replace(images, images=images.images[which], labels=images.labels[which])


def digests(data: Path) -> dict[str, str]:
    """sha256 by file name of what `test` would read, without reading the images where the digests are known."""
    return test(data).digests if _is_file(data) else TEST


def spoilt(split: Split, seen: Path | None) -> list[str]:
    """Why a labelled set of one's own is no test set: images in it twice, or images of the training set in the file
    `seen`."""
    rows = _rows(split.images)
    found = []
    if twice := len(rows) - len(np.unique(rows)):
        found.append(f"{split.name}: {twice} of {len(rows)} images are in it more than once: expected each once")
    if seen and (known := int(np.isin(rows, _rows(idx(seen))).sum())):
        found.append(f"{split.name}: {known} of {len(rows)} images are of MNIST's training set: expected none")
    return found


def training_images(data: Path) -> Path | None:
    """The file with MNIST's training images, if it lies in `data`; nothing is fetched."""
    paths = [folder / "train-images-idx3-ubyte" for folder in (data / mnist.RAW, data / "raw", data)]
    return next((path for path in paths if path.is_file() and artifact.digest(path) == mnist.FILES[path.name]), None)


def _rows(images: np.ndarray) -> np.ndarray:
    """Each image as one value that can be compared with others."""
    flat = np.ascontiguousarray(images.reshape(len(images), -1))
    return flat.view(f"V{flat.shape[1]}").ravel()


def pack(split: Split) -> bytes:
    """A labelled set as a small `.npz`, the same bytes for the same images. `test` reads it, and knows MNIST's."""
    file = io.BytesIO()
    np.savez_compressed(file, images=split.images[:, 0], labels=split.labels.astype(np.uint8))
    return file.getvalue()


def _is_file(data: Path) -> bool:
    """Whether it is a labelled set of one's own, not a folder. UsageError for a file that isn't there."""
    if not data.exists() and (data.suffix or "ubyte" in data.name):
        raise UsageError(f"{data}: no such file")
    return data.is_file()


def _test_files(data: Path) -> list[Path]:
    """A `.npz` alone, or an IDX image file and the labels beside it."""
    if data.suffix == ".npz":
        return [data]
    labels = data.with_name(data.name.replace("images", "labels").replace("idx3", "idx1"))
    if labels == data or not labels.is_file():
        raise UsageError(
            f"{data}: expected an .npz, or an IDX file *images-idx3-ubyte with its *labels-idx1-ubyte beside it"
        )
    return [data, labels]


def _split(data: Path, prefix: str, name: str) -> Split:
    if data.exists() and not data.is_dir():
        raise UsageError(f"{data}: expected a folder with MNIST in it, or to put it in")
    raw = mnist.ensure(data)
    names = [file for file in mnist.FILES if file.startswith(prefix)]
    images, labels = (idx(raw / file) for file in names)
    return Split(name, images[:, None], labels.astype(np.int64), {file: mnist.FILES[file] for file in names})


def idx(path: Path) -> np.ndarray:
    """The uint8 array in an IDX file, gzipped or not. UsageError if it is none, or cut off."""
    raw = path.read_bytes()
    if raw[:2] == b"\x1f\x8b":
        raw = mnist.gunzip(raw, limit=1 << 30, name=str(path))
    if len(raw) < 4 or raw[:3] != b"\0\0\x08":
        raise UsageError(f"{path}: expected an IDX file of unsigned bytes, received one that starts with {raw[:4]!r}")
    ndim = raw[3]
    shape = [int(size) for size in np.frombuffer(raw[4 : 4 + 4 * ndim], ">u4")] if len(raw) >= 4 + 4 * ndim else []
    expected = 4 + 4 * ndim + int(np.prod(shape, dtype=object)) if shape else None
    if expected != len(raw):
        raise UsageError(f"{path}: expected {expected} bytes for shape {shape}, received {len(raw)}; is it cut off?")
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * ndim).reshape(shape).copy()  # writable, as torch wants it


def _read_npz(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return file["images"], file["labels"]
    except Exception as error:  # numpy's parser of a damaged header fails in any way, tokenize.TokenError among them
        raise UsageError(f"{path}: expected an .npz with uint8 `images` and `labels`: {reason(error)}") from error


def _checked(path: Path, images: np.ndarray, labels: np.ndarray) -> Split:
    if images.ndim == 3:
        images = images[:, None]
    if images.dtype != np.uint8 or images.ndim != 4 or not len(images):
        raise UsageError(
            f"{path}: expected uint8 images [n, 28, 28] or [n, 1, 28, 28], received {images.dtype} {list(images.shape)}"
        )
    if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer):
        raise UsageError(f"{path}: expected {len(images)} integer labels, received {labels.dtype} {list(labels.shape)}")
    known = _canonical(images, labels)
    digests = TEST if known else {file.name: artifact.digest(file) for file in _test_files(path)}
    return Split("MNIST test set" if known else path.name, images, labels.astype(np.int64), digests)


def _canonical(images: np.ndarray, labels: np.ndarray) -> bool:
    """Whether they are MNIST's test set, whatever file they came in: by the digests of the files they would make."""
    if images.shape != (10_000, 1, 28, 28) or labels.min() < 0 or labels.max() > 9:
        return False
    made = mnist.idx_file(images[:, 0]), mnist.idx_file(labels.astype(np.uint8))
    return [hashlib.sha256(content).hexdigest() for content in made] == list(TEST.values())
