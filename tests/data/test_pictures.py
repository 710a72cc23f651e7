from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image, ImageDraw

from pipeline.data import digits as finder
from pipeline.data import idx, pictures
from pipeline.errors import UsageError
from pipeline.records.forms import ModelCard
from pipeline.runtimes.classifier import load
from pipeline.training import models
from tests.support import ROOT, surroundings

CARD = models.get("mnist_cnn").card("mnist_cnn")
COLOURS = msgspec.structs.replace(CARD, prepare="resize", input=[3, 28, 28], mean=[0, 0, 0], std=[1, 1, 1])


def find(*paths: Path, card: ModelCard = CARD, as_is: bool = False) -> tuple[list[pictures.Picture], list[str]]:
    """The pictures, and why others were left out."""
    failures: list[str] = []
    return list(pictures.find(paths, card, as_is, failures)), failures


@pytest.fixture
def seven(digits) -> np.ndarray:
    """A large 7, light on dark."""
    return np.pad(np.kron(digits.images[0, 0], np.ones((5, 5), np.uint8)), 20)


def save(path: Path, image: np.ndarray, mode: str) -> None:
    """Save the same picture, dark on light, as another kind of file."""
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


@pytest.mark.parametrize("mode", ["L", "RGB", "P", "1", "LA", "CMYK", "transparent", "sixteen bits", "turned"])
def test_any_kind_of_file_is_the_same_digit(seven, release, tmp_path, mode):
    path = tmp_path / ("7.jpg" if mode in ("CMYK", "turned") else "7.png")
    save(path, seven, mode)
    ((picture,), _) = find(path)
    assert load(release / "mnist_cnn.onnx").predict(picture.pixels) == ["7"]


@pytest.mark.parametrize("card", [CARD, COLOURS], ids=["digits", "colours"])
@pytest.mark.parametrize("suffix", [".png", "-idx3-ubyte"])
def test_as_is_changes_nothing_and_takes_nothing_else(digits, tmp_path, card, suffix):
    image, path = np.roll(digits.images[3, 0], 5, axis=0), tmp_path / f"image{suffix}"

    def write(pixels: np.ndarray) -> None:
        Image.fromarray(pixels).save(path) if suffix == ".png" else path.write_bytes(idx.file(pixels[None]))

    write(image)
    ((picture,), _) = find(path, card=card, as_is=True)
    assert picture.pixels.shape == tuple(card.input) and (picture.pixels == image).all()
    assert (find(path)[0][0].pixels != image).any(), "without it, a digit is centred"
    write(image[:-1])
    assert "--as-is expects 28 × 28 pixels, received 28 × 27" in find(path, card=card, as_is=True)[1][0]


def test_sixteen_bits_are_scaled_by_the_types_range(tmp_path):
    """As X-ray pictures come: dark in 16 bits is dark in 8, whatever else is in the picture."""
    Image.fromarray(np.full((28, 28), 0x4000, np.uint16)).save(tmp_path / "x.png")
    assert (pictures.read(tmp_path / "x.png", (1, 28, 28)) == 63).all()


def test_a_damaged_or_huge_picture_is_left_out_with_the_reason(tmp_path):
    (tmp_path / "damaged.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40))
    Image.new("1", (20_000, 6_001)).save(tmp_path / "huge.png")
    found, (damaged, huge) = find(tmp_path)
    assert not found and "damaged.png: expected a picture" in damaged and "20000 × 6001 pixels" in huge


def test_a_path_without_pictures_and_a_model_of_other_channels_are_refused(tmp_path):
    for path, expected in ((tmp_path, "has no picture"), (tmp_path / "none", "no such file")):
        with pytest.raises(UsageError, match=expected):
            find(path)
    Image.new("L", (30, 30)).save(tmp_path / "a.png")
    with pytest.raises(UsageError, match="takes 4"):
        pictures.read(tmp_path / "a.png", (4, 28, 28))


def test_each_digit_is_one_unless_a_single_one_is_asked_for(seven, tmp_path):
    for name, image in (("none", np.zeros_like(seven)), ("one", seven), ("two", np.hstack([seven, seven]))):
        Image.fromarray(image).save(tmp_path / f"{name}.png")
    found = [(Path(picture.name).name, picture.remark) for picture in find(tmp_path)[0]]
    assert found == [("none.png", finder.NONE), ("one.png", None), ("two.png[1]", None), ("two.png[2]", None)]
    single = list(pictures.find([tmp_path], CARD, False, [], one=True))
    assert [picture.remark for picture in single] == [finder.NONE, None, finder.SEVERAL]


@pytest.mark.parametrize("ending", ["jpg", "jfif", "jp2", "avif", "ppm", "webp", "tif", "gif", "bmp", "nothing-known"])
def test_a_file_is_read_by_what_it_holds_by_name_and_by_folder(seven, tmp_path, ending):
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / f"seven.{ending}"
    kind = {"jfif": "JPEG", "nothing-known": "PNG"}.get(ending)
    try:
        Image.fromarray(255 - seven).save(path, kind)
    except (OSError, KeyError, ValueError):
        pytest.skip("this Pillow can't write it")
    (by_name,), (by_folder,) = (find(each)[0] for each in (path, path.parent))
    assert by_name.name == by_folder.name and np.array_equal(by_name.pixels, by_folder.pixels) and not by_name.remark


def test_a_folder_names_what_is_no_picture_and_passes_over_what_a_system_puts_there(seven, tmp_path):
    Image.fromarray(seven).save(tmp_path / "seven.png")
    for name in ("Thumbs.db", "desktop.ini", ".DS_Store", "notes.txt", "photo.heic"):
        (tmp_path / name).write_text("no picture")
    found, failures = find(tmp_path)
    assert len(found) == 1 and [Path(each.partition(":")[0]).name for each in failures] == ["notes.txt", "photo.heic"]


@pytest.mark.parametrize("ending", ["tif", "gif", "mpo"])
def test_every_frame_is_one_and_what_is_left_out_is_said(seven, tmp_path, ending, monkeypatch):
    first, *others = (Image.fromarray(np.rot90(seven, turns)) for turns in range(3))
    first.save(tmp_path / f"a.{ending}", save_all=True, append_images=others)
    assert [Path(each.name).name for each in find(tmp_path)[0]] == [f"a.{ending}#{number}" for number in (1, 2, 3)]
    monkeypatch.setattr(pictures, "FRAMES", 2)
    found, (said,) = find(tmp_path)
    assert len(found) == 2 and "has 3 frames: those after 2 are left out" in said


@pytest.mark.parametrize(
    ("mode", "ending", "size"),
    [
        ("L", "jpg", (8000, 6000)),
        ("RGB", "jpg", (8000, 6000)),
        ("RGB", "webp", (8000, 6000)),
        *(
            pytest.param(*kind.split(), (9248, 6936), marks=pytest.mark.exhaustive)
            for kind in ("L jpg", "L png", "L jp2", "RGBA png", "RGBA webp")
        ),
        *(
            pytest.param("RGB", ending, (9248, 6936), marks=pytest.mark.exhaustive)
            for ending in ("jpg", "png", "webp", "avif", "jp2")
        ),
    ],
)
def test_memory_stays_under_three_times_the_picture(tmp_path, mode, ending, size):
    """48 and 64 megapixels, turned when read, in a process of its own, beyond what a small picture takes."""
    sheet = Image.new(mode, size, "white")
    ImageDraw.Draw(sheet).line([(2000, 3400), (2000, 3000), (2700, 3250)], "black", 60)
    options = {"webp": {"method": 0}, "avif": {"speed": 10}, "png": {"compress_level": 1}}.get(ending, {})
    if ending == "jp2":  # which has no EXIF data
        sheet = sheet.transpose(Image.Transpose.ROTATE_270)
    for name, picture, how in (("large", sheet, options), ("small", sheet.reduce(10), {})):
        exif = Image.Exif()  # for each its own: Pillow takes the turn out of the one that it writes into an AVIF
        exif[0x0112] = 6
        picture.save(tmp_path / f"{name}.{ending}", exif=exif, **how)
    code = (
        "import re, sys; from pipeline.apps import predict; from pathlib import Path; "
        "assert predict.run(Path(sys.argv[1])).facts.rows[0].prediction == '7'; "
        "print(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])"
    )
    kilobytes = [
        int(subprocess.check_output([sys.executable, "-c", code, tmp_path / name], cwd=ROOT, env=surroundings()))
        for name in (f"small.{ending}", f"large.{ending}")
    ]
    assert (kilobytes[1] - kilobytes[0]) * 1024 < 3 * size[0] * size[1] * len(mode)


def test_each_picture_is_taken_once_and_hidden_ones_are_not(tmp_path):
    for name in ("a.png", ".b.png"):
        Image.new("L", (30, 30)).save(tmp_path / name)
    assert [Path(picture.name).name for picture in find(tmp_path, tmp_path / "a.png")[0]] == ["a.png"]


@pytest.mark.parametrize("resolutions", [1, 2, 6])
def test_a_digit_is_where_it_was_in_a_jpeg_2000_decoded_at_half_its_resolution(
    release, seven, tmp_path, resolutions, monkeypatch
):
    Image.fromarray(255 - np.kron(seven, np.ones((3, 3), np.uint8))).save(
        tmp_path / "7.jp2", num_resolutions=resolutions
    )
    (whole,), _ = find(tmp_path)
    monkeypatch.setattr(pictures, "HALVED", 1000)
    (half,), failures = find(tmp_path)
    assert load(release / "mnist_cnn.onnx").predict(np.stack([whole.pixels, half.pixels])) == ["7", "7"]
    assert np.abs(np.subtract(half.box, whole.box)).max() <= 3 and not failures
    assert (half.pixels != whole.pixels).any() == (resolutions > 1)


def test_a_cut_jpeg_2000_is_refused_whatever_its_size(seven, tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "HALVED", 1000)
    Image.fromarray(seven).save(tmp_path / "7.jp2")
    (tmp_path / "7.jp2").write_bytes((tmp_path / "7.jp2").read_bytes()[:400])
    found, (said,) = find(tmp_path)
    assert not found and "7.jp2: expected a picture: " in said


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_a_webp_has_the_colours_that_pillow_reads(tmp_path, mode):
    pixels = np.random.default_rng(0).integers(0, 256, (28, 28, len(mode)), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.webp", lossless=True, exact=True)
    (picture,), _ = find(tmp_path, card=COLOURS)
    assert (picture.pixels == pixels[..., :3].transpose(2, 0, 1)).all()
