"""Pictures that were once answered wrongly, each with what is right, and drawn sheets by `tests.pictures`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import pictures
from tests.support import ROOT, command

CASES = Path(__file__).parent / "cases"


def answers(path: Path, *options: str) -> list[dict]:
    """The rows of `pipeline predict`, which says nothing but its bar on stderr."""
    result = command("predict", path, "--model", ROOT / "artifacts/mnist_cnn.onnx", "--json", *options)
    assert result.returncode == 0, result
    assert not [line for line in result.stderr.splitlines() if line.strip() and not line.startswith("predict: ")]
    return json.loads(result.stdout)["facts"]["rows"]


def large(digits, label: int, side: int) -> np.ndarray:
    """A digit of the test set, uint8 `[side, side]`, light on black."""
    image = digits.images[np.flatnonzero(digits.labels == label)[0], 0]
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC))


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("01_dim40_28x28_six.png", "6"),
        ("04_white_pen_on_transparent_seven.png", "7"),
        ("06_seven_on_white_1200.png", "7"),
        ("07_sheet_on_desk_one.png", "1"),
        ("light_falling_off_eight.jpg", "8"),
        ("frame_lit_from_a_side_three.jpg", "3"),
        ("red_frame_green_four.jpg", "4"),
    ],
)
def test_a_single_digit_is_right_without_a_remark(name, right):
    (row,) = answers(CASES / name, "--strict")
    assert row["prediction"] == right and row["remark"] is None and len(row["box"]) == 4


@pytest.mark.parametrize("side", [400, 600, 1000, 2000, 3000])
@pytest.mark.parametrize("second", [(100, 250), (250, 100)], ids=["side by side", "one above the other"])
def test_two_digits_are_two_on_a_sheet_of_any_size(digits, tmp_path, side, second):
    sheet = np.full((side, side), 247.0)
    for label, (top, left) in ((4, (100, 100)), (2, second)):
        sheet[top : top + 120, left : left + 120] -= large(digits, label, 120)
    sheet += np.random.default_rng(0).normal(0, 3, sheet.shape)
    Image.fromarray(np.clip(np.rint(sheet), 0, 255).astype(np.uint8)).save(tmp_path / "sheet.png", compress_level=1)
    rows = answers(tmp_path / "sheet.png", "--strict")
    assert [row["prediction"] for row in rows] == ["4", "2"]
    assert [Path(row["image"]).name for row in rows] == ["sheet.png[1]", "sheet.png[2]"]
    for row, (top, left) in zip(rows, ((100, 100), second), strict=True):
        assert left <= row["box"][0] < row["box"][2] <= left + 120 and top <= row["box"][1] < row["box"][3] <= top + 120


def test_every_page_is_answered(digits, tmp_path):
    first, *others = (Image.fromarray(255 - np.pad(large(digits, label, 112), 20)) for label in (1, 2, 3, 4))
    first.save(tmp_path / "pages.tif", save_all=True, append_images=others, compression="tiff_deflate")
    assert [row["prediction"] for row in answers(tmp_path / "pages.tif")] == ["1", "2", "3", "4"]


def test_what_is_no_number_is_background(digits, tmp_path):
    nine = large(digits, 9, 56).astype(np.float32) / 255
    nine[0, :3] = np.nan
    nine[1, 0], nine[1, 1] = np.inf, -np.inf
    Image.fromarray(nine).save(tmp_path / "nine.tif")
    (row,) = answers(tmp_path / "nine.tif", "--strict")
    assert row["prediction"] == "9"


def test_a_remark_fails_a_strict_run_only(tmp_path):
    Image.new("L", (300, 300), "white").save(tmp_path / "empty.png")
    assert answers(tmp_path / "empty.png")[0]["remark"] == "no digit found"
    strict = command("predict", tmp_path, "--model", ROOT / "artifacts/mnist_cnn.onnx", "--strict")
    assert strict.returncode == 1 and "empty.png: no digit found" in strict.stderr


@pytest.mark.exhaustive
def test_drawn_sheets_are_read_right_or_remarked():
    """The first 24 of `python -m tests.pictures`."""
    judged = pictures.measure("test", 0, 24)
    verdicts = [each["verdict"] for each in judged]
    assert verdicts.count("right") >= 23 and verdicts.count("right") + verdicts.count("remarked") == 24, judged
