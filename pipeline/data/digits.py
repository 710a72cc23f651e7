"""Prepare a picture of a digit as MNIST's were: light on dark, in a 20 × 20 box, centred by mass.

The recipe is the data set's own: http://yann.lecun.com/exdb/mnist/ ("size normalized to fit in a 20x20 pixel box while
preserving their aspect ratio", "centered in a 28x28 image by computing the center of mass of the pixels").
"""

from __future__ import annotations

import itertools
import math

import numpy as np

SIDE, BOX = 28, 20
FAINT = (0.04, 0.4)  # of the range between background and stroke: what is paler is paper, not ink; by the paper's noise
SPECK = 0.02  # of the ink of the largest stroke: less is dirt or noise
LARGE = 0.3  # of the ink of the largest stroke: as much may be a digit of its own


def prepare(image: np.ndarray) -> tuple[np.ndarray, bool]:
    """Convert uint8 `[height, width]`, dark on light or light on dark, to uint8 `[28, 28]` as MNIST's.

    An image that looks like MNIST's is returned unchanged; one without ink becomes all zeros. The second value tells
    whether the picture seems to show several digits.
    """
    if _is_as_mnist(image):
        return image, False
    ink, several = _without_specks(_ink(image))
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    if not len(rows):
        return np.zeros((SIDE, SIDE), np.uint8), False
    return _centred(_boxed(ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])), several


def _is_as_mnist(image: np.ndarray) -> bool:
    """Tell whether it is 28 × 28, light on black, its centre of mass in the middle, as all 70,000 MNIST images are."""
    from scipy import ndimage

    if image.shape != (SIDE, SIDE) or not image.any():
        return False
    margin = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    centred = all(abs(centre - (SIDE - 1) / 2) < 1 for centre in ndimage.center_of_mass(image))
    return float(np.median(margin)) < 16 and centred


def _ink(image: np.ndarray) -> np.ndarray:
    """Return how much ink is where, float64 0 to 1: the background is the margin's, the stroke what differs most."""
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
    return np.where(ink < np.clip(4 * noise / reach, *FAINT), 0, ink)


def _paper(grey: np.ndarray) -> tuple[np.ndarray, float]:
    """Fit the background and its noise: a plane through the margin, since light falls from a side."""
    height, width = grey.shape
    edge = np.ones(grey.shape, bool)
    edge[1:-1, 1:-1] = False
    rows, columns = np.nonzero(edge)
    places = np.stack([rows / height, columns / width, np.ones(len(rows))], axis=1)
    margin = grey[edge]
    plane = np.array([0.0, 0.0, float(np.median(margin))])
    for fits in range(5):
        off = np.abs(margin - places @ plane)
        noise = 1.4826 * float(np.median(off))  # a normal distribution's standard deviation
        near = off <= max(3 * noise, 2)
        if fits == 4 or near.mean() < 0.5:
            break
        plane = np.linalg.lstsq(places[near], margin[near], rcond=None)[0]
    across = plane[0] * np.arange(height)[:, None] / height + plane[1] * np.arange(width)[None, :] / width
    return across + plane[2], noise


def _without_specks(ink: np.ndarray) -> tuple[np.ndarray, bool]:
    """Remove specks, and tell whether two large strokes stand side by side with a gap between."""
    from scipy import ndimage

    strokes, count = ndimage.label(ink > 0, np.ones((3, 3)))
    if count < 2:
        return ink, False
    weights = np.bincount(strokes.ravel(), ink.ravel())  # the background's, first, is 0
    spans = sorted(
        (columns.start, columns.stop)
        for (_, columns), weight in zip(ndimage.find_objects(strokes), weights[1:], strict=True)
        if weight >= LARGE * weights.max()
    )
    gap = max(0.05 * ink.shape[1], 3)
    several = any(right[0] - left[1] > gap for left, right in itertools.pairwise(spans))
    return np.where((weights >= SPECK * weights.max())[strokes], ink, 0), several


def _boxed(ink: np.ndarray) -> np.ndarray:
    """Scale ink into the box, aspect kept, each new pixel the mean of what it covers; the result is uint8."""
    from PIL import Image

    scale = BOX / max(ink.shape)
    size = tuple(max(1, round(edge * scale)) for edge in ink.shape[::-1])
    way = Image.Resampling.BOX if scale < 1 else Image.Resampling.BILINEAR
    box = np.asarray(Image.fromarray(ink.astype(np.float32)).resize(size, way))
    return np.rint(255 * box / max(float(box.max()), 1e-9)).astype(np.uint8)


def _centred(box: np.ndarray) -> np.ndarray:
    """Pad to 28 × 28 with the centre of mass in the middle, as far as the box stays inside."""
    from scipy import ndimage

    margins = []
    for centre, edge in zip(ndimage.center_of_mass(box), box.shape, strict=True):
        before = min(max(math.floor((SIDE - 1) / 2 - centre + 0.5), 0), SIDE - edge)
        margins.append((before, SIDE - edge - before))
    return np.pad(box, margins)
