from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from pipeline.data import digits as preparation
from pipeline.runtimes.classifier import load

LONG = pytest.mark.exhaustive


def prepare(image: np.ndarray) -> np.ndarray:
    return preparation.find(image, one=True)[0].pixels


def enlarged(image: np.ndarray, times: int) -> np.ndarray:
    return np.kron(image, np.ones((times, times), np.uint8))


def paper(image: np.ndarray) -> np.ndarray:
    return np.pad(255 - enlarged(image, 5), 30, constant_values=255)


def noisy(image: np.ndarray, deviation: float) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, deviation, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def test_mnists_own_images_stay_as_they_are(digits):
    for image in digits.images[:, 0]:
        assert np.array_equal(prepare(image), image)


@pytest.mark.parametrize(
    ("shown", "loss"),
    [
        pytest.param(lambda image: np.pad(enlarged(image, 7), [(60, 20), (10, 90)]), 0.005, marks=LONG),
        (lambda image: np.pad(255 - enlarged(image, 3), 9, constant_values=255), 0.005),
        pytest.param(lambda image: np.pad(image, [(300, 10), (5, 400)]), 0.005, marks=LONG),
        pytest.param(lambda image: noisy(paper(image) * 0.6 + 60, 6), 0.02, marks=LONG),
        (lambda image: (paper(image) * np.linspace(0.45, 1, 200)).astype(np.uint8), 0.02),
    ],
    ids=["light on dark", "dark on light", "small on a large sheet", "grey and noisy", "lit from a side"],
)
def test_a_digit_is_recognised_however_it_is_shown(digits, release, shown, loss):
    model, images, labels = load(release / "mnist_cnn.onnx"), digits.images[:250, 0], digits.labels[:250]
    prepared = np.stack([prepare(shown(image)) for image in images])
    assert prepared.shape == (250, 28, 28) and prepared.dtype == np.uint8
    plain, read = ((model(pixels).argmax(1) == labels).mean() for pixels in (images, prepared))
    assert read >= plain - loss


def test_it_lies_in_the_box_and_is_centred_by_mass():
    image = np.zeros((200, 100), np.uint8)
    image[20:180, 10:16] = 255
    image[20:26, 10:60] = 255
    prepared = prepare(image)
    rows, columns = np.flatnonzero(prepared.any(1)), np.flatnonzero(prepared.any(0))
    assert rows[-1] - rows[0] + 1 == preparation.BOX and columns[-1] - columns[0] + 1 <= preparation.BOX
    assert all(abs(centre - 13.5) <= 0.5 for centre in ndimage.center_of_mass(prepared)) and prepared.max() == 255


@pytest.mark.parametrize("value", [0, 128, 255])
def test_an_empty_sheet_is_empty(value):
    sheet = np.full((300, 200), value, np.uint8)
    assert not prepare(sheet).any() and not prepare(noisy(sheet, 4)).any()


def test_a_mnist_image_saved_as_colours_is_one_too(digits):
    assert np.array_equal(prepare(np.stack([digits.images[0, 0]] * 3, axis=2)), digits.images[0, 0])


def test_specks_are_no_digits():
    specks = np.where(np.random.default_rng(3).random((500, 500)) < 0.002, np.uint8(0), np.uint8(255))
    assert [digit.remark for digit in preparation.find(specks)] == [preparation.NONE]


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (3, 2), (28, 28), (2000, 30), (30, 40, 3), (1, 9, 3)])
def test_any_size_gives_28_by_28(shape):
    image = np.random.default_rng(2).integers(0, 256, shape, np.uint8)
    assert prepare(image).shape == (28, 28)
