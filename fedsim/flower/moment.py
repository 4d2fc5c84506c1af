"""Moments as a SuperLink writes them down."""

from __future__ import annotations

import functools
import math
from datetime import UTC, datetime


def iso(time_s: float) -> str:
    """Return a moment as a SuperLink writes it down.

    >>> iso(0.0)
    '1970-01-01T00:00:00+00:00'
    """
    fraction, second = math.modf(time_s)
    micros = round(fraction * 1_000_000)
    if not 0 < micros < 1_000_000:
        return datetime.fromtimestamp(time_s, UTC).isoformat()
    return f"{_iso_second(second)}.{micros:06d}+00:00"


@functools.lru_cache(maxsize=8)
def _iso_second(second: float) -> str:
    """Return a whole second without its zone; many messages are made in each."""
    return datetime.fromtimestamp(second, UTC).isoformat().removesuffix("+00:00")
