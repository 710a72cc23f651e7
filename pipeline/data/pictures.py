"""Pictures in files and folders as arrays that a model takes, with remarks on doubtful ones."""

from __future__ import annotations

import contextlib
import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.data import digits, idx
from pipeline.errors import UsageError, reason
from pipeline.records.forms import ModelCard

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

LARGEST = 120_000_000  # pixels: a phone's photograph has 108 million at most
HALVED = 16_000_000  # pixels: a JPEG 2000 of more is decoded at half its resolution
FRAMES = 500  # of a file; of more, those after it are left out


@dataclass(frozen=True)
class Picture:
    """What a model is asked about: where it is from, pixels as the model takes them, and its label if that is known."""

    name: str
    pixels: np.ndarray  # uint8 [channels, height, width]
    label: str | None = None
    remark: str | None = None  # why the model's answer is doubtful
    box: tuple[int, ...] | None = None  # of a digit: left, top, right, bottom


def find(
    paths: Sequence[Path], card: ModelCard, as_is: bool, failures: list[str], one: bool = False
) -> Iterator[Picture]:
    """Yield the pictures in files and folders, each once, by name; a folder named as a class labels what is in it.

    Each digit of a picture is one, and each frame of a file. What can't be read is left out and the reason appended to
    `failures`. Raises UsageError for a missing path and for a folder without any file.
    """
    files: dict[Path, tuple[Path, str | None]] = {}
    for path in paths:
        for file in _files(path):
            label = file.parent.name if path.is_dir() and file.parent.name in card.classes else None
            files.setdefault(file.resolve(), (file, label))
    for file, label in files.values():
        try:
            if "ubyte" in file.name:
                for name, image, its in _idx(file, card.classes):
                    yield from _prepared(name, image, its, card, as_is, True)
                continue
            with _opened(file) as opened:
                frames = getattr(opened, "n_frames", 1)
                if frames > FRAMES:
                    failures.append(f"{file}: has {frames} frames: those after {FRAMES} are left out")
                for frame in range(min(frames, FRAMES)):
                    name = str(file) if frames == 1 else f"{file}#{frame + 1}"
                    opened.seek(frame)
                    yield from _prepared(name, _upright(opened), label, card, as_is, one)
        except UsageError as error:
            failures.append(str(error))
        except OSError as error:
            failures.append(f"{file}: {error.strerror or error}")


def _files(path: Path) -> list[Path]:
    """List the files in a folder, except those passed over and the labels beside an IDX file's images."""
    if not path.exists():
        raise UsageError(f"{path}: no such file or folder")
    if not path.is_dir():
        return [path]
    files = {file for file in path.rglob("*") if file.is_file()}
    files -= {labels for file in files if (labels := idx.labels_beside(file))}
    files = {file for file in files if not any(map(is_passed_over, file.relative_to(path).parts))}
    if not files:
        raise UsageError(f"{path}: has no picture in it")
    return sorted(files)


def is_passed_over(name: str) -> bool:
    """Tell whether a file or folder is hidden, or one that a system puts into folders of pictures."""
    return name.startswith(".") or name.lower() in ("thumbs.db", "desktop.ini")


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


def _prepared(
    name: str, image: np.ndarray | Image, label: str | None, card: ModelCard, as_is: bool, one: bool
) -> Iterator[Picture]:
    """Yield a picture, uint8 `[height, width]` or Pillow's, as the model takes it: of digits, each."""
    height, width = image.shape if isinstance(image, np.ndarray) else image.size[::-1]
    if as_is and [height, width] != list(card.input[1:]):
        expected = f"{card.input[2]} × {card.input[1]}"
        raise UsageError(f"{name}: --as-is expects {expected} pixels, received {width} × {height}")
    if as_is or card.prepare != "digit":
        yield Picture(name, resized(image, card.input), label)
        return
    found = digits.find(image if isinstance(image, np.ndarray) else _Sheet(image), one)
    for number, digit in enumerate(found, 1):
        own = f"{name}[{number}]" if len(found) > 1 else name
        yield Picture(own, digit.pixels[None], label, digit.remark, digit.box)


def read(path: Path, shape: Sequence[int]) -> np.ndarray:
    """Read a picture file, upright, as uint8 `[channels, height, width]` of the given shape.

    Raises UsageError for a file that is no picture, damaged or too large.
    """
    with _opened(path) as file:
        return resized(_upright(file), shape)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Image]:
    """Open a picture file; what goes wrong with it, here or in the block, is a UsageError. No warnings of libraries."""
    from PIL import Image

    logging.getLogger("PIL").addHandler(logging.NullHandler())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as file:
                if file.width * file.height > LARGEST:
                    raise UsageError(f"{path}: has {file.width} × {file.height} pixels: expected {LARGEST:,} at most")
                yield file
    except UsageError:
        raise
    except Exception as error:  # decoders of damaged files fail in any way: struct.error, SyntaxError, zlib.error...
        raise UsageError(f"{path}: expected a picture: {reason(error)}") from error


def _upright(file: Image) -> Image:
    """Load a frame, turned as its EXIF data say; a copy only if they say so and there are more frames."""
    from PIL import ImageOps

    single = getattr(file, "n_frames", 1) == 1
    if single and file.format == "WEBP":
        file = _webp(file)
    elif file.format == "JPEG2000" and file.width * file.height > HALVED:
        file = _jpeg2000(file)
    file.load()
    return ImageOps.exif_transpose(file, in_place=single) or file if file.getexif().get(0x0112, 1) != 1 else file


def _webp(file: ImageFile) -> Image:
    """Decode a still WebP by OpenCV, in half of the memory: Pillow decodes it as an animation, in four copies."""
    import cv2
    from PIL import Image

    pixels = cv2.imdecode(np.fromfile(file.filename, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.shape[1::-1] != file.size:  # Pillow says why
        return file
    mode, order = ("RGBA", "BGRA") if pixels.shape[2] == 4 else ("RGB", "BGR")
    picture = Image.frombuffer(mode, file.size, pixels, "raw", order, 0, 1)
    picture.info = file.info
    return picture


def _jpeg2000(file: ImageFile) -> Image:
    """Decode a large JPEG 2000 at half its resolution, and enlarge it: whole, the decoder takes six times its size."""
    from PIL import Image

    with contextlib.suppress(OSError), Image.open(file.filename) as half:
        half.reduce = 1
        half.load()  # before its size is asked: it changes with that
        return half.resize(file.size)
    return file  # of one resolution, or damaged: Pillow says how


class _Sheet:
    """A picture that is converted to uint8 `[height, width]` or `[height, width, 3]` by parts, as they are sliced.

    More than 8 bits a pixel are stretched; what is no number there is background. Behind transparent parts is white if
    the others are dark, else black.
    """

    def __init__(self, picture: Image) -> None:
        self.picture, self.numbers = picture, picture.mode.startswith(("I", "F"))
        self.clear = "A" in picture.getbands() or "transparency" in picture.info
        grey = self.numbers or (picture.mode in ("1", "L") and not self.clear)
        self.shape = picture.size[::-1] if grey else (*picture.size[::-1], 3)
        if self.numbers:
            values = np.asarray(_sample(picture), np.float64)
            values = values[np.isfinite(values)] if np.isfinite(values).any() else np.zeros(1)
            self.low, self.range, self.usual = values.min(), max(np.ptp(values), 1e-9), np.median(values)
        elif self.clear:
            *_, alpha = pixels = np.asarray(_sample(picture).convert("RGBA"), np.float64).reshape(-1, 4).T
            dark = (pixels[:3].mean(0) * alpha).sum() <= 127 * alpha.sum()
            self.ground = (255, 255, 255, 255) if dark else (0, 0, 0, 255)

    def __getitem__(self, at: tuple[slice, slice]) -> np.ndarray:
        from PIL import Image

        (top, bottom, _), (left, right, _) = (each.indices(n) for each, n in zip(at, self.shape, strict=False))
        part = self.picture.crop((left, top, right, bottom))
        if self.numbers:
            values = np.asarray(part, np.float32)
            values = np.where(np.isfinite(values), values, self.usual)
            return np.rint(255 * ((values - self.low) / self.range).clip(0, 1)).astype(np.uint8)
        if self.clear:
            part = Image.alpha_composite(Image.new("RGBA", part.size, self.ground), part.convert("RGBA"))
        return np.asarray(part.convert("RGB" if len(self.shape) == 3 else "L"))


def _sample(picture: Image) -> Image:
    """Return about a million pixels, or all of a smaller picture."""
    step = max(1, math.isqrt(picture.width * picture.height // 1_000_000))
    return picture.resize((max(1, picture.width // step), max(1, picture.height // step)), 0)  # the nearest


def resized(image: np.ndarray | Image, shape: Sequence[int]) -> np.ndarray:
    """Resize a picture, Pillow's or uint8 `[height, width]`, to uint8 `[channels, height, width]`.

    16 bits are scaled by the type's range. UsageError for a model of neither 1 nor 3 channels.
    """
    from PIL import Image

    channels, height, width = shape
    if channels not in (1, 3):
        raise UsageError(f"expected a model of pictures, with 1 or 3 channels; this one takes {channels}")
    picture = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    if picture.mode.startswith("I;16"):  # `convert` would clip
        picture = Image.fromarray((np.asarray(picture) // 257).astype(np.uint8))
    if picture.mode != (mode := "L" if channels == 1 else "RGB"):
        picture = picture.convert(mode)
    if picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(picture).reshape(height, width, channels).transpose(2, 0, 1)
