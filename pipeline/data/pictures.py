"""Pictures in files and folders, prepared as a model takes them, with remarks on doubtful ones."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.data import idx, images, sources
from pipeline.errors import UsageError, reason
from pipeline.records.forms import ModelCard

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm")
LARGEST = 50_000_000  # pixels: a photograph has fewer
NONE, SEVERAL = "no digit found", "several digits?"


@dataclass(frozen=True)
class Picture:
    """One picture: where it is from, its pixels as the model takes them, and its label where that is known."""

    name: str
    pixels: np.ndarray  # uint8 [channels, height, width]
    label: str | None
    remark: str | None  # what speaks against taking the answer at its word: NONE or SEVERAL


def find(paths: tuple[Path, ...], card: ModelCard, as_is: bool, bad: list[str]) -> Iterator[Picture]:
    """The pictures in files and folders, each once, by name; a folder named as a class labels what is in it.

    What can't be read is left out, and why is put into `bad`. Raises UsageError for a path that isn't there, and for a
    folder without any picture.
    """
    seen = set()
    for path, file in [(given, file) for given in paths for file in _files(given)]:
        if file.resolve() in seen:
            continue
        seen.add(file.resolve())
        label = file.parent.name if path.is_dir() and file.parent.name in card.classes else None
        try:
            if "ubyte" in file.name:
                yield from _idx(file, as_is, card)
            else:
                yield (
                    _digit(str(file), read(file), as_is, label)
                    if card.prepare == "digit"
                    else Picture(str(file), sources.picture(file, tuple(card.input), as_is), label, None)
                )
        except UsageError as error:
            bad.append(str(error))
        except OSError as error:
            bad.append(f"{file}: {error.strerror or error}")


def _files(path: Path) -> list[Path]:
    """The pictures in a folder, hidden ones aside; or the file itself, whatever it is called."""
    if not path.exists():
        raise UsageError(f"{path}: no such file or folder")
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.rglob("*") if _is_picture(file) and file.is_file())
    files = [file for file in files if not any(part.startswith(".") for part in file.relative_to(path).parts)]
    if not files:
        raise UsageError(f"{path}: has no picture in it: expected {', '.join(SUFFIXES)} or *idx3-ubyte")
    return files


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES or path.name.endswith(("idx3-ubyte", "idx3-ubyte.gz"))


def _digit(name: str, image: np.ndarray, as_is: bool, label: str | None) -> Picture:
    """A digit, prepared as MNIST's were."""
    pixels, ink = images.prepared(image, as_is, name)
    remark = None
    if not pixels.any():
        remark = NONE
    elif ink is not None and images.several(ink):
        remark = SEVERAL
    return Picture(name, pixels[None], label, remark)


def _idx(path: Path, as_is: bool, card: ModelCard) -> Iterator[Picture]:
    """The images of an IDX file; with labels where `*labels-idx1-ubyte` lies beside it."""
    beside, pixels, names = sources.labels_beside(path), idx.read(path), None
    if pixels.ndim != 3 or not pixels.size:
        raise UsageError(f"{path}: expected images [n, height, width], received {list(pixels.shape)}")
    if beside:
        labels, classes = idx.read(beside), card.classes
        names = [classes[label] if label < len(classes) else str(label) for label in labels.ravel()]
        if len(names) != len(pixels):
            raise UsageError(
                f"{path}: has {len(pixels)} images and {len(names)} labels in {beside.name}: expected as many"
            )
    for number, image in enumerate(pixels):
        label = names[number] if names else None
        if card.prepare == "digit":
            yield _digit(f"{path}[{number}]", image, as_is, label)
        else:
            yield Picture(f"{path}[{number}]", sources.resized(image, tuple(card.input)), label, None)


def read(path: Path) -> np.ndarray:
    """A picture as uint8 `[height, width]`, upright, in grey, what is transparent white. UsageError if it is none."""
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # LARGEST is stricter
            file = Image.open(path)
        with file:
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
        raise UsageError(f"{path}: expected a picture: {reason(error)}") from error


def _stretched(values: np.ndarray) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    return np.rint(255 * (values - low) / max(high - low, 1e-9)).astype(np.uint8)
