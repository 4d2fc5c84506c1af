"""Availability: when nodes come and go, each as a SimPy process.

A churn part is a function ``name(node, rng, n, *, …)`` that checks its parameters and returns the process of one
node; most are generator functions. It names only those of the first three that it needs. Nobody moves the server.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Annotated, NamedTuple

import numpy as np
from pydantic import Field

from fedsim.errors import BadValue
from fedsim.parts import Count, NotNegative, Positive, Share
from fedsim.world.clock import Process, micros
from fedsim.world.node import Node
from fedsim.world.traces.files import Availability, read_availability

MOST_STEPS = 1_000_000
"""How finely a day may be divided; the times of one node take a megabyte or more."""

MOST_VALUES = 10_000_000
"""Time zones times steps of a day, at most."""

MANY = 50
"""From so many nodes on, it is quicker to find out first what is the same for all of them."""

Shape = Annotated[float, Field(ge=0.1, le=100)]
Zones = Annotated[int, Field(ge=1, le=10_000)]


def always(node: Node) -> Process:
    """Every node stays online."""
    del node
    yield from ()


def exponential(
    node: Node,
    rng: np.random.Generator,
    *,
    online_s: Positive,
    offline_s: Positive,
    start_online: Share | None = None,
) -> Process:
    """Sessions and absences of exponentially distributed lengths.

    Args:
        node: the node that comes and goes.
        rng: its own stream.
        online_s: mean length of a session, in seconds.
        offline_s: mean length of an absence, in seconds.
        start_online: probability of being online at the start; by default the long-run share,
            online_s / (online_s + offline_s).

    Yields:
        The events that the node waits for.
    """
    share = online_s / (online_s + offline_s) if start_online is None else start_online
    node.set_online(bool(rng.random() < share))
    while not node.crashed:
        length_us = micros(rng.exponential(online_s if node.present else offline_s))
        yield node.clock.timeout(max(length_us, 1))  # with stays of no length, time could stand still
        node.set_online(not node.present)


def weibull(
    node: Node,
    rng: np.random.Generator,
    *,
    online_s: Positive,
    offline_s: Positive,
    shape: Shape,
    start_online: Share | None = None,
) -> Process:
    """Sessions and absences of Weibull-distributed lengths, many short and a few long ones if the shape is below 1.

    The first stay is the rest of one that began before the start, so the share online is the same at all times.

    Args:
        node: the node that comes and goes.
        rng: its own stream.
        online_s: mean length of a session, in seconds.
        offline_s: mean length of an absence, in seconds.
        shape: the distribution's shape k (no unit), from 0.1 to 100; 1 is the exponential distribution. The scale
            is the mean divided by Γ(1 + 1/k).
        start_online: probability of being online at the start; by default the long-run share,
            online_s / (online_s + offline_s).

    Yields:
        The events that the node waits for.
    """
    share = online_s / (online_s + offline_s) if start_online is None else start_online
    per_mean = 1 / math.gamma(1 + 1 / shape)
    node.set_online(bool(rng.random() < share))
    # The stay that covers a given moment is a long one: its (length / scale)^k has the distribution Γ(1 + 1/k).
    length = rng.random() * rng.gamma(1 + 1 / shape) ** (1 / shape)
    while not node.crashed:
        scale_s = per_mean * (online_s if node.present else offline_s)
        yield node.clock.timeout(max(micros(scale_s * length), 1))
        node.set_online(not node.present)
        length = rng.weibull(shape)


def diurnal(
    node: Node,
    rng: np.random.Generator,
    n: int = 1,
    *,
    low: Share,
    high: Share,
    period_s: Positive = 86400.0,
    zones: Zones = 24,
    step_s: Positive = 60.0,
) -> Process:
    """Days and nights: at time t a share low + (high - low) (sin(2πt/T) + 1) / 2 of the nodes is online.

    Each node has a score sin(2πt/T + φ) + b, with φ that of a random time zone and b ~ Beta(2, 5) - 2/7, and is
    online while the probability that another node scores higher is at most that share. So the nodes are
    independent, and at any time the number online has a binomial distribution. The generator of MoDeST's simulator,
    after which this is modelled, counts the nodes and takes exactly the best ones of them.

    Args:
        node: the node that comes and goes.
        rng: its own stream, from which it draws φ and b; after that, every day is the same.
        n: number of clients or peers; many of them share what is the same for all.
        low: share online at the deepest point, at t = 3T/4.
        high: share online at the peak, at t = T/4.
        period_s: T, the length of a day in seconds.
        zones: number of time zones, which divide the circle equally and are equally likely.
        step_s: how often a node comes or goes at most, in seconds.

    Returns:
        The process.

    Raises:
        BadValue: if low is above high, or the step does not divide the day into 1 to 1,000,000 parts, fewer where
            there are many time zones.
    """
    if low > high:
        raise BadValue("low", low, f"must be at most high ({high:g})")
    period_us, step_us = max(micros(period_s), 1), max(micros(step_s), 1)
    most = min(MOST_STEPS, MOST_VALUES // zones)
    if not step_us <= period_us <= most * step_us:
        rule = f"a day of {period_s:g} s must have 1 to {most} steps"
        raise BadValue("step_s", step_s, rule)
    zone, bias = int(rng.integers(zones)), float(rng.beta(2, 5))
    day = _Day(low, high, period_us, step_us, zones)
    online = day.online(zone, bias) if n < MANY else _shared(day).online(zone, bias)
    begin_us = day.begin_us
    switches = np.flatnonzero(np.diff(online, prepend=False, append=False))
    edges = np.append(begin_us, period_us)[switches].tolist()
    return _replay(node, list(zip(edges[::2], edges[1::2])), period_us)


class _Day(NamedTuple):
    """What is the same for all nodes on a day of :func:`diurnal`."""

    low: float
    high: float
    period_us: int
    step_us: int
    zones: int

    @property
    def begin_us(self) -> np.ndarray:
        return np.arange(0, self.period_us, self.step_us)

    @property
    def angle(self) -> np.ndarray:
        return 2 * np.pi * self.begin_us / self.period_us

    @property
    def phases(self) -> np.ndarray:
        return 2 * np.pi * np.arange(self.zones) / self.zones

    def share(self, angle: np.ndarray) -> np.ndarray:
        """Return the share of the nodes that is online at each angle."""
        share: np.ndarray = self.low + (self.high - self.low) * (np.sin(angle) + 1) / 2
        return share

    def online(self, zone: int, bias: float) -> np.ndarray:
        """Return at which steps a node is online."""
        angle = self.angle
        online: np.ndarray = self.above(angle, np.sin(angle + self.phases[zone]) + bias) <= self.share(angle)
        return online

    def above(self, angle: np.ndarray, score: np.ndarray) -> np.ndarray:
        """Return the probability that another node scores higher, at each angle."""
        above = np.zeros_like(angle)
        for phase in self.phases:
            x = np.clip(score - np.sin(angle + phase), 0, 1)
            above += (1 - x) ** 5 * (1 + 5 * x)  # P(b > x) for b ~ Beta(2, 5)
        return above / self.zones


class _Thresholds:
    """The scores from which on a node is online, found once for many nodes, within a millionth.

    Args:
        day: says when a node is online; where a score is too near to a threshold, it is asked.
    """

    def __init__(self, day: _Day) -> None:
        self.day, self.angle, self.phases = day, day.angle, day.phases
        self.wave = functools.lru_cache(maxsize=24)(lambda zone: np.sin(self.angle + self.phases[zone]))
        share = day.share(self.angle)
        self.least, self.most = (
            np.full_like(share, -2.0),
            np.full_like(share, 3.0),
        )  # scores are from -9/7 to 12/7
        while (self.most - self.least).max() > 1e-6:
            middle = (self.least + self.most) / 2
            enough = day.above(self.angle, middle) <= share
            self.most, self.least = np.where(enough, middle, self.most), np.where(enough, self.least, middle)

    def online(self, zone: int, bias: float) -> np.ndarray:
        """Return at which steps a node is online, the same as the day itself does."""
        score = self.wave(zone) + bias
        online: np.ndarray = score >= self.most
        near = np.flatnonzero((self.least <= score) & ~online)
        if near.size:
            angle = self.angle[near]
            online[near] = self.day.above(angle, score[near]) <= self.day.share(angle)
        return online


_shared = functools.lru_cache(maxsize=4)(_Thresholds)


def trace(node: Node, *, path: str) -> Process:
    """Recorded sessions, repeated for ever: node i takes row i modulo the number of rows.

    Args:
        node: the node that comes and goes.
        path: an availability trace, a .csv or .json file; see docs/traces.md.

    Returns:
        The process.

    Raises:
        BadValue: if the file cannot be read; the rule says where it is wrong.
    """
    recorded = _recorded(path)
    sessions = recorded.sessions[node.id % len(recorded.sessions)]
    stays_us = [(micros(start), micros(end)) for start, end in sessions]
    return _replay(node, stays_us, max(micros(recorded.period_s), 1))


def _recorded(path: str) -> Availability:
    try:
        state = os.stat(path)
    except (OSError, ValueError):
        return read_availability(path)  # which says what is wrong
    return _read_once(path, state.st_mtime_ns, state.st_size)


@functools.lru_cache(maxsize=4)
def _read_once(path: str, changed_ns: int, size: int) -> Availability:
    """Read a file for the first of many nodes; time and size tell whether it has changed since."""
    del changed_ns, size
    return read_availability(path)


def _replay(node: Node, stays_us: Iterable[tuple[int, int]], period_us: int) -> Process:
    """Repeat the same sessions in every period; sessions that touch are one."""
    stays = [(start, end) for start, end in stays_us if start < end]
    edges = [edge for start, end in stays for edge in ((start, True), (end, False))]
    online_at_start = bool(stays) and stays[0][0] == 0
    if online_at_start and stays[-1][1] == period_us:
        edges = edges[1:-1]
    touching = {i for i, (a, b) in enumerate(pairwise(edges)) if a[0] == b[0]}
    edges = [edge for i, edge in enumerate(edges) if i not in touching and i - 1 not in touching]
    node.set_online(online_at_start)
    yield from _cycle(node, edges, period_us)


def _cycle(node: Node, edges: Sequence[tuple[int, bool]], period_us: int) -> Process:
    clock = node.clock
    begin_us = clock.now
    while edges:
        for at_us, online in edges:
            if begin_us + at_us > clock.now:
                yield clock.timeout(begin_us + at_us - clock.now)
            if node.crashed:
                return
            node.set_online(online)
        begin_us += period_us


def arrive(node: Node, n: int, *, count: Count, at_s: NotNegative, every_s: NotNegative = 0.0) -> Process:
    """The last nodes are absent at the start and join one after the other.

    Args:
        node: the node that may be one of them.
        n: number of clients or peers.
        count: how many of them are absent.
        at_s: when the first one joins, in simulated seconds.
        every_s: seconds between two of them.

    Returns:
        The process.

    Raises:
        BadValue: if there are fewer nodes.
    """
    return _arrive(node, _turn_us(node, n, count, at_s, every_s))


def _arrive(node: Node, at_us: int | None) -> Process:
    if at_us:
        node.set_online(False)
        yield node.clock.timeout(at_us)
        node.set_online(True)


def depart(node: Node, n: int, *, count: Count, at_s: NotNegative, every_s: NotNegative = 0.0) -> Process:
    """The last nodes leave for good, one after the other, each when it has finished what it is doing.

    A leaving node receives what is on its way to it, does the work that it has then, sends the results, and goes.

    Args:
        node: the node that may be one of them.
        n: number of clients or peers.
        count: how many of them leave.
        at_s: when the first one decides to leave, in simulated seconds.
        every_s: seconds between two of them.

    Returns:
        The process.

    Raises:
        BadValue: if there are fewer nodes.
    """
    return _depart(node, _turn_us(node, n, count, at_s, every_s))


def _depart(node: Node, at_us: int | None) -> Process:
    if at_us is not None:
        yield node.clock.timeout(at_us)
        yield from node.retire()


def _turn_us(node: Node, n: int, count: int, at_s: float, every_s: float) -> int | None:
    """Return when the node's turn is, or None if it is not one of the last nodes."""
    if count > n:
        raise BadValue("count", count, f"must be at most {n}, the number of clients or peers")
    turn = node.id - (n - count)
    return micros(at_s + turn * every_s) if turn >= 0 else None
