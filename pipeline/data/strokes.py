"""Find strokes on a grey picture, and which of them are a digit together.

A stroke is what is darker or lighter than what surrounds it, and narrow: by the bottom-hat and top-hat transforms
(Meyer 1979; `cv2.morphologyEx`). So a shadow, a desk beside the paper and light from a side, all wider, count for
nothing. They are taken with squares of several widths, since for a large one the paper beside a digit is narrow, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

REACHES = (0.35, 0.15, 0.06)  # of the shorter side: squares that strokes are narrower than
FAINTEST = 10  # levels of 255 between stroke and paper: less is no ink
OUTLINE = 0.8  # of a stroke's outline must be an edge
MOST = 100  # strokes looked at
LEAST = 5  # pixels: no digit is lower
WIDE, PIECES = "touching digits?", "one digit in pieces, or several?"


@dataclass(eq=False)
class Stroke:
    """Connected ink: its box (left, top, right, bottom), what it lies on, and 1 if it is darker than that, else -1."""

    box: tuple[int, ...]
    sign: int
    paper: np.ndarray  # float32 [height, width], of the whole picture
    ink: float  # the sum of its pixels' differences from the paper
    thickness: float
    long: bool  # as a line is, and no hole
    square: bool  # fills a rectangle, if holes are filled
    frame: bool  # and is a line around most of the picture
    labels: list[int] = field(default_factory=list)
    remark: str | None = None

    @property
    def width(self) -> int:
        return self.box[2] - self.box[0]

    @property
    def height(self) -> int:
        return self.box[3] - self.box[1]

    def within(self, other: Stroke) -> bool:
        """Tell whether its box lies in another's."""
        return all(mine >= its for mine, its in zip(self.box[:2], other.box[:2], strict=True)) and all(
            mine <= its for mine, its in zip(self.box[2:], other.box[2:], strict=True)
        )

    def gap(self, other: Stroke) -> int:
        """Return how many pixels two boxes are apart; below 0, they overlap."""
        return max(max(self.box[n], other.box[n]) - min(self.box[n + 2], other.box[n + 2]) for n in (0, 1))

    def join(self, other: Stroke) -> None:
        """Take another stroke into this one."""
        self.box = (*map(min, self.box[:2], other.box[:2]), *map(max, self.box[2:], other.box[2:]))
        self.labels += other.labels


def find(grey: np.ndarray, noise: float) -> tuple[np.ndarray, list[Stroke]]:
    """Return labels int32 `[height, width]` and strokes: those that are darker than the paper, or the lighter ones.

    `grey` is uint8 `[height, width]`, `noise` its standard deviation. Of dark and light, it is what has the longer
    lines: between two dark strokes is something light, too.
    """
    import cv2

    labels: dict[int, np.ndarray] = {sign: np.zeros(grey.shape, np.int32) for sign in (1, -1)}
    strokes: list[Stroke] = []
    for reach in (int(share * min(grey.shape)) | 1 for share in REACHES):
        if reach < 5:
            continue
        wide = cv2.copyMakeBorder(grey, reach, reach, reach, reach, cv2.BORDER_REPLICATE)
        for sign, way in ((1, cv2.MORPH_CLOSE), (-1, cv2.MORPH_OPEN)):
            paper = cv2.morphologyEx(wide, way, np.ones((reach, reach), np.uint8))[reach:-reach, reach:-reach]
            paper = paper - np.median(paper - grey.astype(np.float32))  # it follows the noise's peaks
            for at, own, stroke in _on(paper, grey, sign, noise):
                if (labels[sign][at][own] > 0).mean() < 0.5:  # else it was found with a wider square
                    strokes.append(stroke)
                    stroke.labels.append(len(strokes))
                    labels[sign][at][own] = len(strokes)
    strokes = [each for each in strokes if not each.frame and not any(_bears(each, other) for other in strokes)]
    lengths = {1: 0.0, -1: 0.0}
    for each in strokes:
        if not any(other.sign != each.sign and each.within(other) for other in strokes):  # a hole is within a digit
            lengths[each.sign] += each.ink / each.thickness**1.5
    sign = 1 if lengths[1] >= lengths[-1] else -1
    return labels[sign], [each for each in strokes if each.sign == sign]


def _bears(sheet: Stroke, digit: Stroke) -> bool:
    """Tell whether one is a narrow sheet and the other a digit on it."""
    inside = sheet.square and digit.sign != sheet.sign and digit.within(sheet) and digit.height >= 0.02 * sheet.height
    return inside and digit.long and digit.thickness < sheet.thickness


def _on(paper: np.ndarray, grey: np.ndarray, sign: int, noise: float) -> Iterator[tuple[Any, np.ndarray, Stroke]]:
    """Yield slices, a mask in them and the stroke, for all connected ink whose outline is an edge of the picture."""
    import cv2

    hat = np.clip(sign * (paper - grey), 0, None)
    seven = np.ones((7, 7), np.uint8)
    even = cv2.dilate(paper, seven) - cv2.erode(paper, seven)
    mask = np.zeros(grey.shape, np.uint8)
    for at, own in _components(hat > max(FAINTEST / 2, 5 * noise)):
        if (strong := strength(hat[at][own])) >= max(FAINTEST, 6 * noise):
            mask[at] |= own & (hat[at] > 0.3 * strong)
    for at, own in _components(mask):
        (top, left), (height, width) = (each.start for each in at), own.shape
        pad = max(9, max(height, width) // 6)
        y, x = max(0, top - pad), max(0, left - pad)
        around = np.s_[y : top + height + pad, x : left + width + pad]
        near, there = grey[around].astype(np.float32), np.zeros(grey[around].shape, np.uint8)
        there[top - y :, left - x :][:height, :width] = own
        outline = cv2.dilate(there, np.ones((5, 5), np.uint8)) > there
        # In a ribbon, the mean distance from the edge is a quarter of its width.
        thickness = 4 * float(cv2.distanceTransform(there, cv2.DIST_L2, 3)[there > 0].mean()) - 1
        strong, window = strength(hat[at][own]), np.ones((pad, pad), np.uint8)
        near = cv2.blur(near, (2 * int(thickness / 10) + 1,) * 2)  # else noise on a slope in the light is an edge
        edge = cv2.dilate(near, window) - cv2.erode(near, window) > 0.5 * strong
        edge &= sign * (near - np.median(near[there > 0])) > 0.3 * strong
        edge &= even[around] < 0.3 * strong  # where only the transform ends, the paper jumps
        if edge[outline].mean() < OUTLINE:
            continue
        hull = cv2.convexHull(cv2.findNonZero(there))
        full, area = max(float(np.prod(cv2.minAreaRect(hull)[1])), 1), float(own.sum())
        square = cv2.contourArea(hull) > 0.9 * full
        frame = square and area < 0.3 * full and min(height / grey.shape[0], width / grey.shape[1]) > 0.5
        ink, box = float(hat[at][own].sum()), (left, top, left + width, top + height)
        yield at, own, Stroke(box, sign, paper, ink, thickness, area > 3 * thickness**2, square, frame)


def _components(mask: np.ndarray) -> Iterator[tuple[tuple[slice, slice], np.ndarray]]:
    """Yield the largest connected components: slices, and a mask in them."""
    import cv2

    _, labels, boxes, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    for number in np.argsort(-boxes[1:, 4])[:MOST] + 1:
        left, top, width, height = (int(each) for each in boxes[number][:4])
        at = np.s_[top : top + height, left : left + width]
        yield at, labels[at] == number


def strength(ink: np.ndarray) -> float:
    """Return how strong ink is where there is most: its mean, weighted by itself."""
    return float((ink * ink).sum() / max(float(ink.sum()), 1e-9))


def grouped(strokes: list[Stroke]) -> tuple[list[Stroke], int]:
    """Join strokes to digits: small ones to a large one near by. Return digits, as one reads, and how many are none."""
    digits: list[Stroke] = []
    for each in sorted(strokes, key=lambda each: -each.height):
        for digit in digits:
            piece = each.height < 0.5 * digit.height
            if each.gap(digit) < (
                0.25 * max(digit.height, digit.width) if piece else -0.1 * min(each.height, each.width)
            ):
                digit.join(each)
                break
            if each.height < 0.7 * digit.height and each.gap(digit) < 0.15 * digit.height:
                digit.remark = each.remark = PIECES
        else:
            digits.append(each)
    tallest = max((each.height for each in digits), default=0)
    chosen = [each for each in digits if each.height >= max(LEAST, 0.4 * tallest) and each.width < 2.5 * each.height]
    others = [each for each in digits if each not in chosen]
    for each in chosen:
        each.remark = each.remark or (WIDE if each.width > 1.6 * each.height else None)
    return _read(chosen), sum(
        each.height >= max(LEAST - 1, 0.05 * tallest) or each.width > 0.3 * tallest for each in others
    )


def _read(digits: list[Stroke]) -> list[Stroke]:
    """Sort into rows from the top, each from the left; in a row, each overlaps the one before by half or more."""
    rows: list[list[Stroke]] = []
    for each in sorted(digits, key=lambda each: each.box[1] + each.box[3]):
        other = rows[-1][-1] if rows else each
        shared = min(each.box[3], other.box[3]) - max(each.box[1], other.box[1])
        if rows and shared >= 0.5 * min(each.height, other.height):
            rows[-1].append(each)
        else:
            rows.append([each])
    return [each for row in rows for each in sorted(row, key=lambda each: each.box[0])]
