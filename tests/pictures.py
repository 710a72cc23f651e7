"""Real MNIST digits drawn onto sheets, and how often `pipeline predict` reads them: `python -m tests.pictures`.

A sheet has a size, one to four digits in a row, a column or a grid, paper and ink of any grey or colour, noise, light
that falls off, and a margin that isn't paper; every other one is a JPEG. The finder was tuned on training images
(`--part train`, other seeds).
"""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import click
import cv2
import numpy as np
from PIL import Image

from pipeline import console
from pipeline.apps import predict
from pipeline.data import imagesets
from tests.support import ROOT, process

CLASSES = tuple("0123456789")
CONFIDENT = 0.9
HELD_OUT = 10_000  # training images, as `pipeline train --hold-out 10000` leaves them out
BANDS = (0, 0.7, 0.9, 0.95, 0.99, 1.01)  # of probability, for how many answers in each are wrong
VERDICTS = ("right", "remarked", "unsure", "wrong")
HEADS = ["right", "else remarked", "else under 90 %", "confidently wrong", "right, yet remarked"]


@dataclass
class Sheet:
    """A drawn sheet: uint8 `[height, width, 3]`; its digits in reading order, with their centres (x, y); what it is."""

    image: np.ndarray
    digits: str
    centres: list[tuple[float, float]]
    traits: dict[str, str | int]


def draw(images: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> Sheet:
    """Draw a sheet with digits out of uint8 `[n, 28, 28]`, all else by chance."""
    side = int(np.exp(rng.uniform(np.log(400), np.log(4000))))
    height, width = (int(side * factor) for factor in rng.permutation([1, rng.uniform(0.7, 1)]))
    margin = rng.choice(["none", "desk", "letterbox", "frame"], p=[0.6, 0.15, 0.1, 0.15])
    paper, corners = _paper(height, width, margin, rng)
    cells, layout = _cells(corners, rng)
    ink, centres, digits = np.zeros((height, width), np.float32), [], ""
    for left, top, size in cells:
        chosen = int(rng.integers(len(images)))
        drawn = cv2.resize(images[chosen], (size, size), interpolation=cv2.INTER_CUBIC).astype(np.float32) / 255
        ink[top : top + size, left : left + size] = np.clip(drawn, 0, 1)
        centres.append((left + size / 2, top + size / 2))
        digits += str(labels[chosen])
    tones, kind = _tones(rng)
    levels = np.empty((height, width, 3), np.float32)
    for channel in range(3):  # [paper, ink, beside the paper]
        on, pen, off = (tone[channel] for tone in tones)
        levels[..., channel] = off + paper * (on - off) + ink * (pen - on)
    light = _light(height, width, rng) if rng.random() < 0.5 else None
    if light is not None:
        levels *= light[..., None]
    least = np.abs(tones[0] - tones[1]).max() * (0.5 if light is None else light.min() * 0.5)
    noise = float(rng.choice([0, rng.uniform(1, min(12, least / 4))], p=[0.3, 0.7]))
    if noise:
        levels += rng.normal(0, noise, (height, width, 1)).astype(np.float32)
    traits = {"side": side, "margin": str(margin), "layout": layout, "tone": kind, "noise": round(noise)}
    traits["light"] = "even" if light is None else "uneven"
    traits["digit"] = cells[0][2]
    return Sheet(np.clip(np.rint(levels), 0, 255).astype(np.uint8), digits, centres, traits)


def _paper(height: int, width: int, margin: str, rng: np.random.Generator) -> tuple[np.ndarray, tuple[int, ...]]:
    """Where paper is, float32 0 to 1, and the box (left, top, right, bottom) that digits may be in."""
    paper = np.ones((height, width), np.float32)
    least = min(height, width)
    if margin == "letterbox":
        bar = int(rng.uniform(0.03, 0.2) * height)
        paper[:bar], paper[-bar:] = 0, 0
        return paper, (0, bar + least // 50, width, height - bar - least // 50)
    if margin == "frame":
        inset, line = int(rng.uniform(0.02, 0.08) * least), max(2, int(rng.uniform(0.002, 0.02) * least))
        cv2.rectangle(paper, (inset, inset), (width - inset, height - inset), 0, line)
        inset += 2 * line + 2
        return paper, (inset, inset, width - inset, height - inset)
    if margin == "desk":
        paper[:] = 0
        inset = rng.uniform(0.08, 0.15)
        angle = float(rng.uniform(-8, 8))
        size = (width * (1 - 2 * inset), height * (1 - 2 * inset))
        points = cv2.boxPoints(((width / 2, height / 2), size, angle))
        cv2.fillConvexPoly(paper, np.rint(points).astype(np.int32), 1, cv2.LINE_AA)
        inset += 0.1
        return paper, (int(width * inset), int(height * inset), int(width * (1 - inset)), int(height * (1 - inset)))
    return paper, (0, 0, width, height)


def _cells(corners: tuple[int, ...], rng: np.random.Generator) -> tuple[list[tuple[int, int, int]], str]:
    """Places for digits in reading order: left, top and size of a 28 × 28 image, of which the digit fills 20."""
    left, top, right, bottom = corners
    width, height = right - left, bottom - top
    layout = str(rng.choice(["one", "row", "column", "grid"], p=[0.6, 0.2, 0.12, 0.08]))
    across, down = {"one": (1, 1), "row": (int(rng.integers(2, 4)), 1), "column": (1, 2), "grid": (2, 2)}[layout]
    largest = min(width / across, height / down) / 1.15
    size = int(min(max(40, largest * np.exp(rng.uniform(np.log(0.1), 0))), largest))
    rooms = width / across, height / down
    stepx, stepy = (int(rng.uniform(size * 1.1, max(room, size * 1.1))) for room in rooms)
    x = left + int(rng.uniform(0, width - stepx * (across - 1) - size * 1.05))
    y = top + int(rng.uniform(0, height - stepy * (down - 1) - size * 1.05))
    cells = []
    for row in range(down):
        for column in range(across):
            own = int(size * rng.uniform(0.8, 1)) if across * down > 1 else size
            cells.append((x + column * stepx, y + row * stepy, own))
    return cells, layout


def _tones(rng: np.random.Generator) -> tuple[np.ndarray, str]:
    """Colours `[3, 3]` of paper, ink and what is beside the paper, told apart by 60 levels or more in some channel."""
    kind = str(rng.choice(["dark on light", "light on dark", "colour", "equal luminance"], p=[0.5, 0.2, 0.2, 0.1]))
    while True:
        tones = rng.uniform(0, 255, (3, 3))
        if kind in ("dark on light", "light on dark"):
            tones[:] = tones[:, :1]
        luminance = tones @ [0.299, 0.587, 0.114]
        if kind == "equal luminance":
            tones[1] += luminance[0] - luminance[1]
        darker = luminance[1] < luminance[0]
        right = {"dark on light": darker, "light on dark": not darker}.get(kind, True)
        apart = np.abs(tones[0] - tones[1:]).max(1).min() >= 60
        if right and apart and tones.min() >= 0 and tones.max() <= 255:
            return tones, kind


def _light(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Light that falls off towards a side or from a spot, float32 down to .5."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j].astype(np.float32)
    if rng.random() < 0.5:
        angle = rng.uniform(0, 2 * np.pi)
        slope = np.cos(angle) * x + np.sin(angle) * y
        fall = (slope - slope.min()) / np.ptp(slope)
    else:
        fall = np.hypot(x - rng.uniform(0, 1), y - rng.uniform(0, 1)) / np.sqrt(2)
    return 1 - np.float32(rng.uniform(0.1, 0.5)) * fall


def sheets(part: str, seed: int, number: int) -> Iterator[Sheet]:
    """Draw sheets with MNIST's images of a part, each by a seed of its own."""
    if part == "held-out":
        _, loaded = imagesets.split("mnist", (1, 28, 28), CLASSES, HELD_OUT, None)
    else:
        loaded = imagesets.load("mnist", part, (1, 28, 28), CLASSES)
    for index in range(number):
        yield draw(loaded.images[:, 0], loaded.labels, np.random.default_rng((seed, index)))


def verdict(sheet: Sheet, rows: list) -> tuple[str, list[bool]]:
    """Judge the answers: "right", "remarked", "unsure" (wrong, under 90 %) or "wrong"; and which are right."""
    rights: list[bool] = []
    sure = False
    left = list(zip(sheet.digits, sheet.centres, strict=True))
    for row in rows:
        box = getattr(row, "box", None) or (0, 0, *sheet.image.shape[1::-1])
        inside = [each for each in left if box[0] <= each[1][0] <= box[2] and box[1] <= each[1][1] <= box[3]]
        right = bool(inside) and inside[0][0] == row.prediction
        rights.append(right)
        sure |= not right and max(row.probabilities.values()) > CONFIDENT
        if inside:
            left.remove(inside[0])
    if all(rights) and not left and "".join(row.prediction or "" for row in rows) == sheet.digits:
        return "right", rights
    if not rows or any(row.remark for row in rows):
        return "remarked", rights
    return "wrong" if sure or left or all(rights) else "unsure", rights


def read_here(path: Path, model: Path = ROOT / "artifacts/mnist_cnn.onnx") -> list:
    """Have this checkout's `predict` read a picture; return its rows."""
    with contextlib.redirect_stderr(io.StringIO()):  # its bar
        return predict.run(path, model=model).facts.rows


def read_by(checkout: Path) -> Callable[[Path], list]:
    """Return what has another checkout's `predict` read a picture, in a process of its own."""

    def read(path: Path) -> list:
        ran = process("predict", path, "--json", cwd=checkout, PYTHONPATH=str(checkout.resolve()))
        ran.check_returncode()
        return [SimpleNamespace(**row) for row in json.loads(ran.stdout)["facts"]["rows"]]

    return read


def measure(
    part: str, seed: int, number: int, keep: Path | None = None, read: Callable[[Path], list] = read_here
) -> list[dict]:
    """Draw sheets, have `predict` read them, and return what each is, what was answered and the verdict."""
    judged = []
    with tempfile.TemporaryDirectory() as scratch, console.progress(number, "sheet", "sheets") as bar:
        for index, sheet in enumerate(sheets(part, seed, number)):
            path = Path(scratch) / f"{index}.{'jpg' if index % 2 else 'tif'}"
            Image.fromarray(sheet.image).save(path, **({"quality": 90} if index % 2 else {}))
            rows = read(path)
            result, rights = verdict(sheet, rows)
            pairs = zip(rows, rights, strict=True)
            scored = [(max(row.probabilities.values()), right) for row, right in pairs if row.prediction]
            remarks = sorted({row.remark for row in rows if row.remark})
            answers = {"answers": "".join(row.prediction or "-" for row in rows), "remarks": remarks, "verdict": result}
            answers["scored"] = scored  # each answer's probability, and whether it is right
            judged.append({"sheet": index, **sheet.traits, "digits": sheet.digits, **answers})
            if keep and (result != "right" or remarks):
                path.rename(keep / f"{result}-{path.name}")
            path.unlink(missing_ok=True)
            bar.update()
    return judged


@click.command()
@click.option("--images", default=2000, show_default=True, help="Sheets to draw.")
@click.option(
    "--part",
    default="test",
    show_default=True,
    type=click.Choice(["train", "held-out", "test"]),
    help="MNIST's images.",
)
@click.option("--model", type=click.Path(path_type=Path, exists=True), help="Another network than the committed one.")
@click.option("--seed", default=0, show_default=True)
@click.option("--keep", type=click.Path(path_type=Path, file_okay=False), help="Folder for what isn't right.")
@click.option(
    "--checkout",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Another revision's checkout, whose `predict` and network read the same sheets.",
)
def main(images: int, part: str, seed: int, keep: Path | None, checkout: Path | None, model: Path | None) -> None:
    """Read drawn sheets.

    Exits with 1 if under 99 % are right or remarked, over 0.2 % confidently wrong without a remark, or over 10 % right,
    yet remarked.
    """
    if checkout and model:
        raise click.UsageError("--checkout: has its own network: expected no --model beside it")
    if part == "held-out" and not model:
        raise click.UsageError("--part held-out: expected --model FILE, of a network trained with --hold-out 10000")
    if keep:
        keep.mkdir(parents=True, exist_ok=True)
    reader = read_by(checkout) if checkout else functools.partial(read_here, model=model) if model else read_here
    judged = measure(part, seed, images, keep, reader)
    if keep:
        (keep / "sheets.json").write_text("\n".join(json.dumps(each) for each in judged))
    table = []
    for trait in ("", "margin", "layout", "tone", "light"):
        for value in sorted({str(each[trait]) for each in judged}) if trait else [""]:
            some = [each for each in judged if not trait or str(each[trait]) == value]
            shares = [np.mean([each["verdict"] == verdict for each in some]) for verdict in VERDICTS]
            shares.append(np.mean([each["verdict"] == "right" and bool(each["remarks"]) for each in some]))
            name = f"{trait}: {value}" if trait else "all"
            table.append([name, str(len(some)), *(f"{share:.2%}" for share in shares)])
    title = f"digits of MNIST's {part} images on drawn sheets, seed {seed}"
    console.table(["sheets", "number", *HEADS], table, title=title)
    scored = np.array([pair for each in judged for pair in each["scored"]], float).reshape(-1, 2)
    table = []
    for low, high in itertools.pairwise(BANDS):
        some = scored[(scored[:, 0] >= low) & (scored[:, 0] < high), 1]
        table.append([f"{low:.0%} to {min(high, 1):.0%}", str(len(some)), str(int((some == 0).sum()))])
    console.table(["probability", "answers", "wrong"], table, title="digits by the probability of their answer")
    verdicts = [each["verdict"] for each in judged]
    good = verdicts.count("right") + verdicts.count("remarked") >= 0.99 * images
    good &= verdicts.count("wrong") <= 0.002 * images
    good &= sum(each["verdict"] == "right" and bool(each["remarks"]) for each in judged) <= 0.1 * images
    sys.exit(not good)


if __name__ == "__main__":
    main()
