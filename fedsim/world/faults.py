"""Failure injection, each fault a SimPy process.

A fault part is a function ``name(world, rng, *, …)`` that checks its parameters, draws its schedule and returns
the process.
"""

from __future__ import annotations

import numpy as np

from fedsim.errors import MISSING, BadValue
from fedsim.parts import Count, NotNegative, Share
from fedsim.world.clock import Process, micros
from fedsim.world.node import Node
from fedsim.world.world import World


def crash(
    world: World,
    rng: np.random.Generator,
    *,
    at_s: NotNegative,
    nodes: list[int] | None = None,
    count: Count | None = None,
    fraction: Share | None = None,
) -> Process:
    """Nodes stop for good at a given time.

    Args:
        world: the world they live in.
        rng: the stream that chooses them.
        at_s: when, in simulated seconds.
        nodes: which nodes; or
        count: how many of the clients or peers, chosen at random; or
        fraction: what share of them, chosen at random.

    Returns:
        The process.

    Raises:
        BadValue: unless exactly one of nodes, count and fraction is given and the world has such nodes.
    """
    victims = choose(world, rng, nodes, count, fraction)
    return _crash(world, victims, micros(at_s))


def _crash(world: World, victims: list[Node], at_us: int) -> Process:
    yield world.clock.timeout(at_us)
    for node in victims:
        node.crash()


def choose(
    world: World,
    rng: np.random.Generator,
    nodes: list[int] | None,
    count: int | None,
    fraction: float | None,
) -> list[Node]:
    """Return the nodes that a fault hits, sorted by id."""
    if sum(choice is not None for choice in (nodes, count, fraction)) != 1:
        raise BadValue("nodes", MISSING, "give exactly one of nodes, count and fraction")
    members = world.members
    if nodes is not None:
        unknown = sorted(set(nodes) - {node.id for node in world.nodes})
        if unknown:
            raise BadValue(
                "nodes", nodes, f"no such node: {unknown[0]}", f"nodes are 0 to {len(world.nodes) - 1}"
            )
        return [world.nodes[id] for id in sorted(set(nodes))]
    size = count if count is not None else round((fraction or 0.0) * len(members))
    if size > len(members):
        raise BadValue("count", size, f"at most {len(members)}, the number of clients or peers")
    picked = rng.choice(len(members), size=size, replace=False)
    return [members[int(index)] for index in sorted(picked)]
