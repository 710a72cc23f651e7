"""The uncertainty of figures: the Wilson interval, McNemar's exact test, Student's t interval, percentiles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

PERCENTILES = (50.0, 90.0, 99.0, 99.9)
SIGNIFICANT = 0.05  # McNemar's p under which what errs more often is worse, not unlucky


def wilson(correct: int, n: int) -> tuple[float, float]:
    """Return the 95 % interval of a true share, given `correct` of `n`. Source: E. B. Wilson, JASA 22 (1927)."""
    from scipy.stats import binomtest

    interval = binomtest(correct, n).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


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
