"""Means over seeds, with their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.stats import bootstrap

from fedsim.rng import stream

LEVEL, RESAMPLES = 0.95, 2000
Interval = tuple[float, float, float]
"""A mean, and the ends of its interval; NaN where there is none."""


def mean(values: Sequence[float]) -> Interval:
    """Return a mean and its 95 % interval by the percentile bootstrap; no interval of fewer than two.

    Args:
        values: one for each seed; NaN are left out.

    >>> mean([0.5, 0.5])
    (0.5, 0.5, 0.5)
    """
    given = np.array([value for value in values if math.isfinite(value)])
    if len(given) == 0:
        return (math.nan, math.nan, math.nan)
    middle = float(given.mean())
    if len(given) == 1:
        return (middle, math.nan, math.nan)
    if np.ptp(given) == 0:
        return (middle, middle, middle)
    rng = stream(0, "bootstrap")
    found = bootstrap(
        (given,), np.mean, confidence_level=LEVEL, n_resamples=RESAMPLES, method="percentile", rng=rng
    )
    return (middle, float(found.confidence_interval.low), float(found.confidence_interval.high))
