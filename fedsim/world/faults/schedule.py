"""When a fault strikes and whom: everything is drawn before the start, then played in time."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any, ClassVar

import numpy as np

from fedsim.chosen import Chosen, check_named
from fedsim.errors import MISSING, BadValue
from fedsim.parts import NotNegative, Positive
from fedsim.ranges import MOST_S, Times
from fedsim.world.clock import Process, micros
from fedsim.world.node import Node
from fedsim.world.world import World

Step = tuple[int, Callable[[], None]]
"""A time in microseconds, and what happens then."""


@dataclass(kw_only=True)
class Who(Chosen):
    """Whom a fault hits."""

    def choose(self, world: World, rng: np.random.Generator) -> list[Node]:
        """Return the nodes that are hit, sorted by id.

        Raises:
            BadValue: unless exactly one of nodes, count and fraction is given and the world has such nodes.
        """
        members, known = ([node.id for node in nodes] for nodes in (world.members, world.nodes))
        return [world.nodes[id] for id in self.among(members, known, rng)]


@dataclass(kw_only=True)
class Fault(ABC):
    """Something that goes wrong at given times.

    Args:
        at_s: when, in simulated seconds.
        every_s: seconds from one occurrence to the next.
        times: how many occurrences.
    """

    at_s: NotNegative
    every_s: Positive | None = None
    times: Times = 1

    @abstractmethod
    def steps(self, world: World, rng: np.random.Generator) -> list[Step]:
        """Draw everything, and return what happens when.

        Args:
            world: the world that it happens in.
            rng: the fault's own stream.

        Raises:
            BadValue: if the fault does not fit the world.
        """

    def process(self, world: World, rng: np.random.Generator) -> Process:
        """Check and draw everything now, and return the process that plays it."""
        return play(world, self.steps(world, rng))

    def starts_us(self) -> list[int]:
        """Return when it strikes, in microseconds.

        Raises:
            BadValue: if it strikes more than once and does not say how often, or the other way round.
        """
        every_s, times = self.every_s, self.times
        if every_s is None and times > 1:
            raise BadValue("every_s", MISSING, f"is required, because times is {times}")
        if every_s is not None and times == 1:
            raise BadValue("times", 1, f"must be at least 2, because every_s is {every_s:g}")
        first, gap = span("at_s", self.at_s), span("every_s", every_s or 0.0)
        return [first + index * gap for index in range(times)]


@dataclass(kw_only=True)
class Window(Fault):
    """A fault that comes and goes.

    Attributes:
        length: which parameter says for how long, in seconds; None there means until the end.
    """

    length: ClassVar[str] = "for_s"

    @abstractmethod
    def targets(self, world: World, rng: np.random.Generator) -> list[Any]:
        """Return what it hits, for each time that it comes."""

    @abstractmethod
    def begin(self, world: World, target: Any) -> None:
        """Strike."""

    @abstractmethod
    def end(self, world: World, target: Any) -> None:
        """Let go."""

    def steps(self, world: World, rng: np.random.Generator) -> list[Step]:
        """Return the beginnings and the ends."""
        starts_us = self.starts_us()
        targets = self.targets(world, rng)
        seconds: float | None = getattr(self, self.length)
        if seconds is None and self.times > 1:
            raise BadValue(self.length, MISSING, f"is required, because times is {self.times}")
        length_us = None if seconds is None else span(self.length, seconds)
        steps: list[Step] = []
        for start_us, target in zip(starts_us, targets, strict=True):
            steps.append((start_us, partial(self.begin, world, target)))
            if length_us is not None:
                steps.append((start_us + length_us, partial(self.end, world, target)))
        return steps


def check_known(key: str, nodes: Sequence[int], world: World) -> None:
    """Refuse a list of nodes that is empty or names one that does not exist."""
    check_named(key, nodes, [node.id for node in world.nodes])


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
