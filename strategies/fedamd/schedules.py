"""FedAMD's schedules: with which probability a participant of a round is an anchor.

The official code of Wu et al. (ICML 2023) has all of them; its rounds count from 0, these from 1.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Literal

from fedsim.errors import BadValue

Name = Literal["constant", "sequential", "decaying", "opt-a", "opt-b", "opt-c"]
First = Literal["anchors", "miners"]


def sequential(round: int, period: int, first: First = "anchors") -> float:
    """Return 1 in one round of a period and 0 in the others: all participants have one role.

    Args:
        round: its number, from 1.
        period: how many rounds τ a period has.
        first: which role the first round has; with miners, the anchors come last in each period.

    >>> [sequential(round, 3) for round in range(1, 7)]
    [1.0, 0.0, 0.0, 1.0, 0.0, 0.0]
    """
    return float((round - 1 if first == "anchors" else round) % period == 0)


def decaying(round: int) -> float:
    """Return a probability that falls slowly, 1 / ln((round + 13) / 5), from about 0.97.

    Args:
        round: its number, from 1.

    >>> [round(decaying(t), 4) for t in (1, 11, 101, 200)]
    [0.9712, 0.6375, 0.3198, 0.2665]
    """
    return 1.0 / math.log(max((round + 13) / 5, math.e))


def bound(p: float, clients: int, participants: int) -> float:
    """Return how the rounds that are needed grow with p: too few miners, or caches that are too old.

    Args:
        p: the probability of an anchor, above 0 and below 1.
        clients: all of them, M.
        participants: those of a round, A.

    Returns:
        1 / (1 - p^A) + 2M / (A p sqrt(1 - p^A)), which is convex in p.

    >>> round(bound(0.8870, 100, 20), 3)
    12.924
    """
    some_miner = -math.expm1(participants * math.log(p))
    return 1.0 / some_miner + 2.0 * clients / (participants * p * math.sqrt(some_miner))


@functools.cache
def opt_a(clients: int, participants: int) -> float:
    """Return the p with the least :func:`bound`, found by golden sections.

    Args:
        clients: all of them, M.
        participants: those of a round, A.

    Raises:
        BadValue: if there are fewer clients than participants.

    >>> round(opt_a(100, 20), 4)
    0.8802
    """
    _check(clients, participants)
    low, high, golden = 0.0, 1.0, (math.sqrt(5) - 1) / 2
    while high - low > 1e-9:
        left, right = high - golden * (high - low), low + golden * (high - low)
        if bound(left, clients, participants) < bound(right, clients, participants):
            high = right
        else:
            low = left
    return (low + high) / 2


def opt_b(clients: int, participants: int) -> float:
    """Return sqrt(4 r^2 + 2 r) - 2 r with r = M / A.

    Args:
        clients: all of them, M.
        participants: those of a round, A.

    Raises:
        BadValue: if there are fewer clients than participants.

    >>> round(opt_b(100, 20), 4)
    0.4881
    """
    _check(clients, participants)
    r = clients / participants
    return math.sqrt(4 * r * r + 2 * r) - 2 * r


def opt_c(clients: int, participants: int) -> float:
    """Return (2 / (A + 2))^(1 / A), where the second term of :func:`bound` is least.

    Args:
        clients: all of them, M; the result does not depend on it.
        participants: those of a round, A.

    Raises:
        BadValue: if there are fewer clients than participants.

    >>> round(opt_c(100, 20), 4)
    0.887
    """
    _check(clients, participants)
    return float((2 / (participants + 2)) ** (1 / participants))


OPTIMAL: dict[str, Callable[[int, int], float]] = {"opt-a": opt_a, "opt-b": opt_b, "opt-c": opt_c}


def choose(schedule: Name | None, p: float | None, period: int | None, first: First) -> Name:
    """Return the schedule that the parameters describe, and refuse those that contradict each other.

    Args:
        schedule: its name; None is sequential where a period is given, and constant otherwise.
        p: the constant probability.
        period: the sequential schedule's.
        first: the sequential schedule's.

    Raises:
        BadValue: for a parameter that the schedule does not have, or lacks.

    >>> choose(None, None, 4, "anchors")
    'sequential'
    """
    if p is not None and period is not None:
        raise BadValue("period", period, "give p (constant schedule) or period (sequential), not both")
    name = schedule or ("constant" if period is None else "sequential")
    if p is not None and name != "constant":
        raise BadValue("p", p, f"belongs to the constant schedule, and schedule is {name}")
    if period is not None and name != "sequential":
        raise BadValue("period", period, f"belongs to the sequential schedule, and schedule is {name}")
    if first == "miners" and name != "sequential":
        raise BadValue("first", first, f"belongs to the sequential schedule, and schedule is {name}")
    if period is None and name == "sequential":
        hint = "give period, the number of rounds of which one is for anchors"
        raise BadValue("schedule", name, "the sequential schedule needs a period", hint)
    return name


def _check(clients: int, participants: int) -> None:
    if not 1 <= participants <= clients:
        raise BadValue(
            "participants", participants, f"at least 1 and at most {clients}, the number of clients"
        )
