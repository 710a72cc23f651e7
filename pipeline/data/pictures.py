"""Pictures in files and folders as arrays that a model takes, with remarks on doubtful ones."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.data import digits, idx
from pipeline.errors import UsageError, reason
from pipeline.records.forms import ModelCard

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", "idx3-ubyte", "idx3-ubyte.gz")
LARGEST = 50_000_000  # pixels: a photograph has fewer
NONE, SEVERAL = "no digit found", "several digits?"


@dataclass(frozen=True)
class Picture:
    """A picture: where it is from, its pixels as the model takes them, and its label where that is known."""

    name: str
    pixels: np.ndarray  # uint8 [channels, height, width]
    label: str | None
    remark: str | None  # why the model's answer is doubtful: NONE or SEVERAL


def find(paths: Sequence[Path], card: ModelCard, as_is: bool, failures: list[str]) -> Iterator[Picture]:
    """Yield the pictures in files and folders, each once, by name; a folder named as a class labels what is in it.

    A picture that can't be read is left out and the reason appended to `failures`. Raises UsageError for a missing path
    and for a folder without any picture.
    """
    files: dict[Path, tuple[Path, str | None]] = {}
    for path in paths:
        for file in _files(path):
            label = file.parent.name if path.is_dir() and file.parent.name in card.classes else None
            files.setdefault(file.resolve(), (file, label))
    for file, label in files.values():
        try:
            if "ubyte" in file.name:
                images = _idx(file, card.classes)
            else:
                images = [(str(file), read(file, card.input[0], digit=card.prepare == "digit"), label)]
            for entry in images:
                yield _prepared(*entry, card, as_is)
        except UsageError as error:
            failures.append(str(error))
        except OSError as error:
            failures.append(f"{file}: {error.strerror or error}")


def _files(path: Path) -> list[Path]:
    """List the pictures in a folder, except hidden ones; a file is taken whatever it is called."""
    if not path.exists():
        raise UsageError(f"{path}: no such file or folder")
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.rglob("*") if file.name.lower().endswith(ENDINGS) and file.is_file())
    files = [file for file in files if not any(part.startswith(".") for part in file.relative_to(path).parts)]
    if not files:
        raise UsageError(f"{path}: has no picture in it: expected {', '.join(ENDINGS)}")
    return files


def _idx(path: Path, classes: Sequence[str]) -> list[tuple[str, np.ndarray, str | None]]:
    """List names, pixels `[height, width]` and labels of an IDX file's images; labels come from a file beside it."""
    images, labels = idx.read(path), idx.labels(path)
    if images.ndim != 3 or not images.size:
        raise UsageError(f"{path}: expected images [n, height, width], received {list(images.shape)}")
    if labels is None:
        return [(f"{path}[{number}]", image, None) for number, image in enumerate(images)]
    if labels.shape != images.shape[:1]:
        raise UsageError(f"{path}: expected {len(images)} labels in the file beside it, received {labels.size}")
    names = [classes[label] if label < len(classes) else str(label) for label in labels.tolist()]
    return [(f"{path}[{number}]", *each) for number, each in enumerate(zip(images, names, strict=True))]


def _prepared(name: str, image: np.ndarray, label: str | None, card: ModelCard, as_is: bool) -> Picture:
    """Return a picture `[height, width]` or `[height, width, channels]` as the model takes it."""
    _, height, width = card.input
    if as_is and image.shape[:2] != (height, width):
        size = f"{image.shape[1]} × {image.shape[0]}"
        raise UsageError(f"{name}: --as-is expects {width} × {height} pixels, received {size}")
    if card.prepare != "digit":
        return Picture(name, resized(image, card.input), label, None)
    pixels, several = (image, False) if as_is else digits.prepare(image)
    remark = NONE if not pixels.any() else SEVERAL if several else None
    return Picture(name, pixels[None], label, remark)


def read(path: Path, channels: int, *, digit: bool = False) -> np.ndarray:
    """Read a picture file, upright, as uint8 `[height, width]` or, for 3 channels, `[height, width, 3]`.

    Of a digit, transparent parts become white, and more than 8 bits a pixel are stretched to the range 0 to 255.
    Raises UsageError for a file that is no picture, damaged or too large.
    """
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # LARGEST is stricter
            file = Image.open(path)
        with file:
            if file.width * file.height > LARGEST:
                raise UsageError(f"{path}: has {file.width} × {file.height} pixels: expected {LARGEST:,} at most")
            picture = ImageOps.exif_transpose(file)
            if digit and picture.mode.startswith(("I", "F")):
                values = np.asarray(picture, np.float64)
                return np.rint(255 * (values - values.min()) / max(np.ptp(values), 1e-9)).astype(np.uint8)
            if digit and ("A" in picture.getbands() or "transparency" in picture.info):
                picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture.convert("RGBA"))
            if picture.mode.startswith("I;16"):  # `convert` would clip: by the type's range, not the picture's
                picture = Image.fromarray((np.asarray(picture) // 257).astype(np.uint8))
            return np.asarray(picture.convert(_mode(channels)))
    except UsageError:
        raise
    except Exception as error:  # decoders of damaged files fail in any way: struct.error, SyntaxError, zlib.error...
        raise UsageError(f"{path}: expected a picture: {reason(error)}") from error


def resized(image: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Resize a uint8 image `[height, width]` or `[height, width, 3]` to `shape`, `[channels, height, width]`."""
    from PIL import Image

    channels, height, width = shape
    picture = Image.fromarray(image).convert(_mode(channels))
    if picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(picture).reshape(height, width, channels).transpose(2, 0, 1)


def _mode(channels: int) -> str:
    """Return Pillow's mode for pictures with so many channels. UsageError if it has none that fits."""
    if channels not in (1, 3):
        raise UsageError(f"expected a model of pictures, with 1 or 3 channels; this one takes {channels}")
    return "L" if channels == 1 else "RGB"
