"""How the clients' learning rate changes from round to round: factors of ``strategy.local.lr``.

A schedule is a function of the round, from 1, and of its parameters. How the rate falls inside of a visit is said by
``strategy.local.lr_decay``.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from fedsim.errors import BadValue
from fedsim.parts import Count, Positive, bind, find
from fedsim.ranges import Whole
from fedsim.spec.local import Local

Schedule = Callable[[int], float]


def constant(*, round: int) -> float:
    """Always the same rate.

    Args:
        round: from 1.
    """
    del round
    return 1.0


def step(*, round: int, every: Count, factor: Positive = 0.1) -> float:
    """A factor again and again.

    Args:
        round: from 1.
        every: rounds from one change to the next.
        factor: of each change.

    >>> [step(round=round, every=2, factor=0.5) for round in (1, 2, 3, 5)]
    [1.0, 1.0, 0.5, 0.25]
    """
    return float(factor ** ((round - 1) // every))


def cosine(*, round: int, rounds: Count, end: Positive = 0.01, warm_up: Whole = 0) -> float:
    """Half a cosine from 1 to a last value (Loshchilov and Hutter: SGDR. ICLR 2017), which stays.

    Args:
        round: from 1.
        rounds: from the first to the last value, those of the warm-up included.
        end: the last value; at 0 clients would train for nothing, and some methods divide by their rate.
        warm_up: rounds at the start in which the rate rises evenly to 1; fewer than all.

    Raises:
        BadValue: if nothing is left after the warm-up: the last value would come too late.

    >>> [round_, last] = [cosine(round=round, rounds=5) for round in (3, 5)]
    >>> f"{round_:.2f} {last:.2f} {cosine(round=1, rounds=6, warm_up=2):.2f}"
    '0.51 0.01 0.50'
    """
    if warm_up and warm_up >= rounds:
        raise BadValue("warm_up", warm_up, f"must be less than {rounds}, the rounds in all")
    if round <= warm_up:
        return round / warm_up
    share = (round - 1 - warm_up) / max(1, rounds - 1 - warm_up)
    return end + (1.0 - end) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, share)))


def warm_up(*, round: int, rounds: Count) -> float:
    """A rate that rises evenly, to stay.

    Args:
        round: from 1.
        rounds: until it is whole.

    >>> [warm_up(round=round, rounds=4) for round in (1, 4, 9)]
    [0.25, 1.0, 1.0]
    """
    return min(1.0, round / rounds)


def by_list(*, round: int, factors: list[float]) -> float:
    """A factor for each round; the last one stays.

    Args:
        round: from 1.
        factors: at least one, each above 0.

    >>> [by_list(round=round, factors=[1.0, 0.5]) for round in (1, 2, 7)]
    [1.0, 0.5, 0.5]
    """
    if not factors or min(factors) <= 0:
        raise BadValue("factors", factors, "there must be at least one, each greater than 0")
    return factors[min(round, len(factors)) - 1]


def schedule(local: Local) -> Schedule | None:
    """Return the factor of each round, or None if local training has no schedule.

    Raises:
        BadValue: if there is no such schedule, or it refuses its parameters.
    """
    block = local.schedule
    if block is None:
        return None
    try:
        bound = bind(find("schedules", block.name), block.params, ("round",))
        bound(round=1)  # whatever it refuses, it refuses now
    except BadValue as error:
        raise BadValue(f"local.schedule.{error.key}", error.value, error.rule, error.hint) from error
    return lambda round: float(bound(round=max(1, round)))
