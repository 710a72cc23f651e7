"""How sure a figure is: the Wilson interval, McNemar's exact test, percentiles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

PERCENTILES = (50.0, 90.0, 99.0, 99.9)


def wilson(correct: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """The interval in which the true share lies, given `correct` of `n`. Source: E. B. Wilson, JASA 22 (1927)."""
    from scipy.stats import binomtest

    interval = binomtest(correct, n).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided exact p that two classifiers are equally good, given how often only the one or the other is right.

    Source: Q. McNemar, Psychometrika 12 (1947); exact: the binomial test on the discordant pairs.
    """
    from scipy.stats import binomtest

    discordant = only_first + only_second
    return float(binomtest(only_first, discordant).pvalue) if discordant else 1.0


def summary(values: Sequence[float], confidence: float = 0.95) -> dict[str, Any]:
    """Mean, its interval, standard deviation (n - 1), least and most of independent runs.

    The interval is Student's t. One value has no deviation: None, and the interval is the value.
    """
    import numpy as np
    from scipy.stats import sem, t

    mean, n = float(np.mean(values)), len(values)
    half = float(sem(values) * t.ppf((1 + confidence) / 2, n - 1)) if n > 1 else 0.0
    return {
        "mean": mean,
        "mean_interval": [mean - half, mean + half],
        "deviation": float(np.std(values, ddof=1)) if n > 1 else None,
        "least": float(min(values)),
        "most": float(max(values)),
    }


def percentiles(values: Sequence[float], which: Sequence[float] = PERCENTILES) -> dict[str, float]:
    """Percentiles of all values (nothing is clipped), keyed p50, p90...; values that occurred, not interpolated.

    A percentile that fewer than ten values lie above is left out.
    """
    import numpy as np

    which = [percent for percent in which if round(len(values) * (100 - percent)) >= 1000]
    found = np.percentile(np.asarray(values), which, method="higher")
    return {f"p{percent:g}": float(value) for percent, value in zip(which, found, strict=True)}
