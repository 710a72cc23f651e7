from __future__ import annotations

import numpy as np
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


def test_early_stopping_takes_what_mlperf_takes():
    """Counts from the output of MLPerf's LoadGen: queries needed, and the highest that it discards."""
    assert (statistics.needed(90), statistics.needed(99)) == (64, 662)
    assert statistics.early_stopping(range(63), 90) is None and statistics.early_stopping(range(661), 99) is None
    assert [statistics.early_stopping(np.arange(n), 90)[0] for n in (64, 100, 201)] == [0, 2, 9]
    assert statistics.early_stopping(np.arange(201)[::-1], 90) == (9, 191)


DISTRIBUTIONS = {
    "uniform": (lambda rng, size: rng.random(size), {90: 0.9, 99: 0.99}),
    "exponential": (lambda rng, size: rng.exponential(size=size), {90: np.log(10), 99: np.log(100)}),
    "a slow request in a hundred": (lambda rng, size: np.where(rng.random(size) < 0.01, 9.0, 1.0), {90: 1, 99: 1}),
    "two in a hundred": (lambda rng, size: np.where(rng.random(size) < 0.02, 9.0, 1.0), {90: 1, 99: 9}),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize(("percent", "n"), [(90, 64), (90, 777), (99, 662), (99, 1000)])
def test_an_early_stopping_estimate_is_seldom_too_low(name, percent, n):
    """In 10,000 simulated runs, in at most 1 %."""
    draw, true = DISTRIBUTIONS[name]
    runs = draw(np.random.default_rng(n), (10_000, n))
    low = [statistics.early_stopping(run, percent)[1] < true[percent] for run in runs]
    assert np.mean(low) <= 0.01


def test_a_percentile_as_it_occurred_is_often_too_low():
    """So the simulation above would show an estimate that isn't one; and the bound is no wider than it need be."""
    runs = np.random.default_rng(0).random((10_000, 1025))
    low = [np.percentile(run, 90, method="higher") < 0.9 for run in runs]
    estimates = np.array([statistics.early_stopping(run, 90)[1] for run in runs])
    assert np.mean(low) > 0.3 and np.mean(estimates < 0.9) > 0.001 and np.mean(estimates) < 0.93
