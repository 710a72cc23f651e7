"""Image sets from every source but MNIST, and what is refused."""

from __future__ import annotations

import gzip
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data import idx, imagesets, mnist, sources
from pipeline.errors import UsageError
from pipeline.stages import train
from tests.support import DIGITS, command, one_line

SHAPE, PETS = (3, 16, 20), ("cat", "dog")
GREY = (1, 28, 28)


def load(source: object, part: str = "test", shape=SHAPE, classes=PETS) -> imagesets.ImageSet:
    return imagesets.load(str(source), part, shape, classes)


@pytest.fixture
def colours() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (6, 16, 20, 3), np.uint8)


@pytest.fixture
def pets(tmp_path: Path, colours: np.ndarray) -> Path:
    """Class folders: three pictures a class in train/, the same ones in test/, cats before dogs."""
    for part in ("train", "test"):
        for number, pixels in enumerate(colours):
            folder = tmp_path / "pets" / part / PETS[number // 3]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / f"{number}.png")
            for clutter in (".DS_Store", "Thumbs.db", "desktop.ini"):
                (folder / clutter).write_text("not a picture")
    return tmp_path / "pets"


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    """MNIST can't be fetched: it is an error to try."""
    monkeypatch.setattr(mnist, "fetch", lambda root: pytest.fail("fetched"))


def test_class_folders(pets, colours):
    images = load(pets)
    assert np.array_equal(images.images, colours.transpose(0, 3, 1, 2)) and images.labels.tolist() == [0, 0, 0, 1, 1, 1]
    swapped = load(pets, classes=("dog", "cat"))
    assert swapped.labels.tolist() == [0, 0, 0, 1, 1, 1] and np.array_equal(swapped.images[0], images.images[3])
    grey = load(pets, "train", (1, 8, 8))
    assert grey.images.shape == (6, 1, 8, 8) and grey.part == "train"


def test_class_folders_that_do_not_fit_are_named(pets):
    with pytest.raises(UsageError, match="missing bird; other dog"):
        load(pets, classes=("cat", "bird"))
    (pets / "test/cat/0.png").write_bytes(b"no picture")
    with pytest.raises(UsageError, match=r"0\.png: expected a picture"):
        load(pets)


def test_npz_with_channels_first_or_last_and_both_parts(tmp_path, colours):
    labels, first = np.arange(6) % 2, colours.transpose(0, 3, 1, 2)
    both = {"train_images": colours, "train_labels": labels, "test_images": first[:2], "test_labels": labels[:2]}
    np.savez(tmp_path / "both.npz", **both)
    assert np.array_equal(load(tmp_path / "both.npz", "train").images, first)
    assert len(load(tmp_path / "both.npz")) == 2
    np.savez(tmp_path / "test.npz", images=colours, labels=labels)
    images = load(tmp_path / "test.npz")
    assert images.name == "test.npz" and np.array_equal(images.images, first)
    with pytest.raises(UsageError, match="train_images is not a file"):
        load(tmp_path / "test.npz", "train")


def test_digests_tell_sets_apart_and_survive_packing(tmp_path, colours):
    images = imagesets.ImageSet("a", "test", colours.transpose(0, 3, 1, 2), np.arange(6) % 2)
    other = imagesets.ImageSet("b", "test", images.images, images.labels[::-1])
    assert images.digests["test-images"] == other.digests["test-images"]
    assert images.digests["test-labels"] != other.digests["test-labels"]
    (tmp_path / "packed.npz").write_bytes(imagesets.pack(images))
    assert load(tmp_path / "packed.npz").digests == images.digests, "all channels are packed"


FIT = np.zeros((2, 16, 20, 3), np.uint8)


@pytest.mark.parametrize(
    ("arrays", "expected"),
    [
        ({"images": FIT.astype(np.float32), "labels": [0, 1]}, "float32"),
        ({"images": FIT[:, :8, :8], "labels": [0, 1]}, r"uint8 \[n, 3, 16, 20\] or \[n, 16, 20, 3\]"),
        ({"images": FIT, "labels": [0, 2]}, "labels go from 0 to 2: expected 0 to 1"),
        ({"images": FIT, "labels": [0, 1, 1]}, "2 images and 3 labels"),
        ({"images": FIT, "labels": [[0, 1]]}, "expected integers"),
        ({"images": FIT, "labels": [0.0, 1.0]}, "expected integers"),
        ({"images": FIT[:0], "labels": np.arange(0)}, "0 images and 0 labels"),
        ({"images": FIT}, "expected an .npz with uint8 `images` and `labels`"),
        ({"images": np.array([None]), "labels": [0]}, "expected an .npz"),  # a pickle inside
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path, arrays, expected):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(UsageError, match=rf"x\.npz.*{expected}"):
        load(tmp_path / "x.npz")


def test_an_npz_that_unpacks_to_more_than_the_limit_is_refused(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "x.npz", images=np.zeros((9, 16, 20, 3), np.uint8), labels=np.zeros(9, int))
    monkeypatch.setattr(idx, "LIMIT", 1000)
    with pytest.raises(UsageError, match=r"x\.npz: unpacks to .* bytes: expected .* at most; np.savez packs it less"):
        load(tmp_path / "x.npz")
    np.savez(tmp_path / "x.npz", images=np.zeros((9, 16, 20, 3), np.uint8), labels=np.zeros(9, int))
    assert len(load(tmp_path / "x.npz")) == 9


def header(*shape: int) -> bytes:
    return b"\0\0\x08" + bytes([len(shape)]) + np.array(shape, ">i4").tobytes()


def npy() -> bytes:
    np.save(file := io.BytesIO(), FIT)
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(header(3, 28, 28) + bytes(10), id="cut off"),
        pytest.param(header(2**31 - 1, 2**31 - 1, 28), id="claims 2^66 bytes"),
        pytest.param(header(-3, -28, 28) + bytes(3 * 28 * 28), id="negative sizes"),
        pytest.param(b"\0", id="no header"),
        pytest.param(b"hello, world", id="text"),
        pytest.param(npy(), id="a single array"),
        pytest.param(gzip.compress(bytes(1000))[:20], id="a gzip file cut off"),
    ],
)
def test_a_file_that_is_no_idx_or_npz_is_refused(tmp_path, content):
    (tmp_path / "labels-idx1-ubyte").write_bytes(idx.file(np.zeros(3, np.uint8)))
    for name in ("images-idx3-ubyte", "images.npz"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UsageError, match=name):
            load(tmp_path / name, shape=GREY)


def test_nothing_is_fetched_into_a_folder_that_holds_something_else(pets, unreachable):
    """A folder of cats and dogs is no place for MNIST, and a model of digits doesn't train on it."""
    error = one_line(command("train", "--data", pets, "--out", pets / "out"), 2)
    assert "expected a folder for each class of the model" in error
    assert sorted(path.name for path in pets.iterdir()) == ["test", "train"]


def test_a_name_that_is_no_source_is_no_folder_to_fetch_into(chain, tmp_path, unreachable):
    error = one_line(command("verify", chain / "mnist_cnn.onnx", "--data", "cifar10", cwd=tmp_path), 2)
    assert "cifar10: no such file or folder" in error
    for name in ("typo.npz", "t10k-images-idx3-ubyte", "images.gz"):
        with pytest.raises(UsageError, match="no such file"):
            load(tmp_path / name)
    assert not list(tmp_path.iterdir())
    assert "has no test images" in one_line(command("verify", chain, "--data", tmp_path), 2)


def test_an_idx_set_other_than_mnist_is_itself(digits, tmp_path):
    """Fashion-MNIST's files have MNIST's names, and are neither damaged nor MNIST."""
    for prefix, n in (("train", 30), ("t10k", 20)):
        (tmp_path / f"{prefix}-images-idx3-ubyte").write_bytes(idx.file(255 - digits.images[:n, 0]))
        (tmp_path / f"{prefix}-labels-idx1-ubyte").write_bytes(idx.file(digits.labels[:n].astype(np.uint8)))
    images = load(tmp_path, "test", GREY, DIGITS)
    assert len(images) == 20 and "MNIST" not in images.name and images.name == f"{tmp_path.name}, test images"
    assert len(load(tmp_path, "train", GREY, DIGITS)) == 30


def test_a_source_is_called_by_its_last_part_alone():
    names = {
        "mnist": "mnist",
        "torchvision:CIFAR10": "torchvision:CIFAR10",
        "/home/me/mnist": "mnist/",
        "a/b.npz": "b.npz",
    }
    assert {source: sources.public(source) for source in names} == names
    assert sources.public(".") == Path.cwd().name


def test_images_of_the_sources_own_training_set_are_noticed(pets, capsys):
    images = load(pets)
    (problem,) = imagesets.spoilt(images, [str(pets)], SHAPE, PETS)
    assert "6 of 6 images are also in" in problem
    np.savez(pets / "alone.npz", images=images.images[[0, 0, 1]], labels=[0, 0, 0])
    alone = load(pets / "alone.npz")
    (problem,) = imagesets.spoilt(alone, [str(pets / "alone.npz")], SHAPE, PETS)
    assert "1 of 3 images are in it more than once" in problem
    assert "not compared with training images" in capsys.readouterr().err


def test_test_images_among_the_training_images_are_remarked(few, tmp_path, capsys):
    with np.load(few) as file:
        arrays = {**file}
    arrays["test_images"][:7] = arrays["train_images"][:7]
    np.savez(tmp_path / "mixed.npz", **arrays)
    for data, expected in ((few, False), (tmp_path / "mixed.npz", True)):
        train.run("mnist_cnn", out=tmp_path, data=str(data), epochs=1, limit=64, train_threads=1)
        said = "mixed.npz: 7 of 500 test images are among the training images"
        assert (said in capsys.readouterr().err) is expected


def test_held_out_images_are_always_the_same_and_not_trained_on(few):
    train, held = imagesets.split(str(few), GREY, DIGITS, 100, None)
    again, same = imagesets.split(str(few), GREY, DIGITS, 100, 50)
    assert len(train) == 2900 and len(held) == 100 and held.part == "held-out" and len(again) == 50
    assert np.array_equal(held.images, same.images) and np.array_equal(again.images, train.images[:50])
    with pytest.raises(UsageError, match="expected fewer than the 3000 images"):
        imagesets.split(str(few), GREY, DIGITS, 3000, None)


def test_torchvision_by_name(tmp_path, monkeypatch):
    """Its own class reads it; FakeData stands for a set that can be fetched."""
    import torchvision

    fetched: list[bool] = []

    class Small(torchvision.datasets.FakeData):
        def __init__(self, root: str, train: bool = True, download: bool = False) -> None:
            assert root == str(tmp_path / "torchvision")
            if not download and not fetched:
                raise RuntimeError("Dataset not found")
            fetched.append(download)
            super().__init__(5 if train else 3, (3, 16, 20), 2)

    monkeypatch.setattr(torchvision.datasets, "Small", Small, raising=False)
    monkeypatch.setattr(sources, "ROOT", tmp_path)
    assert not sources.has_training_images("torchvision:Small") and not fetched
    assert len(load("torchvision:Small", "train")) == 5 and load("torchvision:Small").images.shape == (3, *SHAPE)
    assert sources.has_training_images("torchvision:Small") and not fetched[-1]
    with pytest.raises(UsageError, match="expected a data set that torchvision fetches"):
        load("torchvision:NoSuchSet")
