from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence

import msgspec
import numpy as np
import pytest

from pipeline.measure import timing
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
        assert row["requests"] == timing.ROUNDS * max(8, timing.ENOUGH // 12 // timing.ROUNDS // row["batch"])
        assert row["images_per_second"] > 0 and len(row["round_medians"]) == timing.ROUNDS


def test_the_environment_is_on_record(latency, chain):
    assert latency["machine"]["processor"] and latency["machine"]["cores"] >= 1 and latency["threads"] == 1
    versions = manifest.read(chain / "latency.json").versions
    assert "torch" in versions and versions.keys() & {"onnxruntime", "onnxruntime-gpu"}


def timed(kind: str, batch: int, rounds: Sequence[np.ndarray], **times: list[float]) -> Timed:
    about = {"form": kind, "kind": kind, "sha256": "0" * 64, "runtime": "any", "mode": "", "arithmetic": "float32"}
    return timing.Subject(about, batch, lambda: None, rounds=[*rounds], **times).timed()


def test_figures_are_those_of_the_times():
    """Nothing is clipped: one slow request is the p99.9 and counts in the throughput."""
    times = np.full(5000, 1e-3)
    times[:6] = 1.0
    row = timed("folded", 4, [times, times.copy()], gpu=[2e-3] * 30, watts=[4.0, 6.0])
    assert row.microseconds["p50"] == pytest.approx(1000) and row.microseconds["p99.9"] == pytest.approx(1e6)
    assert row.images_per_second == pytest.approx(4 * 10_000 / (2 * (6 + 4.994))) and row.variation == 0
    assert row.gpu_microseconds == {"p50": 2000}
    assert row.watts == 5 and row.millijoules_per_image == pytest.approx(5000 / row.images_per_second)
    wobbly = timed("folded", 1, [times, times * 1.2])
    assert wobbly.variation == pytest.approx(0.1 / 1.1) and wobbly.variation > timing.UNSTABLE
    assert wobbly.gpu_microseconds is wobbly.watts is wobbly.millijoules_per_image is None


def test_a_warm_up_ends_however_short_a_request_is():
    begun = time.perf_counter()
    timing._warm_up(lambda: sum(range(200)))
    assert time.perf_counter() - begun < timing.WARM_UP[1] + 2 * timing.WINDOW + 1


def test_a_speedup_compares_the_same_rounds():
    """The machine slows down to a third in the second half; the ratio doesn't notice."""
    slowing = [np.full(20, seconds) for seconds in [100.0] * 8 + [300.0] * 8]
    rows = [timed("checkpoint", 1, slowing), timed("folded", 1, [times / 4 for times in slowing])]
    one, other = bench._speedup(rows)
    assert one.median == 1 and other.median == 4 and other.quartiles == [4, 4]


def test_compare_sets_the_file_beside_pytorch_eager(chain):
    forms = [chain / "mnist_cnn.safetensors", chain / "mnist_cnn.onnx"]
    result = command("bench", "--compare", "--quick", "--batch", "1", "--batch", "8", "--json", *forms)
    found = json.loads(result.stdout)
    assert found["path"] is None and {row["form"] for row in found["facts"]["speedup"]} == {form.name for form in forms}


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
