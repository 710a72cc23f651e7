from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import pytest

from pipeline.measure import statistics, timing
from pipeline.records import manifest
from pipeline.records.reports import Timed
from pipeline.stages import bench
from tests.support import command, one_line


@pytest.fixture(scope="module")
def latency(chain) -> dict:
    return json.loads((chain / "latency.json").read_text())


def test_every_form_is_measured_at_every_batch_size(latency):
    measured = {(row["form"], row["runtime"], row["batch"]) for row in latency["rows"]}
    forms = [("mnist_cnn.safetensors", "pytorch"), ("mnist_cnn.unfolded.onnx", "onnxruntime")]
    forms += [("mnist_cnn.onnx", "onnxruntime"), ("mnist_cnn.fp16.onnx", "onnxruntime")]
    forms += [("mnist_cnn.int8.onnx", "onnxruntime")]
    assert measured == {(*form, 1) for form in forms}


def test_percentiles_are_in_order_and_throughput_fits_them(latency):
    for row in latency["rows"]:
        times = list(row["microseconds"].values())
        assert times[0] > 0 and times == sorted(times)
        most = timing.ROUNDS * 103  # a twelfth of 24,576, in twenty turns; fewer on a machine that is slow
        assert 0 < row["requests"] <= most and row["requests"] % timing.ROUNDS == 0
        assert row["images_per_second"] > 0 and len(row["round_medians"]) == timing.ROUNDS


def test_the_environment_is_on_record(latency, chain):
    assert latency["machine"]["processor"] and latency["machine"]["cores"] >= 1 and latency["threads"] == 1
    versions = manifest.read(chain / "latency.json").versions
    assert "torch" in versions and versions.keys() & {"onnxruntime", "onnxruntime-gpu"}


def timed(kind: str, batch: int, rounds: Sequence[np.ndarray], **times: Any) -> Timed:
    about = {"form": kind, "kind": kind, "sha256": "0" * 64, "runtime": "any", "mode": "", "arithmetic": "float32"}
    return timing.Subject(about, batch, lambda: None, rounds=[*rounds], **times).timed()


def test_figures_are_those_of_the_times():
    """Nothing is clipped: one slow request is the p99.9 and counts in the throughput."""
    times = np.full(2000, 1e-3)
    times[:3] = 1.0
    row = timed("folded", 4, [times] * 5, gpu=[2e-3] * 30, power={"watts": 5.0})
    assert row.microseconds["p50"] == pytest.approx(1000) and row.microseconds["p99.9"] == pytest.approx(1e6)
    assert row.images_per_second == pytest.approx(4 * 2000 / (3 + 1.997)) and row.spread == 0
    assert row.gpu_microseconds == {"p50": 2000}
    assert row.watts == 5
    p90, p99 = row.estimates
    assert (p90.needed, p90.made, p90.discarded, p90.confidence) == (64, 10_000, 929, 0.99)
    assert (p99.needed, p99.made, p99.discarded) == (662, 10_000, 76) and p99.microseconds == pytest.approx(1000)
    wobbly = timed("folded", 1, [np.full(8, seconds) for seconds in (0.8e-3, 1e-3, 1e-3, 1e-3, 1.25e-3)])
    assert wobbly.images_per_second == pytest.approx(1000) and wobbly.windows[0] == pytest.approx(1250)
    assert wobbly.spread == pytest.approx(0.45) and wobbly.spread > timing.UNSTABLE
    assert [(each.made, each.microseconds) for each in wobbly.estimates] == [(40, None)] * 2
    assert wobbly.gpu_microseconds is wobbly.watts is wobbly.millijoules_per_image is None


def test_a_warm_up_ends_however_short_a_request_is():
    begun = time.perf_counter()
    timing._warm_up(lambda: sum(range(200)))
    assert time.perf_counter() - begun < timing.WARM_UP[1] + 2 * timing.WINDOW + 1


def test_a_speedup_compares_the_same_rounds():
    """The machine slows down to a third in the second half; the ratio doesn't notice."""
    slowing = [np.full(20, seconds) for seconds in [100.0] * 10 + [300.0] * 10]
    rows = [timed("checkpoint", 1, slowing), timed("folded", 1, [times / 4 for times in slowing])]
    one, other = bench._speedup(rows)
    assert one.median == 1 and other.median == 4 and other.quartiles == [4, 4]


def test_the_modes_of_an_engine_can_be_told_apart_in_its_speedups(chain, capsys):
    made = manifest.read(chain / "latency.json")
    rows = [timed("checkpoint", 1, [np.full(20, 1.0)] * 20)]
    rows += [msgspec.structs.replace(rows[0], form="e", runtime="tensorrt", mode=mode) for mode in ("graph", "stream")]
    bench.show(dataclasses.replace(made, facts=msgspec.structs.replace(made.facts, speedup=bench._speedup(rows))))
    shown = capsys.readouterr().out.partition("against the checkpoint")[2]
    assert "tensorrt, graph" in shown and "tensorrt, stream" in shown


def test_compare_sets_the_file_beside_pytorch_eager(chain):
    forms = [chain / "mnist_cnn.safetensors", chain / "mnist_cnn.onnx"]
    result = command("bench", "--compare", "--quick", "--batch", "1", "--batch", "8", "--json", *forms)
    found = json.loads(result.stdout)
    assert found["path"] is None and {row["form"] for row in found["facts"]["speedup"]} == {form.name for form in forms}


def test_percentile_confidence_and_requests_are_printed(chain, capsys):
    """What a quick look has not, a full one prints; 680 requests at batch 64 are enough for a p99."""
    times = [np.full(34, seconds) for seconds in np.linspace(1e-3, 2e-3, timing.ROUNDS)]
    made = manifest.read(chain / "latency.json")
    bench.show(made)
    shown = capsys.readouterr()
    assert "quick: not MLPerf-style" in shown.err and "confidence" not in shown.out and "p90*" not in shown.out
    facts = msgspec.structs.replace(made.facts, rows=[timed("folded", 64, times)], quick=False, unstable=[])
    bench.show(dataclasses.replace(made, facts=facts))
    shown = capsys.readouterr()
    for percent, needed in (("p90", 64), ("p99", 662)):
        line = (
            f"* {percent}, MLPerf-style early-stopping estimate at 99% confidence: {needed} requests needed, 680 made"
        )
        assert line in shown.out and f"{percent}*" in shown.out
    assert "quick" not in shown.err


def test_every_batch_size_gets_as_many_requests_as_the_estimates_need():
    subject = timing.Subject({}, 64, lambda: None)
    timing.measure([subject])
    assert sum(map(len, subject.rounds)) == 680 >= statistics.needed(99)


def test_a_quick_look_has_a_twelfth_of_the_requests():
    subject = timing.Subject({}, 1, lambda: None)
    timing.measure([subject], quick=True)
    assert sum(map(len, subject.rounds)) == timing.ROUNDS * 103  # a twelfth of 24,576, in twenty turns


@pytest.mark.parametrize(("quick", "requests"), [(False, 40), (True, 20)])
def test_a_slow_form_gets_as_many_requests_as_fit_into_its_time(monkeypatch, quick, requests):
    """And its estimates, for which they are too few, are none."""
    monkeypatch.setattr(timing, "SECONDS", (1.1, 0.1))
    about = {
        "form": "slow",
        "kind": "folded",
        "sha256": "0" * 64,
        "runtime": "any",
        "mode": "",
        "arithmetic": "float32",
    }
    subject = timing.Subject(about, 1, lambda: time.sleep(0.02))
    timing.measure([subject], quick=quick)
    row = subject.timed(quick=quick)
    assert timing.ROUNDS <= row.requests <= requests
    assert row.microseconds.keys() == {"p50"} and all(each.microseconds is None for each in row.estimates)


def test_an_unstable_run_is_said_to_be(chain, capsys):
    made = manifest.read(chain / "latency.json")
    made = dataclasses.replace(made, facts=msgspec.structs.replace(made.facts, unstable=["mnist_cnn.onnx"]))
    bench.show(made)
    assert "unstable" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "message"),
    [(["--batch", "0"], "at least 1"), (["--threads", "0"], "at least 1"), (["--compare"], "needs the checkpoint")],
)
def test_wrong_use(chain, wrong, message):
    assert message in one_line(command("bench", chain / "mnist_cnn.onnx", *wrong), 2)
