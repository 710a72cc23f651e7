"""report.html in a real browser; run with EDGE_PIPELINE_SCREENS=1 it renews tests/screens."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest

from pipeline.device import deploy
from pipeline.records import manifest
from pipeline.records.devices import Board
from pipeline.records.reports import Estimate
from pipeline.release import ship
from pipeline.release.report import charts, measures
from pipeline.runtimes.classifier import load
from tests.support import browser, command, one_line
from tests.support.releases import NAME


@pytest.fixture(scope="module")
def report(shipped) -> Path:
    return shipped / NAME / "report.html"


def mistakes(release: Path) -> set[str]:
    """Numbers of the test images that some shipped file gets wrong in ONNX Runtime."""
    rows = manifest.read(release / "verification.json").facts.rows
    return {index for row in rows if row.runtime == "onnxruntime" for index in row.wrong}


@pytest.mark.parametrize("view", list(browser.VIEWS))
def test_it_renders_whole_with_nothing_from_outside(report, release, view):
    with browser.opened(view) as opened:
        page = opened.page
        page.goto(report.as_uri())
        assert page.title() == "mnist_cnn 1.0.0: report"
        assert "Verified: every form reaches 99.40" in page.text_content("#verdict")
        sections = ["accuracy", "mistakes", "confusion", "calibration", "latency", "training", "layers", "chain"]
        for section in [*sections, "environment"]:
            box = page.locator(f"#{section}").bounding_box()
            assert box["height"] > 80 and box["width"] > 200, section
        for section in ("accuracy", "calibration", "latency", "training"):
            drawing = page.locator(f"#{section} svg").first
            assert drawing.bounding_box()["height"] > 100 and drawing.locator("path").count() > 5
        assert page.locator("#mistakes figure").count() == len(mistakes(release))
        assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth === 28)")
        ink, paper = page.evaluate(
            "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
            ".map(c => c.match(/\\d+/g).map(Number).reduce((a, b) => a + b))"
        )
        assert (ink > paper) == (view == "dark") and abs(ink - paper) > 400
        text = page.evaluate("getComputedStyle(document.querySelector('#accuracy svg text')).fill.match(/\\d+/g)[0]")
        assert (int(text) > 128) == (view == "dark"), "drawings take the page's colours"
        assert opened.fits() and not opened.errors and not opened.outside(report.as_uri())
        opened.keep(f"report-{view}")
        page.locator("#mistakes").scroll_into_view_if_needed()
        page.evaluate("document.querySelector('#confusion').scrollIntoView()")
        opened.keep(f"report-{view}-confusion")


def test_it_prints(report):
    with browser.opened("dark") as opened:
        opened.page.goto(report.as_uri())
        opened.page.emulate_media(media="print", color_scheme="light")
        pdf = opened.page.pdf()
    assert pdf.startswith(b"%PDF") and 3 <= len(re.findall(rb"/Type\s*/Page\b", pdf)) <= 20


def test_what_it_shows_is_what_was_measured(report, release):
    """Each misclassified image is the one that the file gets wrong, with its probabilities."""
    from html import unescape

    text = report.read_text()
    recorded = manifest.read(release / "verification.json").facts
    (row,) = (row for row in recorded.rows if row.form == "mnist_cnn.onnx")
    shown = re.findall(r'alt="test image (\d+): (\d)"', text)
    assert {index for index, _ in shown} == mistakes(release)
    answers = dict(re.findall(r'alt="test image (\d+): .*?<div>float32: (\d)', text, re.DOTALL))
    right = {index: int(label) for index, label in shown}
    assert {index: int(answer) for index, answer in answers.items()} == right | row.wrong
    first = f"{recorded.certified[0].at_least:.2%}".replace("%", " %")
    assert text.count(f'<td class="n">≥ {first}</td>') == sum(row.kind == "half" for row in recorded.rows) > 0
    for proof in recorded.certified:
        assert f"<b>{proof.at_least:.2%} or more</b> for every summation order".replace("%", " %") in text
    for each in (*manifest.read(release / "mnist_cnn.onnx").parents.values(), recorded.data.name):
        assert each in unescape(text)
    cells = [int(count) for count in re.findall(r'<td class="(?:right|wrong)">(\d+)<', text)]
    assert sum(cells) == 10_000
    assert sum(int(count) for count in re.findall(r'<td class="right">(\d+)<', text)) == row.correct
    assert not re.search(r'(?:src|href)="(?!data:|#)', text) and "url(http" not in text and "<script" not in text


def test_mistakes_mark_the_images_that_the_files_disagree_on():
    same, other = np.eye(3)[[0, 1, 2]], np.eye(3)[[0, 2, 2]]
    rows = measures.mistakes({"a.onnx": same, "b.fp16.onnx": other}, np.array([1, 1, 2]))
    assert [(row["index"], row["label"], row["differ"]) for row in rows] == [(0, 1, False), (1, 1, True)]
    assert rows[1]["answers"]["b.fp16.onnx"][0] == [2, 1.0]


def test_the_calibration_error_is_guos():
    """By hand: two bins of one answer each, one right at .8, one wrong at .6."""
    result = measures.calibration(np.array([[0.8, 0.2], [0.6, 0.4]]), np.array([0, 1]))
    assert result["error"] == pytest.approx((0.2 + 0.6) / 2)
    assert [(each["n"], each["right"]) for each in result["bins"]] == [(1, 0), (1, 1)]


def test_probabilities_are_the_files_own(report, release, digits):
    with load(release / "mnist_cnn.onnx", threads=1) as model:
        image = digits.images[321]
        first, second = np.sort(model.probabilities(image)[0])[::-1][:2]
    (block,) = re.findall(r'alt="test image 321: .*?</figure>', report.read_text(), re.DOTALL)
    assert f"{100 * first:.1f} %" in block and f"{100 * second:.1f} %" in block


def test_drawings_have_the_pages_colours_and_no_ids_that_clash(report):
    text = report.read_text()
    ids = re.findall(r' id="([\w-]+)"', text)
    assert len(ids) == len(set(ids))
    assert not [colour for colour in charts.COLOURS.values() if colour in text] and "var(--ink)" in text


def test_boards_stand_side_by_side_and_one_with_other_files_is_refused(release, few, tmp_path):
    made = deploy.run(release, out=tmp_path / "desk", data=str(few), runtime="none", gate=0.9, quick=True, batch=(1,))
    row, *others = made.facts.rows
    (timed,) = row.latency
    p99 = Estimate(percent=99.0, confidence=0.99, needed=662, made=700, discarded=0, microseconds=1234.0)
    better = msgspec.structs.replace(timed, estimates=[p99], millijoules_per_image=0.75)
    eight = msgspec.structs.replace(timed, batch=8, microseconds={"p50": 8888.0})
    row = msgspec.structs.replace(row, latency=[eight, better])
    rows = [row, msgspec.structs.replace(row, arithmetic=f"{row.arithmetic}, zero copy"), *others]
    orin = Board(
        model="NVIDIA Jetson Orin Nano", release=None, jetpack="6.2.1", power_mode="MAXN_SUPER", gpu_mhz={},
        pinned=True, temperatures={}, throttling=[], watts=None,
    )  # fmt: skip
    failure = f"{row.form} ({row.runtime}: {row.arithmetic}): accuracy 90.00 % is under the gate"
    facts = msgspec.structs.replace(made.facts, rows=rows, jetson=orin, passed=False, failures=[failure])
    (tmp_path / "orin").mkdir()
    manifest.write(tmp_path / "orin/device-report.json", None, facts=facts, parents=made.parents)
    boards = tmp_path / "desk", tmp_path / "orin"
    shipped = ship.run(release, out=tmp_path / "release", board=boards)
    assert list(shipped.options["boards"]) == ["desk", "orin"]
    text = (tmp_path / "release" / NAME / "report.html").read_text()
    section = re.search(r'<section id="boards">.*?</section>', text, re.DOTALL)[0]
    assert "Orin Nano, JetPack 6.2.1, mode MAXN_SUPER" in section and "1234*" in section and ">0.75<" in section
    assert '<td class="n">1</td><td class="n">' in section and "8888" not in section
    assert section.count(">no<") == 1 and section.count(">yes<") == 2 * len(rows) - 2
    assert f"orin: {failure}" in section
    same = f"{row.form} ({row.runtime}): gives the same logits whatever the image"
    assert [msgspec.structs.replace(facts, failures=[same]).passes(each) for each in rows] == [
        (each.form, each.runtime) != (row.form, row.runtime) for each in rows
    ]
    whole = msgspec.structs.replace(facts, failures=["few.npz: 2 of 500 images are in it more than once"])
    assert not any(whole.passes(each) for each in rows)
    (tmp_path / "other").mkdir()
    shutil.copytree(tmp_path / "orin", tmp_path / "other/orin")
    line = ["ship", release, "--out", tmp_path / "no", "--board", tmp_path / "orin", "--board", tmp_path / "other/orin"]
    assert "--board: expected folders of different names" in one_line(command(*line), 2)
    parents = {**made.parents, "mnist_cnn.onnx": "0" * 64}
    manifest.write(tmp_path / "orin/device-report.json", None, facts=facts, parents=parents)
    error = one_line(command("ship", release, "--out", tmp_path / "no", "--board", tmp_path / "orin"), 1)
    assert "--board orin: deployed another mnist_cnn.onnx: expected sha256" in error and not (tmp_path / "no").exists()
