from __future__ import annotations

import pytest

from pipeline.measure import statistics


@pytest.mark.parametrize(
    ("correct", "low", "high"), [(9940, 0.9923, 0.9953), (9950, 0.9934, 0.9962), (9955, 0.9940, 0.9966)]
)
def test_wilson_gives_the_published_intervals(correct, low, high):
    assert statistics.wilson(correct, 10_000) == pytest.approx((low, high), abs=5e-5)


def test_mcnemar_is_exact():
    assert statistics.mcnemar(6, 0) == pytest.approx(2 / 2**6)
    assert statistics.mcnemar(0, 5) == pytest.approx(2 / 2**5)
    assert statistics.mcnemar(3, 3) == statistics.mcnemar(0, 0) == 1


def test_percentiles_are_values_that_occurred_and_clip_nothing():
    values = [1.0] * 9989 + [1000.0] * 11
    assert statistics.percentiles(values) == {"p50": 1.0, "p90": 1.0, "p99": 1.0, "p99.9": 1000.0}


def test_a_percentile_with_too_little_above_it_is_left_out():
    assert statistics.percentiles([1.0] * 999).keys() == {"p50", "p90"}
    assert statistics.percentiles([1.0] * 1000).keys() == {"p50", "p90", "p99"}
