from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data import images, pictures
from pipeline.errors import UsageError
from pipeline.runtimes.classifier import load
from pipeline.training import models

CARD = models.get("mnist_cnn").card("mnist_cnn")


def test_mnists_own_images_stay_as_they_are(digits):
    for image in digits.images[:, 0]:
        assert images.prepare(image) is image


@pytest.mark.parametrize(
    "shown",
    [
        lambda image: np.pad(np.kron(image, np.ones((7, 7), np.uint8)), [(60, 20), (10, 90)]),
        lambda image: np.pad(255 - np.kron(image, np.ones((3, 3), np.uint8)), 9, constant_values=255),
        lambda image: np.pad(image, [(300, 10), (5, 400)]),
        lambda image: photograph(image),
    ],
    ids=["light on dark", "dark on light", "small on a large sheet", "grey and noisy"],
)
def test_however_it_is_shown_it_is_read_as_well(digits, release, shown):
    """No worse than the images themselves, but for two in a hundred where there is noise."""
    model, some = load(release / "mnist_cnn.onnx"), digits.images[:1000, 0]
    plain = (model(some).argmax(1) == digits.labels[:1000]).mean()
    found = np.stack([images.prepare(shown(image)) for image in some])
    assert found.shape == (1000, 28, 28) and found.dtype == np.uint8
    read = (model(found).argmax(1) == digits.labels[:1000]).mean()
    assert read >= plain - (0.02 if shown(some[0]).min() > 20 else 0.005)


def photograph(image: np.ndarray) -> np.ndarray:
    paper = np.pad(255 - np.kron(image, np.ones((5, 5), np.uint8)), 30, constant_values=255) * 0.6 + 60
    return np.clip(paper + np.random.default_rng(0).normal(0, 6, paper.shape), 0, 255).astype(np.uint8)


def test_it_lies_in_the_box_and_is_centred_by_mass():
    image = np.zeros((200, 100), np.uint8)
    image[20:180, 10:16] = 255
    image[20:26, 10:60] = 255
    found = images.prepare(image)
    rows, columns = np.flatnonzero(found.any(1)), np.flatnonzero(found.any(0))
    assert rows[-1] - rows[0] + 1 == images.BOX and columns[-1] - columns[0] + 1 <= images.BOX
    assert all(abs(centre - 13.5) <= 0.5 for centre in images._mass(found)) and found.max() == 255


@pytest.mark.parametrize("value", [0, 128, 255])
def test_an_empty_sheet_is_empty(value):
    sheet = np.full((300, 200), value, np.uint8)
    assert not images.prepare(sheet).any()
    noise = np.clip(sheet + np.random.default_rng(1).normal(0, 4, sheet.shape), 0, 255).astype(np.uint8)
    assert not images.prepare(noise).any()


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (3, 2), (28, 28), (2000, 30)])
def test_any_size_gives_28_by_28(shape):
    image = np.random.default_rng(2).integers(0, 256, shape, np.uint8)
    assert images.prepare(image).shape == (28, 28)


def save(path: Path, image: np.ndarray, mode: str) -> Path:
    """The same picture, dark on light, in another kind of file."""
    dark = Image.fromarray(255 - image)
    if mode == "transparent":
        ink = Image.new("RGBA", dark.size, (0, 0, 80, 255))
        ink.putalpha(Image.fromarray(image))
        ink.save(path)
    elif mode == "sixteen bits":
        Image.fromarray((255 - image).astype(np.uint16) * 257).save(path)
    elif mode == "turned":
        exif = Image.Exif()
        exif[0x0112] = 6  # to be turned by 90 degrees clockwise when shown
        dark.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
    else:
        dark.convert(mode).save(path)
    return path


@pytest.mark.parametrize("mode", ["L", "RGB", "P", "1", "LA", "CMYK", "transparent", "sixteen bits", "turned"])
def test_any_kind_of_file_is_the_same_digit(digits, release, tmp_path, mode):
    large = np.pad(np.kron(digits.images[0, 0], np.ones((5, 5), np.uint8)), 20)
    path = save(tmp_path / ("7.jpg" if mode in ("CMYK", "turned") else "7.png"), large, mode)
    (found,) = pictures.find((path,), CARD, False, [])
    assert load(release / "mnist_cnn.onnx").predict(found.pixels) == ["7"]


def test_as_is_changes_nothing_and_takes_nothing_else(digits):
    image = np.roll(digits.images[3, 0], 5, axis=0)
    assert images.prepare(image, as_is=True) is image and images.prepare(image) is not image
    with pytest.raises(UsageError, match="--as-is expects 28 × 28"):
        images.prepare(image[:-1], as_is=True)


def test_what_is_no_picture_is_said(tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40))
    bomb = Image.new("1", (10_000, 6_000))
    bomb.save(tmp_path / "bomb.png")
    for path, expected in ((tmp_path / "a.png", "expected a picture"), (tmp_path / "bomb.png", "10000 × 6000 pixels")):
        with pytest.raises(UsageError, match=expected):
            pictures.read(path)
    (tmp_path / "empty").mkdir()
    for path, expected in ((tmp_path / "empty", "has no picture"), (tmp_path / "none", "no such file")):
        with pytest.raises(UsageError, match=expected):
            list(pictures.find((path,), CARD, False, []))


def test_light_from_a_side_is_no_ink(digits, release):
    def lit(image):
        paper = np.pad(255 - np.kron(image, np.ones((5, 5), np.uint8)), 30, constant_values=255).astype(float)
        return (paper * np.linspace(0.45, 1, paper.shape[1])).astype(np.uint8)

    model, some = load(release / "mnist_cnn.onnx"), digits.images[:200, 0]
    found = np.stack([images.prepare(lit(image)) for image in some])
    assert (model(found).argmax(1) == digits.labels[:200]).mean() >= 0.97


def test_no_digit_and_several_are_remarked(digits, tmp_path):
    one = np.pad(np.kron(digits.images[0, 0], np.ones((5, 5), np.uint8)), 20)
    for name, image in (("none", np.zeros_like(one)), ("one", one), ("two", np.hstack([one, one]))):
        Image.fromarray(image).save(tmp_path / f"{name}.png")
    found = pictures.find((tmp_path,), CARD, False, [])
    assert [picture.remark for picture in found] == [pictures.NONE, None, pictures.SEVERAL]


def test_each_picture_is_taken_once_hidden_ones_not_and_damaged_ones_are_told(tmp_path):
    for name in ("a.png", ".b.png"):
        Image.new("L", (30, 30)).save(tmp_path / name)
    (tmp_path / "c.png").write_text("meow")
    bad = []
    found = list(pictures.find((tmp_path, tmp_path / "a.png"), CARD, False, bad))
    assert [Path(picture.name).name for picture in found] == ["a.png"] and "c.png: expected a picture" in bad[0]
