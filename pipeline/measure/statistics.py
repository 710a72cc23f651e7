"""The uncertainty of figures: Wilson's interval, McNemar's exact test, Student's t interval, percentiles and bounds."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipeline import console

if TYPE_CHECKING:
    import numpy as np

PERCENTILES = (50.0, 90.0, 99.0, 99.9)
CONFIDENCE = 0.99  # of an early-stopping estimate; MLPerf Inference rules
FEW = 100  # test images; with fewer, how little they tell is remarked
SIGNIFICANT = 0.05  # McNemar's p under which what errs more often is worse, not unlucky


def wilson(correct: int, n: int) -> tuple[float, float]:
    """Return the 95 % interval of a true share, given `correct` of `n`. Source: E. B. Wilson, JASA 22 (1927)."""
    from scipy.stats import binomtest

    interval = binomtest(correct, n).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def remark_few(name: str, n: int, correct: int) -> None:
    """Say on stderr how little few images tell of an accuracy, and so of a gate."""
    if n < FEW:
        low, high = wilson(correct, n)
        told = f"{name}: {n} images tell little: the 95 % interval of {correct / n:.2%} is {low:.2%} – {high:.2%}"
        console.say(f"{told}, {100 * (high - low):.0f} percentage points wide")


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the two-sided exact p that two classifiers are equally good, given how often only one of them is right.

    Source: Q. McNemar, Psychometrika 12 (1947); exact: the binomial test on the discordant pairs.
    """
    from scipy.stats import binomtest

    discordant = only_first + only_second
    return float(binomtest(only_first, discordant).pvalue) if discordant else 1.0


def discordant(predictions: np.ndarray, others: np.ndarray, labels: np.ndarray) -> tuple[int, int]:
    """Count the images that only `others` are right on, and those that only `predictions` are."""
    right, others_right = predictions == labels, others == labels
    return int((others_right & ~right).sum()), int((right & ~others_right).sum())


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Return mean, its 95 % interval (Student's t), standard deviation (n - 1), least and most of independent runs.

    A single value has no deviation, None, and is its own interval.
    """
    import numpy as np
    from scipy.stats import sem, t

    mean, n = float(np.mean(values)), len(values)
    half = float(sem(values) * t.ppf((1 + 0.95) / 2, n - 1)) if n > 1 else 0.0
    return {
        "mean": mean,
        "mean_interval": [mean - half, mean + half],
        "deviation": float(np.std(values, ddof=1)) if n > 1 else None,
        "least": float(min(values)),
        "most": float(max(values)),
    }


def percentiles(values: Sequence[float] | np.ndarray) -> dict[str, float]:
    """Return percentiles of all values, keyed p50, p90...; values that occurred, not interpolated.

    A percentile that fewer than ten values lie above is left out.
    """
    import numpy as np

    which = [percent for percent in PERCENTILES if round(len(values) * (100 - percent)) >= 1000]
    found = np.percentile(values, which, method="higher")
    return {f"p{percent:g}": float(value) for percent, value in zip(which, found, strict=True)}


@functools.cache
def needed(percent: float) -> int:
    """Return how many values an early-stopping estimate of a percentile takes: 64 for the 90th, 662 for the 99th."""
    p = percent / 100
    return next(n for n in itertools.count(2) if p**n + n * (1 - p) * p ** (n - 1) <= 1 - CONFIDENCE)


def early_stopping(values: Sequence[float] | np.ndarray, percent: float) -> tuple[int, float] | None:
    """Return how many of the largest values to discard, and the largest one left: an upper estimate of a percentile.

    It is below the true percentile in at most 1 % of runs, whatever the distribution, if the values are independent of
    each other. None where they are fewer than `needed`. Source: MLPerf Inference rules, "Early stopping criterion",
    and its LoadGen: with t the most values for which P(Binomial(n, 1 - p) <= t) is at most 1 %, the t-th largest.
    """
    import numpy as np

    n = len(values)
    if n < needed(percent):
        return None
    most = _most_above(n, percent)
    return most - 1, float(np.partition(values, n - most)[n - most])


@functools.cache
def _most_above(n: int, percent: float) -> int:
    from scipy.stats import binom

    return int(binom.ppf(1 - CONFIDENCE, n, 1 - percent / 100)) - 1  # the last count before the bound is reached
