"""When a fault strikes and whom: everything is drawn before the start, then played in time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from typing import TypeVar

import numpy as np

from fedsim.errors import MISSING, BadValue
from fedsim.ranges import MOST_S
from fedsim.world.clock import Process, micros
from fedsim.world.node import Node
from fedsim.world.world import World

Target = TypeVar("Target")

Step = tuple[int, Callable[[], None]]
"""A time in microseconds, and what happens then."""


def choose(
    world: World,
    rng: np.random.Generator,
    nodes: list[int] | None,
    count: int | None,
    fraction: float | None,
) -> list[Node]:
    """Return the nodes that a fault hits, sorted by id.

    Args:
        world: the world they live in.
        rng: the stream that draws them.
        nodes: which ones; or
        count: how many of the clients or peers; or
        fraction: what share of them, to the nearest whole number.

    Raises:
        BadValue: unless exactly one of nodes, count and fraction is given and the world has such nodes.
    """
    if sum(choice is not None for choice in (nodes, count, fraction)) != 1:
        raise BadValue("nodes", MISSING, "give exactly one of nodes, count and fraction")
    members = world.members
    if nodes is not None:
        check_known("nodes", nodes, world)
        return [world.nodes[id] for id in sorted(set(nodes))]
    size = count if count is not None else round((fraction or 0.0) * len(members))
    if size > len(members):
        raise BadValue("count", size, f"at most {len(members)}, the number of clients or peers")
    if fraction and not size:
        rule = (
            f"must be at least {0.5 / len(members):.3g} to hit one of {len(members)} clients or peers, or 0"
        )
        raise BadValue("fraction", fraction, rule)
    picked = rng.choice(len(members), size=size, replace=False)
    return [members[int(index)] for index in sorted(picked)]


def check_known(key: str, nodes: Sequence[int], world: World) -> None:
    """Refuse a list of nodes that is empty or names one that does not exist."""
    if not nodes:
        raise BadValue(key, nodes, "must name at least one node")
    unknown = sorted(set(nodes) - {node.id for node in world.nodes})
    if unknown:
        raise BadValue(key, nodes, f"no such node: {unknown[0]}", f"nodes are 0 to {len(world.nodes) - 1}")


def span(key: str, seconds: float) -> int:
    """Return a duration in whole microseconds.

    Raises:
        BadValue: if it is infinite, or longer than :data:`MOST_S`.
    """
    if not math.isfinite(seconds):
        raise BadValue(key, seconds, "must be finite")
    if seconds > MOST_S:
        raise BadValue(key, seconds, f"must be at most {MOST_S:g} s")
    return micros(seconds)


def moments(at_s: float, every_s: float | None, times: int) -> list[int]:
    """Return when a fault strikes, in microseconds.

    Args:
        at_s: the first time, in seconds.
        every_s: the time from one to the next, in seconds.
        times: how often.

    Raises:
        BadValue: if it strikes more than once and does not say how often, or the other way round.

    >>> moments(1.5, 10.0, 3)
    [1500000, 11500000, 21500000]
    """
    if every_s is None and times > 1:
        raise BadValue("every_s", MISSING, f"is required, because times is {times}")
    if every_s is not None and times == 1:
        raise BadValue("times", 1, f"must be at least 2, because every_s is {every_s:g}")
    first, gap = span("at_s", at_s), span("every_s", every_s or 0.0)
    return [first + index * gap for index in range(times)]


def windows(
    starts_us: Sequence[int],
    length_us: int | None,
    targets: Sequence[Target],
    begin: Callable[[Target], None],
    end: Callable[[Target], None],
) -> list[Step]:
    """Return the steps of a fault that comes and goes.

    Args:
        starts_us: when it comes.
        length_us: how long it stays, or None for ever.
        targets: what it hits, for each time that it comes.
        begin: called with the target when it comes.
        end: called with the target when it goes.

    Raises:
        BadValue: if it never goes and comes again.
    """
    if length_us is None and len(starts_us) > 1:
        raise BadValue("for_s", MISSING, f"is required, because times is {len(starts_us)}")
    steps: list[Step] = []
    for start_us, target in zip(starts_us, targets, strict=True):
        steps.append((start_us, partial(begin, target)))
        if length_us is not None:
            steps.append((start_us + length_us, partial(end, target)))
    return steps


def play(world: World, steps: Sequence[Step]) -> Process:
    """Take every step at its time; those of one time in the order given.

    Yields:
        The passing of time.
    """
    for at_us, group in groupby(sorted(steps, key=_time), key=_time):
        yield world.clock.timeout(at_us - world.clock.now)
        for _, act in group:
            act()


def _time(step: Step) -> int:
    return step[0]
