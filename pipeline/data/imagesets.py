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

HOLD_OUT_SEED = 2026  # the same images are held out whatever the training's seed
NAMES = {"train": "training set", "test": "test set"}


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
        values = self.images[:, 0] if self.images.shape[1] == 1 else self.images
        labels = self.labels.astype(np.uint8 if self.labels.max(initial=0) < 256 else ">i4")
        digests = {}
        for name, array in (("images", values), ("labels", labels)):
            typed = array if array.dtype == np.uint8 else array.astype(np.int32)
            sha = hashlib.sha256(idx.header(typed))
            sha.update(np.ascontiguousarray(array).data)
            digests[f"{self.part}-{name}"] = sha.hexdigest()
        return digests


def load(source: str, part: str, shape: Sequence[int], classes: Sequence[str]) -> ImageSet:
    """The training or test images ("train", "test") of a source, for a model with this input and these classes.

    Raises UsageError where the source has no such part, or images or labels do not fit the model.
    """
    images, labels, name = sources.read(str(source), part, tuple(shape), tuple(classes))
    return _checked(ImageSet(name, part, *_arrays(name, images, labels, tuple(shape))), shape, classes)


def has_training_images(source: str) -> bool:
    """Whether a source has training images that can be read without fetching anything."""
    return sources.has_part(str(source), "train")


def split(
    source: str, shape: Sequence[int], classes: Sequence[str], hold_out: int, limit: int | None
) -> tuple[ImageSet, ImageSet]:
    """What to train on and what to measure on.

    That is the training images (the first `limit` of them) and the test set, or, with `hold_out`, the rest of the
    training images and so many held out, always the same ones.
    """
    images = load(source, "train", shape, classes)
    if not hold_out:
        return _part(images, slice(limit)), load(source, "test", shape, classes)
    if hold_out >= len(images):
        raise UsageError(f"--hold-out {hold_out}: expected fewer than the {len(images)} images of {images.name}")
    order = np.random.default_rng(HOLD_OUT_SEED).permutation(len(images))
    kept, held = order[:-hold_out], order[-hold_out:]
    held_out = _part(images, held, name=f"{hold_out} held-out images, {images.name}", part="held-out")
    return _part(images, kept[:limit]), held_out


def _part(images: ImageSet, which: Any, **changes: str) -> ImageSet:
    return dataclasses.replace(images, images=images.images[which], labels=images.labels[which], **changes)


def _arrays(name: str, images: np.ndarray, labels: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Images with their channels first, labels as int64."""
    if images.ndim == 3:
        images = images[:, None]
    elif images.ndim == 4 and images.shape[1:] != shape and images.shape[1:] == (*shape[1:], shape[0]):
        images = images.transpose(0, 3, 1, 2)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise UsageError(f"{name}: labels are {labels.dtype} {list(labels.shape)}: expected integers [n]")
    return np.ascontiguousarray(images), labels.astype(np.int64)


def _checked(images: ImageSet, shape: Sequence[int], classes: Sequence[str]) -> ImageSet:
    """The set, named as MNIST where it is MNIST. UsageError if it does not fit a model."""
    pixels, labels = images.images, images.labels
    if pixels.dtype != np.uint8 or list(pixels.shape[1:]) != list(shape):
        raise UsageError(
            f"{images.name}: images are {pixels.dtype} {list(pixels.shape)}: expected uint8 [n, "
            f"{', '.join(map(str, shape))}]"
        )
    if not len(pixels) or len(labels) != len(pixels):
        raise UsageError(
            f"{images.name}: has {len(pixels)} images and {len(labels)} labels: expected as many, 1 or more"
        )
    if labels.min() < 0 or labels.max() >= len(classes):
        raise UsageError(
            f"{images.name}: labels go from {labels.min()} to {labels.max()}: expected 0 to {len(classes) - 1}"
        )
    known = list(images.digests.values()) == [mnist.FILES[each] for each in mnist.names(images.part)]
    return dataclasses.replace(images, name=f"MNIST {NAMES[images.part]}") if known else images


def spoilt(images: ImageSet, sources: Iterable[str], shape: Sequence[int], classes: Sequence[str]) -> list[str]:
    """Reasons why a set is invalid for testing: images in it twice, or images of these sources' training sets.

    Says on stderr if no source has training images to compare with. Nothing is fetched for it.
    """
    rows, reasons = _rows(images.images), []
    if twice := len(rows) - len(np.unique(rows)):
        reasons.append(f"{images.name}: {twice} of {len(rows)} images are in it more than once: expected each once")
    readable = [source for source in dict.fromkeys(sources) if has_training_images(source)]
    if not readable:
        console.say(f"{images.name}: not compared with training images: there are none here")
    for source in readable:
        seen = load(source, "train", shape, classes)
        if known := int(np.isin(rows, _rows(seen.images)).sum()):
            reasons.append(f"{images.name}: {known} of {len(rows)} images are also in {seen.name}: expected none")
    return reasons


def _rows(images: np.ndarray) -> np.ndarray:
    """Each image as one value that can be compared with others."""
    flat = np.ascontiguousarray(images.reshape(len(images), -1))
    return flat.view(f"V{flat.shape[1]}").ravel()


def pack(images: ImageSet) -> bytes:
    """A set as a small `.npz` that `load` reads, the same bytes for the same images."""
    file = io.BytesIO()
    kind = np.uint8 if images.labels.max() < 256 else np.int32
    values = images.images[:, 0] if images.images.shape[1] == 1 else images.images
    np.savez_compressed(file, images=values, labels=images.labels.astype(kind))
    return file.getvalue()
