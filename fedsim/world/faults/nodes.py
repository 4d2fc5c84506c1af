"""Failure injection at nodes, each fault a SimPy process; :mod:`fedsim.world.faults.links` has those of the network.

A fault part is a function ``name(world, rng, *, …)`` that checks its parameters, draws its schedule and returns
the process; one that draws nothing leaves ``rng`` out. Faults and churn do not know each other: a node is online while
none of them keeps it offline.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from fedsim.errors import MISSING, BadValue
from fedsim.parts import Count, NotNegative, Positive, Share
from fedsim.ranges import Times
from fedsim.rng import stream
from fedsim.world.clock import Process, micros
from fedsim.world.faults.schedule import Step, choose, moments, play, span, windows
from fedsim.world.node import Corruption, Node
from fedsim.world.world import World

Factor = Annotated[float, Field(ge=1, le=1_000_000)]

Kind = Literal["nan", "sign_flip", "noise", "zeros", "scale"]


def crash(
    world: World,
    rng: np.random.Generator,
    *,
    at_s: NotNegative,
    nodes: list[int] | None = None,
    count: Count | None = None,
    fraction: Share | None = None,
    every_s: Positive | None = None,
    times: Times = 1,
) -> Process:
    """Nodes stop for good at a given time.

    Args:
        world: the world they live in.
        rng: the stream that chooses them.
        at_s: when, in simulated seconds.
        nodes: which nodes; or
        count: how many of the clients or peers, chosen at random each time; or
        fraction: what share of them, chosen at random each time.
        every_s: seconds from one occurrence to the next.
        times: how many occurrences; who has crashed already may be chosen again, and nothing happens.

    Returns:
        The process.

    Raises:
        BadValue: unless exactly one of nodes, count and fraction is given and the world has such nodes.
    """
    starts_us = moments(at_s, every_s, times)
    victims = [choose(world, rng, nodes, count, fraction) for _ in starts_us]
    steps: list[Step] = [(at, node.crash) for at, each in zip(starts_us, victims) for node in each]
    return play(world, steps)


def crash_recover(
    world: World,
    rng: np.random.Generator,
    *,
    at_s: NotNegative,
    down_s: Positive,
    nodes: list[int] | None = None,
    count: Count | None = None,
    fraction: Share | None = None,
    every_s: Positive | None = None,
    times: Times = 1,
) -> Process:
    """Nodes stop at a given time and are back a while later.

    Args:
        world: the world they live in.
        rng: the stream that chooses them.
        at_s: when, in simulated seconds.
        down_s: how long they are down, in seconds.
        nodes: which nodes; or
        count: how many of the clients or peers, chosen at random each time; or
        fraction: what share of them, chosen at random each time.
        every_s: seconds from one occurrence to the next.
        times: how many occurrences.

    Returns:
        The process.

    Raises:
        BadValue: unless exactly one of nodes, count and fraction is given and the world has such nodes.
    """
    starts_us = moments(at_s, every_s, times)
    victims = [choose(world, rng, nodes, count, fraction) for _ in starts_us]
    return play(world, windows(starts_us, span("down_s", down_s), victims, _each(_fail), _each(_recover)))


def server_crash(
    world: World,
    *,
    at_s: NotNegative,
    down_s: Positive,
    every_s: Positive | None = None,
    times: Times = 1,
) -> Process:
    """The server stops at a given time and is back a while later, remembering everything.

    What was on its way to or from it is lost, and so is what clients send meanwhile.

    Args:
        world: the world it lives in.
        at_s: when, in simulated seconds.
        down_s: how long it is down, in seconds.
        every_s: seconds from one occurrence to the next.
        times: how many occurrences.

    Returns:
        The process.

    Raises:
        BadValue: if the world has no server.
    """
    if world.server is None:
        raise BadValue("name", "server_crash", "needs a server, and this strategy has only peers")
    starts_us = moments(at_s, every_s, times)
    servers = [world.server] * times
    return play(world, windows(starts_us, span("down_s", down_s), servers, _fail, _recover))


def flaky(
    world: World,
    rng: np.random.Generator,
    *,
    mtbf_s: Positive,
    mttr_s: Positive,
    nodes: list[int] | None = None,
    count: Count | None = None,
    fraction: Share | None = None,
) -> Process:
    """Nodes fail and recover again and again, after exponentially distributed times.

    Args:
        world: the world they live in.
        rng: the stream that chooses them.
        mtbf_s: mean time until the next failure, in seconds.
        mttr_s: mean time to repair, in seconds.
        nodes: which nodes; or
        count: how many of the clients or peers, chosen at random; or
        fraction: what share of them, chosen at random.

    Returns:
        The process.

    Raises:
        BadValue: unless exactly one of nodes, count and fraction is given and the world has such nodes.
    """
    for key, mean_s in (("mtbf_s", mtbf_s), ("mttr_s", mttr_s)):
        span(key, mean_s)
    victims = choose(world, rng, nodes, count, fraction)
    seed = int(rng.integers(2**63))
    return _flaky(world, victims, seed, (mtbf_s, mttr_s))


def _flaky(world: World, victims: list[Node], seed: int, means_s: tuple[float, float]) -> Process:
    for node in victims:
        world.clock.process(_fail_and_recover(node, stream(seed, "flaky", node.id), means_s))
    yield world.clock.timeout(0)


def _fail_and_recover(node: Node, rng: np.random.Generator, means_s: tuple[float, float]) -> Process:
    while not node.crashed:
        for mean_s, act in zip(means_s, (_fail, _recover), strict=True):
            yield node.clock.timeout(max(1, micros(rng.exponential(mean_s))))
            act(node)


def slow_down(
    world: World,
    rng: np.random.Generator,
    *,
    at_s: NotNegative,
    for_s: Positive,
    factor: Factor,
    nodes: list[int] | None = None,
    count: Count | None = None,
    fraction: Share | None = None,
    every_s: Positive | None = None,
    times: Times = 1,
) -> Process:
    """Work takes longer for a while, also what is left of work that has begun.

    Args:
        world: the world they live in.
        rng: the stream that chooses them.
        at_s: when, in simulated seconds.
        for_s: for how long, in seconds.
        factor: how many times as long work takes; where occurrences overlap, their factors multiply.
        nodes: which nodes; or
        count: how many of the clients or peers, chosen at random each time; or
        fraction: what share of them, chosen at random each time.
        every_s: seconds from one occurrence to the next.
        times: how many occurrences.

    Returns:
        The process.

    Raises:
        BadValue: unless exactly one of nodes, count and fraction is given and the world has such nodes.
    """
    if not math.isfinite(factor):
        raise BadValue("factor", factor, "must be finite")
    exact = Fraction(str(factor))
    starts_us = moments(at_s, every_s, times)
    victims = [choose(world, rng, nodes, count, fraction) for _ in starts_us]
    begin, end = _each(partial(_slow, "slow", exact)), _each(partial(_slow, "normal", 1 / exact))
    return play(world, windows(starts_us, span("for_s", for_s), victims, begin, end))


def corrupt(
    world: World,
    rng: np.random.Generator,
    *,
    kind: Kind,
    scale: float = 1.0,
    checked: bool = True,
    at_s: NotNegative = 0.0,
    for_s: Positive | None = None,
    nodes: list[int] | None = None,
    count: Count | None = None,
    fraction: Share | None = None,
    every_s: Positive | None = None,
    times: Times = 1,
) -> Process:
    """The models that nodes send are not what they should be.

    Args:
        world: the world they live in.
        rng: the stream that chooses them and seeds the noise.
        kind: ``nan``; ``sign_flip``, times -1; ``noise``, with normal noise of the standard deviation ``scale``
            added; ``zeros``; or ``scale``, times ``scale``.
        scale: for ``noise`` and ``scale``.
        checked: whether a value that is not finite stops the run; if not, the strategy has to cope with it.
        at_s: when, in simulated seconds.
        for_s: for how long, in seconds; by default until the end.
        nodes: which nodes; or
        count: how many of the clients or peers, chosen at random each time; or
        fraction: what share of them, chosen at random each time.
        every_s: seconds from one occurrence to the next.
        times: how many occurrences.

    Returns:
        The process.

    Raises:
        BadValue: unless exactly one of nodes, count and fraction is given and the world has such clients or peers;
            or for a scale that is not finite or means nothing.
    """
    if not math.isfinite(scale):
        raise BadValue("scale", scale, "must be finite")
    if kind == "scale" and scale == 1.0:
        raise BadValue("scale", MISSING, "is required for the kind scale, and must not be 1")
    if kind not in ("noise", "scale") and scale != 1.0:
        raise BadValue("scale", scale, f"means nothing for the kind {kind}", "leave it out")
    starts_us = moments(at_s, every_s, times)
    victims = [choose(world, rng, nodes, count, fraction) for _ in starts_us]
    if any(node is world.server for each in victims for node in each):
        raise BadValue(
            "nodes", nodes, "names the server, and only what clients or peers send can be corrupted"
        )
    seeds = [int(seed) for seed in rng.integers(2**63, size=len(starts_us))]
    length_us = None if for_s is None else span("for_s", for_s)
    corruptions = [Corruption(kind, scale, seed, checked) for seed in seeds]

    def begin(occurrence: tuple[Corruption, list[Node]]) -> None:
        for node in occurrence[1]:
            _corrupt(occurrence[0], node)

    def end(occurrence: tuple[Corruption, list[Node]]) -> None:
        for node in occurrence[1]:
            _mend(occurrence[0], node)

    return play(
        world, windows(starts_us, length_us, list(zip(corruptions, victims, strict=True)), begin, end)
    )


def _each(act: Callable[[Node], None]) -> Callable[[list[Node]], None]:
    """Return what does the same to several nodes."""

    def acts(nodes: list[Node]) -> None:
        for node in nodes:
            act(node)

    return acts


def _fail(node: Node) -> None:
    if not node.crashed:
        node.log.add("fail", node.id)
    node.block()


def _recover(node: Node) -> None:
    if not node.crashed:
        node.log.add("recover", node.id)
    node.unblock()


def _slow(kind: str, factor: Fraction, node: Node) -> None:
    node.slow(factor)
    node.log.add(kind, node.id, size=round(node.slowness * 1000))


def _corrupt(corruption: Corruption, node: Node) -> None:
    node.corruptions.append(corruption)
    node.log.add("corrupt", node.id)


def _mend(corruption: Corruption, node: Node) -> None:
    node.corruptions.remove(corruption)
    node.log.add("honest", node.id)
