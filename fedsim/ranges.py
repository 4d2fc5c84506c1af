"""What numbers may be: ranges that the clock, the event log and a machine can hold, for keys and parameters alike.

Every number of an experiment file has one of these types, or at least the limits of :func:`within`.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import Field

MOST_COUNT = 2**31 - 1
"""The largest whole number: the event log has 32 bits for a node and for a round."""

LARGEST = 1e12
"""The largest number of any other kind, and of a parameter whose type says nothing else."""

MOST_S = 1e11
"""The longest duration in seconds: random ones with such a mean still fit the clock's 64 bits of microseconds."""

LEAST_S = 1e-6
"""The shortest duration that is one, in seconds: the clock counts whole microseconds."""

Count = Annotated[int, Field(ge=1, le=MOST_COUNT)]
Whole = Annotated[int, Field(ge=0, le=MOST_COUNT)]
Times = Annotated[int, Field(ge=1, le=100_000)]
"""How often something strikes: all of it is drawn before the start."""

Seed = Annotated[int, Field(ge=0, lt=2**64)]
Threads = Annotated[int, Field(ge=1, le=1024)]
Number = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]
NonNegative = Annotated[float, Field(ge=0, le=LARGEST)]
Positive = Annotated[float, Field(gt=0, le=LARGEST)]
StepSize = Annotated[float, Field(gt=0, le=1e300)]
"""A learning rate; what comes of one that is too large is told by the run."""

Share = Annotated[float, Field(ge=0, le=1)]
Deviation = Annotated[float, Field(ge=0, le=20)]
"""A standard deviation of logarithms: with more, a number that is drawn may not be finite."""

Seconds = Annotated[float, Field(ge=0, le=MOST_S)]
Duration = Annotated[float, Field(ge=LEAST_S, le=MOST_S)]


def within(value: Any, key: str = "") -> str:
    """Say what a parameter must be that is beyond all limits, or return an empty string.

    Args:
        value: what was given; numbers in lists and blocks count, too.
        key: the parameter's name; those that end in ``_s`` are seconds.

    >>> within(2**40), within([1.0, -1e300]), within(1e-9, "timeout_s"), within(0.5, "timeout_s")
    ('must be at most 1e+12', 'must be at least -1e+12', 'must be at least 1e-06 s, or 0', '')
    """
    if isinstance(value, dict | list | tuple):
        inner = value.items() if isinstance(value, dict) else ((key, one) for one in value)
        return next(filter(None, (within(one, str(name)) for name, one in inner)), "")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return ""
    if isinstance(value, float) and not math.isfinite(value):
        return "must be a finite number"
    if key.endswith("_s") and value > MOST_S:
        return f"must be at most {MOST_S:g} s"
    if key.endswith("_s") and key != "at_s" and 0 < value < LEAST_S:  # a moment may be rounded to another
        return f"must be at least {LEAST_S:g} s, or 0"
    if value > LARGEST:
        return f"must be at most {LARGEST:g}"
    return f"must be at least -{LARGEST:g}" if value < -LARGEST else ""
