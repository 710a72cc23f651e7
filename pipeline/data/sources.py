"""Where image sets come from: `mnist`, `torchvision:NAME`, a folder of IDX files or of class folders, an `.npz`."""

from __future__ import annotations

import inspect
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import console
from pipeline.data import idx, mnist, pictures
from pipeline.errors import UsageError, reason

ROOT = Path("data")  # what is fetched by name goes below it
TORCHVISION = "torchvision:"
RATIO = 10  # to which an .npz over idx.LIMIT may be packed: pictures hardly are, bombs are
EXPECTED = (
    "mnist, torchvision:NAME, an .npz, an IDX file *images*idx3* beside its labels, a folder with IDX files, "
    "or one with train/CLASS/ and test/CLASS/ folders of pictures"
)
PREFIXES = {"train": ("train",), "test": ("t10k", "test")}


def expect(source: str) -> None:
    """UsageError for a source that isn't there, without reading it."""
    if source != "mnist" and not source.startswith(TORCHVISION) and not Path(source).exists():
        hint = "; --data mnist fetches MNIST" if Path(source) == ROOT or "mnist" in source.lower() else ""
        raise UsageError(f"--data {source}: no such file or folder: expected {EXPECTED}{hint}")


def read(source: str, part: str, shape: Sequence[int], classes: Sequence[str]) -> tuple[np.ndarray, np.ndarray, str]:
    """Read a source's "train" or "test" part: images and labels, not yet checked, and what to call them.

    Only sources that are named so are ever fetched. Raises UsageError for a source that has no such part.
    """
    expect(source)
    name = f"{public(source)}, {part} images"
    if source == "mnist":
        return *mnist.load(ROOT, part), name
    if source.startswith(TORCHVISION):
        return *_torchvision(source.removeprefix(TORCHVISION), part), name
    path = Path(source)
    if path.suffix == ".npz" and path.is_file():
        return *_npz(path, part), path.name
    if path.is_file():
        if part == "train":
            raise UsageError(
                f"--data {source}: has no training images: expected mnist, torchvision:NAME, an .npz or a folder"
            )
        return *_idx(path), path.name
    if not path.is_dir():
        raise UsageError(f"--data {source}: neither a file nor a folder: expected {EXPECTED}")
    if images := _idx_images(path, part):
        return *_idx(images), name
    if (path / part).is_dir():
        return *_class_folders(path / part, shape, classes), name
    listed = ", ".join(sorted(each.name for each in path.iterdir())[:5]) or "nothing"
    raise UsageError(f"--data {source}: has no {part} images: expected {EXPECTED}; it has {listed}")


def public(source: str) -> str:
    """Return what to call a source in what others get: the last part alone of a path, which may name people."""
    name = Path(os.path.abspath(source)).name
    return f"{name}/" if name == "mnist" != source else name  # a folder of that name is not MNIST


def has_training_images(source: str) -> bool:
    """Tell whether a source has training images that can be read without fetching anything."""
    if source == "mnist":
        return mnist.find(ROOT, "train") is not None
    if source.startswith(TORCHVISION):
        try:
            return bool(_dataset(source.removeprefix(TORCHVISION), "train", download=False))
        except Exception:  # torchvision isn't here, or the set isn't
            return False
    path = Path(source)
    if path.suffix == ".npz" and path.is_file():
        try:
            with np.load(path) as file:
                return "train_images" in file
        except Exception:  # a damaged file, as in _npz
            return False
    return path.is_dir() and (_idx_images(path, "train") is not None or (path / "train").is_dir())


def _npz(path: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > (limit := max(idx.LIMIT, RATIO * path.stat().st_size)):
            raise UsageError(f"{path}: unpacks to {size:,} bytes: expected {limit:,} at most; np.savez packs it less")
        with np.load(path, allow_pickle=False) as file:
            prefix = f"{part}_" if part == "train" or f"{part}_images" in file else ""
            return file[f"{prefix}images"], file[f"{prefix}labels"]
    except UsageError:
        raise
    except Exception as error:  # numpy's parser of a damaged header fails in any way, tokenize.TokenError among them
        raise UsageError(
            f"{path}: expected an .npz with uint8 `images` and `labels`, or `train_images`, `train_labels`, "
            f"`test_images`, `test_labels`: {reason(error)}"
        ) from error


def _idx_images(folder: Path, part: str) -> Path | None:
    """Find a part's IDX image file in a folder laid out as MNIST, or as torchvision lays it out."""
    for place in (folder, folder / "raw", folder / "MNIST/raw", *sorted(folder.glob("*/raw"))):
        for path in sorted(place.glob("*")):
            name = path.name.lower()
            if name.startswith(PREFIXES[part]) and "images" in name and "idx3" in name and path.is_file():
                return path
    return None


def _idx(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read an IDX file of images and the labels beside it."""
    images, labels = idx.read(path), idx.labels(path)
    if labels is None:
        raise UsageError(
            f"{path}: expected an .npz, or an IDX file *images-idx3-ubyte with its *labels-idx1-ubyte beside it"
        )
    return images, labels


def _class_folders(folder: Path, shape: Sequence[int], classes: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Read pictures in folders named by class, resized to a model's input `[channels, height, width]`."""
    names = {each.name for each in folder.iterdir() if each.is_dir() and not each.name.startswith(".")}
    if names != set(classes):
        missing = ", ".join(sorted(set(classes) - names)) or "none"
        more = ", ".join(sorted(names - set(classes))) or "none"
        raise UsageError(
            f"{folder}: expected a folder for each class of the model: missing {missing[:200]}; other {more[:200]}"
        )
    files = [(path, label) for label, name in enumerate(classes) for path in sorted((folder / name).iterdir())]
    files = [each for each in files if each[0].is_file() and not pictures.is_passed_over(each[0].name)]
    empty = [name for label, name in enumerate(classes) if label not in {each for _, each in files}]
    if empty:
        raise UsageError(f"{folder / empty[0]}: has no pictures: expected some of each class")
    images = np.empty((len(files), *shape), np.uint8)
    with console.progress(len(files), "picture", str(folder)) as bar:
        for image, (path, _) in zip(images, files, strict=True):
            image[:] = pictures.read(path, shape)
            bar.update()
    return images, np.array([label for _, label in files], np.int64)


def _torchvision(name: str, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Read a data set of torchvision, which fetches it."""
    try:
        pairs = ((np.asarray(image), int(label)) for image, label in _dataset(name, part, download=True))
        images, labels = zip(*pairs, strict=True)
        return np.stack(images), np.array(labels)
    except UsageError:
        raise
    except Exception as error:  # a mirror that can't be reached, an archive that is damaged, images of many sizes
        raise UsageError(f"--data torchvision:{name}: torchvision can't read it: {reason(error)}") from error


def _dataset(name: str, part: str, *, download: bool) -> Any:
    """Open a data set of torchvision; RuntimeError, by torchvision, if it isn't there and isn't to be fetched."""
    import torchvision

    dataset: Any = getattr(torchvision.datasets, name, None)
    parameters = inspect.signature(dataset).parameters if inspect.isclass(dataset) else {}
    if "download" not in parameters or not {"train", "split"} & parameters.keys():
        raise UsageError(f"--data torchvision:{name}: expected a data set that torchvision fetches, such as CIFAR10")
    which = {"train": part == "train"} if "train" in parameters else {"split": part}
    return dataset(str(ROOT / "torchvision"), download=download, **which)
