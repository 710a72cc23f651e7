"""Where image sets come from: `mnist`, `torchvision:NAME`, a folder of IDX files or of class folders, an `.npz`."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipeline import console
from pipeline.data import idx, mnist
from pipeline.errors import UsageError, reason

ROOT = Path("data")  # what is fetched by name goes below it
TORCHVISION = "torchvision:"
EXPECTED = (
    "mnist, torchvision:NAME, an .npz, an IDX file *images*idx3* beside its labels, a folder with IDX files, "
    "or one with {part}/CLASS/ folders of pictures"
)
PREFIXES = {"train": ("train",), "test": ("t10k", "test")}
MODES = {1: "L", 3: "RGB"}
Arrays = tuple[np.ndarray, np.ndarray, str]  # images, labels, what to call them


def read(source: str, part: str, shape: tuple[int, ...], classes: tuple[str, ...]) -> Arrays:
    """Images, labels and a name of a source's "train" or "test" part, as they come: not yet checked.

    Only sources that are named so are ever fetched. Raises UsageError for a source that has no such part.
    """
    name = f"{source}, {part} images"
    if source == "mnist":
        return *mnist.load(ROOT, part), name
    if source.startswith(TORCHVISION):
        return *_torchvision(source.removeprefix(TORCHVISION), part), name
    path = Path(source)
    if not path.exists():
        hint = "; --data mnist fetches MNIST" if path == ROOT or "mnist" in source.lower() else ""
        raise UsageError(f"--data {source}: no such file or folder: expected {EXPECTED.format(part=part)}{hint}")
    if path.is_file():
        if path.suffix == ".npz":
            return *_npz(path, part), path.name
        if part == "train":
            raise UsageError(f"{path}: is a test set alone: expected a source with training images")
        return *_idx_pair(path), path.name
    if (pair := _idx_files(path, part)) is not None:
        return *_idx_pair(*pair), name
    if (path / part).is_dir():
        return *_pictures(path / part, shape, classes), name
    listed = ", ".join(sorted(each.name for each in path.iterdir())[:5]) or "nothing"
    raise UsageError(f"--data {source}: has no {part} images: expected {EXPECTED.format(part=part)}; it has {listed}")


def has_part(source: str, part: str) -> bool:
    """Whether a source has a part that can be read without fetching."""
    if source == "mnist":
        return mnist.find(ROOT, part) is not None
    path = Path(source)
    if path.suffix == ".npz" and path.is_file():
        with np.load(path, allow_pickle=False) as file:
            return f"{part}_images" in file
    if path.is_dir():
        return _idx_files(path, part) is not None or (path / part).is_dir()
    return False


def _npz(path: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            prefix = f"{part}_" if f"{part}_images" in file else ""
            if part == "train" and not prefix:
                raise UsageError(f"{path}: has no train_images: expected train_images and train_labels to train on")
            return file[f"{prefix}images"], file[f"{prefix}labels"]
    except UsageError:
        raise
    except Exception as error:  # numpy's parser of a damaged header fails in any way, tokenize.TokenError among them
        raise UsageError(
            f"{path}: expected an .npz with uint8 `images` and `labels`, or `train_images`, `train_labels`, "
            f"`test_images`, `test_labels`: {reason(error)}"
        ) from error


def _idx_files(folder: Path, part: str) -> tuple[Path, Path] | None:
    """The image and label files of a folder laid out as MNIST, or as torchvision lays it out."""
    for place in (folder, folder / "raw", folder / "MNIST/raw", *sorted(folder.glob("*/raw"))):
        for path in sorted(place.iterdir()) if place.is_dir() else []:
            named = path.name.lower()
            if named.startswith(PREFIXES[part]) and "images" in named and "idx3" in named and path.is_file():
                return path, _labels(path)
    return None


def labels_beside(images: Path) -> Path | None:
    """The label file beside an IDX image file, by its name; None if there is none."""
    labels = images.with_name(images.name.replace("images", "labels").replace("idx3", "idx1"))
    return labels if labels != images and labels.is_file() else None


def _labels(images: Path) -> Path:
    """The label file beside an IDX image file. UsageError if there is none."""
    labels = labels_beside(images)
    if labels is None:
        raise UsageError(
            f"{images}: expected an .npz, or an IDX file *images-idx3-ubyte with its *labels-idx1-ubyte beside it"
        )
    return labels


def _idx_pair(images: Path, labels: Path | None = None) -> tuple[np.ndarray, np.ndarray]:
    return idx.read(images), idx.read(labels or _labels(images))


def _pictures(folder: Path, shape: tuple[int, ...], classes: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Pictures in folders named by class, in the mode and size that the model takes."""
    names = sorted(each.name for each in folder.iterdir() if each.is_dir() and not each.name.startswith("."))
    if set(names) != set(classes):
        missing = ", ".join(sorted(set(classes) - set(names))) or "none"
        more = ", ".join(sorted(set(names) - set(classes))) or "none"
        raise UsageError(
            f"{folder}: expected a folder for each class of the model: missing {missing[:200]}; other {more[:200]}"
        )
    if shape[0] not in MODES:
        raise UsageError(f"{folder}: pictures have 1 or 3 channels: the model takes {shape[0]}")
    files = [(path, label) for label, name in enumerate(classes) for path in _visible(folder / name)]
    images = np.empty((len(files), *shape), np.uint8)
    with console.progress(len(files), "picture", str(folder)) as bar:
        for index, (path, _) in enumerate(files):
            images[index] = picture(path, shape)
            bar.update()
    return images, np.array([label for _, label in files], np.int64)


def _visible(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith("."))


def picture(path: Path, shape: tuple[int, ...], as_is: bool = False) -> np.ndarray:
    """A picture as uint8 `[channels, height, width]`, upright, resized to the model's input unless `as_is`."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened).convert(MODES[shape[0]])
    except Exception as error:  # decoders of damaged files fail in any way: struct.error, SyntaxError, zlib.error...
        raise UsageError(f"{path}: expected a picture: {reason(error)}") from error
    if as_is and image.size != (shape[2], shape[1]):
        raise UsageError(f"{path}: is {image.width} × {image.height}: --as-is expects {shape[2]} × {shape[1]} pixels")
    return resized(np.asarray(image), shape)


def resized(image: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A uint8 image `[height, width]` or `[height, width, channels]` as `shape`, `[channels, height, width]`."""
    from PIL import Image

    channels, height, width = shape
    picture = Image.fromarray(image).convert(MODES[channels])
    if picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(picture).reshape(height, width, channels).transpose(2, 0, 1)


def _torchvision(name: str, part: str) -> tuple[np.ndarray, np.ndarray]:
    """A data set of torchvision, fetched by it."""
    import torchvision

    dataset = getattr(torchvision.datasets, name, None)
    parameters = inspect.signature(dataset).parameters if inspect.isclass(dataset) else {}
    if "download" not in parameters or not {"train", "split"} & parameters.keys():
        raise UsageError(f"--data torchvision:{name}: expected a data set that torchvision fetches, such as CIFAR10")
    which = {"train": part == "train"} if "train" in parameters else {"split": part}
    try:
        loaded = dataset(str(ROOT / "torchvision"), download=True, **which)
        pairs = [(np.asarray(image), int(label)) for image, label in loaded]
        return np.stack([image for image, _ in pairs]), np.array([label for _, label in pairs])
    except Exception as error:  # a mirror that can't be reached, an archive that is damaged, images of many sizes
        raise UsageError(f"--data torchvision:{name}: torchvision can't read it: {reason(error)}") from error
