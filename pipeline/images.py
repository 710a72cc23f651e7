"""Anyone's picture of a digit in, pixels as MNIST has them out: light on dark, in a 20 × 20 box, centred by mass.

The recipe is the data set's own: http://yann.lecun.com/exdb/mnist/ ("size normalized to fit in a 20x20 pixel box while
preserving their aspect ratio", "centered in a 28x28 image by computing the center of mass of the pixels").
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline import dataset
from pipeline.errors import UsageError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm")
SIDE, BOX = 28, 20
FAINT = (0.04, 0.4)  # of the range between background and stroke: what is paler is paper, not ink; by the paper's noise
SPECK = 0.02  # of the ink of the largest stroke: less is dirt or noise
LARGEST = 50_000_000  # pixels: a photograph has fewer


@dataclass(frozen=True)
class Picture:
    """One picture: where it is from, its pixels as the model takes them, and its label where that is known."""

    name: str
    pixels: np.ndarray  # uint8 [28, 28]
    label: str | None


def find(paths: tuple[Path, ...], classes: list[str], as_is: bool) -> Iterator[Picture]:
    """The pictures in files and folders, in order of their names; a folder named as a class labels what is in it.

    Raises UsageError for what is no picture, and for a folder without any.
    """
    for path in paths:
        if not path.exists():
            raise UsageError(f"{path}: no such file or folder")
        files = sorted(filter(_is_picture, path.rglob("*"))) if path.is_dir() else [path]
        if not files:
            raise UsageError(f"{path}: has no picture in it: expected {', '.join(SUFFIXES)} or *idx3-ubyte")
        for file in files:
            if "ubyte" in file.name:
                yield from _idx(file, as_is)
                continue
            label = file.parent.name if path.is_dir() and file.parent.name in classes else None
            yield Picture(str(file), prepare(read(file), as_is=as_is, name=str(file)), label)


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES or path.name.endswith(("idx3-ubyte", "idx3-ubyte.gz"))


def _idx(path: Path, as_is: bool) -> Iterator[Picture]:
    """The images of an IDX file; with labels where `*labels-idx1-ubyte` lies beside it."""
    labels = path.with_name(path.name.replace("images", "labels").replace("idx3", "idx1"))
    if labels != path and labels.is_file():
        found = dataset.test(path)
        pixels, names = found.images[:, 0], [str(label) for label in found.labels]
    else:
        pixels = dataset.idx(path)
        if pixels.ndim != 3:
            raise UsageError(f"{path}: expected images [n, height, width], received {list(pixels.shape)}")
        names = [None] * len(pixels)
    for number, (image, name) in enumerate(zip(pixels, names, strict=True)):
        yield Picture(f"{path}[{number}]", prepare(image, as_is=as_is, name=f"{path}[{number}]"), name)


def read(path: Path) -> np.ndarray:
    """A picture as uint8 `[height, width]`, upright, in grey, what is transparent white. UsageError if it is none."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as file:
            if file.width * file.height > LARGEST:
                raise UsageError(f"{path}: has {file.width} × {file.height} pixels: expected {LARGEST:,} at most")
            picture = ImageOps.exif_transpose(file)
            if picture.mode.startswith(("I", "F")):
                return _stretched(np.asarray(picture, np.float64))
            if "A" in picture.getbands() or "transparency" in picture.info:
                picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture.convert("RGBA"))
            return np.asarray(picture.convert("L"))
    except UsageError:
        raise
    except Exception as error:  # decoders of damaged files fail in any way: struct.error, SyntaxError, zlib.error...
        line = " ".join(str(error).split())[:150] or type(error).__name__
        raise UsageError(f"{path}: expected a picture: {line}") from error


def prepare(image: np.ndarray, *, as_is: bool = False, name: str = "image") -> np.ndarray:
    """uint8 `[height, width]`, dark on light or light on dark, to uint8 `[28, 28]` as MNIST's.

    What already is so stays as it is. `as_is` changes nothing: UsageError if the image has another size.
    """
    if as_is and image.shape != (SIDE, SIDE):
        raise UsageError(f"{name}: is {image.shape[1]} × {image.shape[0]}: --as-is expects {SIDE} × {SIDE} pixels")
    if as_is or _as_mnist(image):
        return image
    ink = _ink(image)
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    if not len(rows):
        return np.zeros((SIDE, SIDE), np.uint8)
    return _centred(_boxed(ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]))


def _as_mnist(image: np.ndarray) -> bool:
    """Whether it is 28 × 28, light on black, with its centre of mass in the middle, as all 70,000 MNIST images are."""
    if image.shape != (SIDE, SIDE) or not image.any():
        return False
    margin = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    middle = (SIDE - 1) / 2
    return float(np.median(margin)) < 16 and all(abs(centre - middle) < 1 for centre in _mass(image))


def _ink(image: np.ndarray) -> np.ndarray:
    """How much ink is where, float64 0 to 1: the background is what the margin has, the stroke what differs most."""
    grey = image.astype(np.float64)
    margin = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    background = float(np.median(margin))
    noise = 1.4826 * float(np.median(np.abs(margin - background)))  # a normal distribution's standard deviation
    dark, light = background - np.percentile(grey, 0.5), np.percentile(grey, 99.5) - background
    away = background - grey if dark > light else grey - background
    # A thin stroke on a large sheet is under half a percent of it.
    reach = max(dark, light, float(away.max()) * 0.5)
    if reach < max(16, 6 * noise):
        return np.zeros_like(grey)
    ink = np.clip(away / reach, 0, 1)
    return _strokes(np.where(ink < np.clip(4 * noise / reach, *FAINT), 0, ink))


def _strokes(ink: np.ndarray) -> np.ndarray:
    """Without specks: what is connected, and has at least a fiftieth of the ink that the largest such part has."""
    from scipy import ndimage

    parts, count = ndimage.label(ink > 0, np.ones((3, 3)))
    if count < 2:
        return ink
    weights = np.bincount(parts.ravel(), ink.ravel())
    return np.where((weights >= SPECK * weights[1:].max())[parts], ink, 0)


def _boxed(ink: np.ndarray) -> np.ndarray:
    """Scaled into the box, aspect kept, each new pixel the mean of what it covers."""
    from PIL import Image

    scale = BOX / max(ink.shape)
    size = tuple(max(1, round(edge * scale)) for edge in ink.shape[::-1])
    way = Image.Resampling.BOX if scale < 1 else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(ink.astype(np.float32)).resize(size, way))


def _centred(box: np.ndarray) -> np.ndarray:
    """Put into 28 × 28 with the centre of mass in the middle, as far as the box stays inside."""
    strokes = np.rint(255 * box / max(float(box.max()), 1e-9)).astype(np.uint8)
    middle, placed = (SIDE - 1) / 2, np.zeros((SIDE, SIDE), np.uint8)
    start = []
    for centre, edge in zip(_mass(strokes), strokes.shape, strict=True):
        start.append(min(max(math.floor(middle - centre + 0.5), 0), SIDE - edge))
    placed[start[0] : start[0] + strokes.shape[0], start[1] : start[1] + strokes.shape[1]] = strokes
    return placed


def _mass(image: np.ndarray) -> tuple[float, float]:
    weights = image.astype(np.float64)
    total = weights.sum()
    return tuple(float((weights.sum(1 - axis) * np.arange(weights.shape[axis])).sum() / total) for axis in (0, 1))


def _stretched(values: np.ndarray) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    return np.rint(255 * (values - low) / max(high - low, 1e-9)).astype(np.uint8)
