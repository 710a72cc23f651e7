"""Find handwritten digits in a picture and prepare each as MNIST's were: light on dark, in a 20 × 20 box, centred.

The recipe is the data set's own: http://yann.lecun.com/exdb/mnist/ ("size normalized to fit in a 20x20 pixel box while
preserving their aspect ratio", "centered in a 28x28 image by computing the center of mass of the pixels").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from pipeline.data import strokes

SIDE, BOX = 28, 20
WORK = 1000  # pixels: strokes are looked for on a copy whose longer side has at most so many
STRIP = 1 << 20  # pixels that are reduced at once
FINE = 100  # pixels: a digit is cut out of the picture itself, reduced to at most so many, then put into the box
SPECK = 0.04  # of the shorter side: lower digits are looked for in every mix of the colours
FAINT = (0.1, 0.4)  # of the stroke's ink: what is paler is none; by the noise
NONE, SEVERAL = "no digit found", "several digits?"
EDGE, MARKS = "touches the picture's edge", "other marks beside it"


class Image(Protocol):
    """uint8 `[height, width]` or `[height, width, 3]`: an array, or what can be sliced like one."""

    shape: tuple[int, ...]

    def __getitem__(self, at: Any) -> np.ndarray: ...


@dataclass(frozen=True)
class Digit:
    """A digit as MNIST's, uint8 `[28, 28]`; its box (left, top, right, bottom) in the picture; why it is doubtful."""

    pixels: np.ndarray
    box: tuple[int, ...]
    remark: str | None = None


def find(image: Image, one: bool = False) -> list[Digit]:
    """List the digits of a picture, dark on light or light on dark, in reading order; with `one`, all ink is one digit.

    An image that looks like MNIST's is returned unchanged. A picture without ink gives a single Digit of zeros.
    """
    if image.shape[:2] == (SIDE, SIDE):
        pixels = image[:, :]
        if pixels.ndim == 3 and np.ptp(pixels, axis=2).max() == 0:  # grey, saved as colours
            pixels = np.ascontiguousarray(pixels[..., 0])
        if _is_as_mnist(pixels):
            return [Digit(pixels, (0, 0, SIDE, SIDE))]
    small, times = _reduced(image, WORK)
    tallest, digits, marks = 0, [], 0
    for axis in _mixes(small):  # a coloured frame may stand out more than the ink, of which it then leaves a speck
        level = _noise(grey := _grey(small, axis))
        drawn, found = strokes.find(_calm(grey, level), level * (0.35 if level > 1 else 1))
        chosen, others = strokes.grouped(found)
        if (height := max((each.height for each in chosen), default=0)) > tallest:
            tallest, mix, noise, labels, digits, marks = height, axis, level, drawn, chosen, others
        if tallest >= SPECK * min(small.shape[:2]):
            break
    if not digits:
        return [Digit(np.zeros((SIDE, SIDE), np.uint8), (0, 0, image.shape[1], image.shape[0]), NONE)]
    if one:
        remark = SEVERAL if len(digits) > 1 else digits[0].remark
        for other in digits[1:]:
            digits[0].join(other)
        digits = digits[:1]
        digits[0].remark = remark
    listed = []
    for digit in digits:
        left, top, right, bottom = digit.box
        pad = max(2, max(digit.width, digit.height) // 10)
        at = np.s_[max(0, top - pad) : bottom + pad, max(0, left - pad) : right + pad]
        part, by = _reduced(image[tuple(slice(each.start * times, each.stop * times) for each in at)], FINE)
        ink = _ink(_grey(part, mix), labels, digit, at, noise * times / by)
        edge = EDGE if min(left, top) == 0 or right == small.shape[1] or bottom == small.shape[0] else None
        remark = digit.remark or edge or (MARKS if marks else None)
        listed.append(Digit(_centred(_boxed(ink)), tuple(each * times for each in digit.box), remark))
    return listed


def _is_as_mnist(pixels: np.ndarray) -> bool:
    """Tell whether it is 28 × 28, light on black, its centre of mass in the middle, as all 70,000 MNIST images are."""
    if pixels.shape != (SIDE, SIDE) or pixels.max() < 128:
        return False
    margin = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    return float(np.median(margin)) < 16 and bool(np.abs(_centre(pixels) - (SIDE - 1) / 2).max() < 1)


def _centre(pixels: np.ndarray) -> np.ndarray:
    """Return the centre of mass (y, x)."""
    import cv2

    moments = cv2.moments(pixels)
    return np.array([moments["m01"], moments["m10"]]) / max(moments["m00"], 1e-9)


def _reduced(image: Image, most: int) -> tuple[np.ndarray, int]:
    """Reduce a picture by a whole factor, each pixel the mean of what it covers, strip by strip; and the factor."""
    import cv2

    height, width = image.shape[:2]
    times = max(1, min(-(-max(height, width) // most), height, width))
    strips, wide = [], width // times
    many = max(1, STRIP // (wide * times**2))
    for top in range(0, height - times + 1, many * times):
        rows = min(many, (height - top) // times)
        strip = image[top : top + rows * times, : wide * times]
        strips.append(cv2.resize(strip, (wide, rows), interpolation=cv2.INTER_AREA))
    return np.concatenate(strips), times


def _mixes(small: np.ndarray) -> list[np.ndarray | None]:
    """List mixes of the channels, float32 `[4]` with what is added last: first that in which edges stand out most.

    So equal luminance hides nothing. The ratio of the covariance of edges (Di Zenzo 1986) to that of noise is Fisher's.
    """
    import cv2
    from scipy import linalg

    if small.ndim == 2:
        return [None]
    smooth = cv2.GaussianBlur(small, (0, 0), 2)
    edges = np.concatenate([cv2.Sobel(smooth, cv2.CV_32F, *way).reshape(-1, 3) for way in ((1, 0), (0, 1))])
    steps: np.ndarray = np.diff(small.astype(np.float32), axis=0, append=small[-1:]).reshape(-1, 3)
    rough = steps[(size := np.abs(steps).sum(1)) <= np.median(size)]
    axes = linalg.eigh(edges.T @ edges / len(edges), rough.T @ rough / len(rough) + np.eye(3))[1][:, ::-1]
    axes /= np.linalg.norm(axes, axis=0)
    mixed = small.reshape(-1, 3) @ axes
    scales = np.minimum(1, 255 / np.maximum(np.ptp(mixed, axis=0), 1e-9))
    return list(np.float32(np.vstack([axes, -mixed.min(0)]) * scales).T)


def _grey(pixels: np.ndarray, mix: np.ndarray | None) -> np.ndarray:
    """Mix the channels to uint8 `[height, width]`."""
    return pixels if mix is None else np.clip(np.rint(pixels @ mix[:3] + mix[3]), 0, 255).astype(np.uint8)


def _noise(grey: np.ndarray) -> float:
    """Estimate the noise's standard deviation, by the median of Immerkær's Laplacian (1996)."""
    import cv2

    kernel = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)  # its norm is 6
    return float(np.median(np.abs(cv2.filter2D(grey, cv2.CV_32F, kernel)))) / 0.6745 / 6


def _calm(grey: np.ndarray, noise: float) -> np.ndarray:
    """Blur a noisy picture: about .35 of the noise remain."""
    import cv2

    return cv2.GaussianBlur(grey, (0, 0), 1) if noise > 1 else grey


def _ink(grey: np.ndarray, labels: np.ndarray, digit: strokes.Stroke, at: Any, noise: float) -> np.ndarray:
    """Return a digit's ink float32 `[height, width]`, 0 to 1, cut to where there is some, of a part of the picture."""
    import cv2

    size = grey.shape[::-1]
    own = np.isin(labels[at], digit.labels).astype(np.uint8)
    near = cv2.resize(cv2.dilate(own, np.ones((3, 3), np.uint8)), size, interpolation=cv2.INTER_NEAREST)
    ink = np.clip(digit.sign * (cv2.resize(digit.paper[at], size) - _calm(grey, noise)), 0, None) * near
    ink = np.clip(ink / (strong := strokes.strength(ink)), 0, 1)
    ink[ink < np.clip(2 * noise / strong, *FAINT)] = 0
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _boxed(ink: np.ndarray) -> np.ndarray:
    """Scale ink into the box, aspect kept, each new pixel the mean of what it covers; the result is uint8."""
    import cv2

    scale = BOX / max(ink.shape)
    size = [max(1, round(edge * scale)) for edge in ink.shape[::-1]]
    box = cv2.resize(ink, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    return np.rint(255 * box / max(float(box.max()), 1e-9)).astype(np.uint8)


def _centred(box: np.ndarray) -> np.ndarray:
    """Pad to 28 × 28 with the centre of mass in the middle, as far as the box stays inside."""
    before = np.floor((SIDE - 1) / 2 - _centre(box) + 0.5).astype(int).clip(0, SIDE - np.array(box.shape))
    return np.pad(box, [(start, SIDE - edge - start) for start, edge in zip(before, box.shape, strict=True)])
