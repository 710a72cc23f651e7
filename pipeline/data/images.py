"""Prepare a picture of a digit as MNIST's were: light on dark, in a 20 × 20 box, centred by mass.

The recipe is the data set's own: http://yann.lecun.com/exdb/mnist/ ("size normalized to fit in a 20x20 pixel box while
preserving their aspect ratio", "centered in a 28x28 image by computing the center of mass of the pixels").
"""

from __future__ import annotations

import itertools
import math

import numpy as np

from pipeline.errors import UsageError

SIDE, BOX = 28, 20
FAINT = (0.04, 0.4)  # of the range between background and stroke: what is paler is paper, not ink; by the paper's noise
SPECK = 0.02  # of the ink of the largest stroke: less is dirt or noise


def prepare(image: np.ndarray, *, as_is: bool = False, name: str = "image") -> np.ndarray:
    """uint8 `[height, width]`, dark on light or light on dark, to uint8 `[28, 28]` as MNIST's.

    What already is so stays as it is. `as_is` changes nothing: UsageError if the image has another size.
    """
    return prepared(image, as_is, name)[0]


def prepared(image: np.ndarray, as_is: bool, name: str) -> tuple[np.ndarray, np.ndarray | None]:
    """As `prepare`, and the ink that was found, at the image's own size; None where it wasn't looked for."""
    if as_is and image.shape != (SIDE, SIDE):
        raise UsageError(f"{name}: is {image.shape[1]} × {image.shape[0]}: --as-is expects {SIDE} × {SIDE} pixels")
    if as_is or _as_mnist(image):
        return image, None
    ink = _ink(image)
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    if not len(rows):
        return np.zeros((SIDE, SIDE), np.uint8), ink
    return _centred(_boxed(ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])), ink


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
    background, noise = _paper(grey)
    grey = grey - background
    dark, light = -np.percentile(grey, 0.5), np.percentile(grey, 99.5)
    away = -grey if dark > light else grey
    # A thin stroke on a large sheet is under half a percent of it.
    reach = max(dark, light, float(away.max()) * 0.5)
    if reach < max(16, 6 * noise):
        return np.zeros_like(grey)
    ink = np.clip(away / reach, 0, 1)
    return _strokes(np.where(ink < np.clip(4 * noise / reach, *FAINT), 0, ink))


def _paper(grey: np.ndarray) -> tuple[np.ndarray, float]:
    """The background and its noise: a plane through the margin, since light falls from a side."""
    height, width = grey.shape
    edge = np.ones(grey.shape, bool)
    edge[1:-1, 1:-1] = False
    rows, columns = np.nonzero(edge)
    places = np.stack([rows / height, columns / width, np.ones(len(rows))], axis=1)
    margin = grey[edge]
    off = margin - np.median(margin)
    noise, plane = _deviation(off), np.array([0.0, 0.0, float(np.median(margin))])
    for _ in range(4):
        near = np.abs(off) <= max(3 * noise, 2)
        if near.mean() < 0.5:
            break
        plane = np.linalg.lstsq(places[near], margin[near], rcond=None)[0]
        off = margin - places @ plane
        noise = _deviation(off)
    across = plane[0] * np.arange(height)[:, None] / height + plane[1] * np.arange(width)[None, :] / width
    return across + plane[2], noise


def _deviation(off: np.ndarray) -> float:
    return 1.4826 * float(np.median(np.abs(off)))  # a normal distribution's standard deviation


def several(ink: np.ndarray) -> bool:
    """Whether two strokes, neither small, stand side by side with a gap between."""
    from scipy import ndimage

    parts, _ = ndimage.label(ink > 0, np.ones((3, 3)))
    places = ndimage.find_objects(parts)
    weights = np.bincount(parts.ravel(), ink.ravel())[1:]
    large = sorted(
        (columns.start, columns.stop)
        for (_, columns), weight in zip(places, weights, strict=True)
        if weight >= 0.3 * weights.max()
    )
    gap = 0.05 * ink.shape[1]
    return any(right[0] - left[1] > max(gap, 3) for left, right in itertools.pairwise(large))


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
