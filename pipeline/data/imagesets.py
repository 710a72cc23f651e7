"""Labelled image sets as numpy arrays, from any of the sources in `pipeline.data.sources`, checked."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline import console
from pipeline.data import idx, mnist, sources
from pipeline.errors import UsageError

MNIST = {"train": "MNIST training set", "test": "MNIST test set"}
HOLD_OUT_SEED = 2026  # the same images are held out whatever the training's seed


@dataclass(frozen=True)
class ImageSet:
    """uint8 images `[n, channels, height, width]` and int64 labels `[n]`; `part` is "train", "test" or "held-out"."""

    name: str
    part: str
    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @functools.cached_property
    def digests(self) -> dict[str, str]:
        """sha256 of images and labels as IDX files: for MNIST's sets, those of the published files."""
        digests = {}
        for name, array in zip(("images", "labels"), self.compact(), strict=True):
            sha = hashlib.sha256(idx.header(array))
            sha.update(np.ascontiguousarray(array, array.dtype.newbyteorder(">")).data)
            digests[f"{self.part}-{name}"] = sha.hexdigest()
        return digests

    def compact(self) -> tuple[np.ndarray, np.ndarray]:
        """Return images without the axis of a single channel, and labels as uint8 or, where needed, int32."""
        images = self.images[:, 0] if self.images.shape[1] == 1 else self.images
        return images, self.labels.astype(np.uint8 if self.labels.max(initial=0) < 256 else np.int32)


def load(source: str, part: str, shape: Sequence[int], classes: Sequence[str]) -> ImageSet:
    """Load a source's training or test images ("train", "test") for a model with this input and these classes.

    Images may come as `[n, h, w]`, channels first or channels last. MNIST is named so wherever it was found. Raises
    UsageError if the source has no such part, or if images or labels do not fit the model.
    """
    images, labels, name = sources.read(source, part, shape, classes)
    where, (channels, height, width) = f"--data {source}, {part} images", shape
    if images.ndim == 3:
        images = images[:, None]
    elif images.shape[1:] == (height, width, channels) != tuple(shape):
        images = images.transpose(0, 3, 1, 2)
    if images.dtype != np.uint8 or images.shape[1:] != tuple(shape):
        expected = f"expected uint8 [n, {channels}, {height}, {width}] or [n, {height}, {width}, {channels}]"
        raise UsageError(f"{where}: images are {images.dtype} {list(images.shape)}: {expected}")
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise UsageError(f"{where}: labels are {labels.dtype} {list(labels.shape)}: expected integers [n]")
    if not len(images) or len(labels) != len(images):
        raise UsageError(f"{where}: has {len(images)} images and {len(labels)} labels: expected as many, 1 or more")
    if labels.min() < 0 or labels.max() >= len(classes):
        raise UsageError(f"{where}: labels go from {labels.min()} to {labels.max()}: expected 0 to {len(classes) - 1}")
    loaded = ImageSet(name, part, np.ascontiguousarray(images), labels.astype(np.int64))
    if list(loaded.digests.values()) != [mnist.FILES[each] for each in mnist.names(part)]:
        return loaded
    return dataclasses.replace(loaded, name=MNIST[part])


def split(
    source: str, shape: Sequence[int], classes: Sequence[str], hold_out: int, limit: int | None
) -> tuple[ImageSet, ImageSet]:
    """Load what to train on and what to measure on.

    That is the training images (the first `limit` of them) and the test set, or, with `hold_out`, the rest of the
    training images and so many held out, always the same ones.
    """
    images = load(source, "train", shape, classes)
    if not hold_out:
        return _subset(images, slice(limit)), load(source, "test", shape, classes)
    if hold_out >= len(images):
        raise UsageError(f"--hold-out {hold_out}: expected fewer than the {len(images)} images of {images.name}")
    order = np.random.default_rng(HOLD_OUT_SEED).permutation(len(images))
    kept, held = order[:-hold_out], order[-hold_out:]
    held_out = _subset(images, held, name=f"{hold_out} held-out images, {images.name}", part="held-out")
    return _subset(images, kept[:limit]), held_out


def _subset(images: ImageSet, which: Any, **changes: str) -> ImageSet:
    return dataclasses.replace(images, images=images.images[which], labels=images.labels[which], **changes)


def spoilt(images: ImageSet, trained_on: Iterable[str], shape: Sequence[int], classes: Sequence[str]) -> list[str]:
    """Return reasons why a set is invalid for testing: images in it twice, or images of these sources' training sets.

    Nothing is fetched for it. If no source has training images to compare with, a remark on stderr says so.
    """
    rows, reasons = _rows(images), []
    if repeated := len(rows) - len(np.unique(rows)):
        reasons.append(f"{images.name}: {repeated} of {len(rows)} images are in it more than once: expected each once")
    readable = [source for source in dict.fromkeys(trained_on) if sources.has_training_images(source)]
    if not readable:
        console.say(f"{images.name}: not compared with training images: none found")
    for source in readable:
        trained = load(source, "train", shape, classes)
        if shared := _shared(images, trained):
            reasons.append(f"{images.name}: {shared} of {len(rows)} images are also in {trained.name}: expected none")
    return reasons


def remark_shared(images: ImageSet, trained: ImageSet) -> None:
    """Say on stderr how many images that a model is measured on are among those that it is trained on, if any are."""
    if shared := _shared(images, trained):
        console.say(f"{images.name}: {shared} of {len(images)} {images.part} images are among the training images")


def _shared(images: ImageSet, trained: ImageSet) -> int:
    return int(np.isin(_rows(images), _rows(trained)).sum())


def _rows(images: ImageSet) -> np.ndarray:
    """Return each image as one value that can be compared with others."""
    flat = np.ascontiguousarray(images.images.reshape(len(images), -1))
    return flat.view(f"V{flat.shape[1]}").ravel()


def pack(images: ImageSet) -> bytes:
    """Return a set as a small `.npz` that `load` reads, the same bytes for the same images."""
    file = io.BytesIO()
    pixels, labels = images.compact()
    np.savez_compressed(file, images=pixels, labels=labels)
    return file.getvalue()
