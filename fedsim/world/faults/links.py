"""Failure injection in the network: it falls apart, and messages are lost, late or doubled.

What befalls one message depends on the fault, its sender and how many messages that one has sent before, and on
nothing else: traffic elsewhere does not change it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial

import networkx as nx
import numpy as np

from fedsim.errors import MISSING, BadValue
from fedsim.parts import Count, NotNegative, Positive, Share
from fedsim.ranges import Times
from fedsim.rng import stream
from fedsim.world.clock import Process, micros
from fedsim.world.faults.schedule import check_known, choose, moments, play, span, windows
from fedsim.world.net.network import Hazard, Transfer
from fedsim.world.world import World

Wall = dict[int, int]
"""The group of every node, by id."""

Edge = tuple[int, int]

Effect = Callable[[World, np.random.Generator, Transfer], None]
"""What befalls a message, given the message's own stream."""


def partition(
    world: World,
    rng: np.random.Generator,
    *,
    at_s: NotNegative,
    for_s: Positive,
    groups: list[list[int]] | None = None,
    cut: list[list[int]] | None = None,
    fraction: Share | None = None,
    every_s: Positive | None = None,
    times: Times = 1,
) -> Process:
    """The network falls apart into groups for a while: messages from one to another are lost.

    Transfers under way between groups die when it begins. Within a group messages get through, even where their way
    leads over a node of another group.

    Args:
        world: the world.
        rng: the stream that draws the groups.
        at_s: when, in simulated seconds.
        for_s: for how long, in seconds.
        groups: at least two groups of nodes; whoever is in none, such as the server, belongs to the first; or
        cut: links of the topology, each as its two nodes; what hangs together without them is a group; or
        fraction: what share of the clients or peers is cut off from all others, chosen at random each time.
        every_s: seconds from one occurrence to the next.
        times: how many occurrences.

    Returns:
        The process.

    Raises:
        BadValue: unless exactly one of groups, cut and fraction is given and it divides the nodes.
    """
    starts_us = moments(at_s, every_s, times)
    if sum(choice is not None for choice in (groups, cut, fraction)) != 1:
        raise BadValue("groups", MISSING, "give exactly one of groups, cut and fraction")
    if groups is not None:
        walls = [_wall(world, groups)] * times
    elif cut is not None:
        walls = [_wall(world, _pieces(world, cut))] * times
    else:
        walls = [_random_wall(world, rng, fraction or 0.0) for _ in starts_us]
    steps = windows(starts_us, span("for_s", for_s), walls, partial(_part, world), partial(_heal, world))
    return play(world, steps)


def _wall(world: World, groups: list[list[int]]) -> Wall:
    if len(groups) < 2:
        raise BadValue("groups", groups, f"must be at least 2 groups, not {len(groups)}")
    wall = dict.fromkeys(range(len(world.nodes)), 0)
    listed: set[int] = set()
    for number, group in enumerate(groups):
        check_known(f"groups.{number}", group, world)
        twice = sorted(listed & set(group))
        if twice:
            raise BadValue(f"groups.{number}", group, f"node {twice[0]} is in another group, too")
        listed |= set(group)
        wall.update(dict.fromkeys(group, number))
    return wall


def _pieces(world: World, cut: list[list[int]]) -> list[list[int]]:
    """Return the nodes that hang together without some links, piece by piece."""
    links = {_known_link(f"cut.{number}", link, world) for number, link in enumerate(cut)}
    rest = nx.restricted_view(world.network.graph, [], list(links))
    pieces = sorted(sorted(piece) for piece in nx.connected_components(rest))
    if len(pieces) < 2:
        raise BadValue("cut", cut, "must divide the topology; without these links it still hangs together")
    return pieces


def _known_link(key: str, link: list[int], world: World) -> Edge:
    """Refuse what is not a link of the topology, and return it with its smaller node first."""
    check_known(key, link, world)
    edge = min(link), max(link)
    if len(link) != 2 or not world.network.graph.has_edge(*edge):
        raise BadValue(key, link, "must be the two nodes of a link of the topology")
    return edge


def _random_wall(world: World, rng: np.random.Generator, fraction: float) -> Wall:
    away = {node.id for node in choose(world, rng, None, None, fraction)}
    if not 0 < len(away) < len(world.nodes):
        rule = f"cuts {len(away)} of {len(world.nodes)} nodes off, which divides nobody"
        raise BadValue("fraction", fraction, rule)
    return {node.id: int(node.id in away) for node in world.nodes}


def _part(world: World, wall: Wall) -> None:
    world.network.walls.append(wall)
    world.log.add("partition", -1, size=sum(group > 0 for group in wall.values()))
    _kill(world, lambda transfer: wall[transfer.src.id] != wall[transfer.dst.id])


def _heal(world: World, wall: Wall) -> None:
    world.network.walls.remove(wall)
    world.log.add("heal", -1, size=sum(group > 0 for group in wall.values()))


def link_down(
    world: World,
    rng: np.random.Generator,
    *,
    at_s: NotNegative,
    for_s: Positive,
    edge: list[int] | None = None,
    count: Count | None = None,
    every_s: Positive | None = None,
    times: Times = 1,
) -> Process:
    """Links stop working for a while; messages take another way if there is one, and are lost otherwise.

    Args:
        world: the world.
        rng: the stream that chooses the links.
        at_s: when, in simulated seconds.
        for_s: for how long, in seconds.
        edge: the two nodes of a link; or
        count: how many links, chosen at random each time.
        every_s: seconds from one occurrence to the next.
        times: how many occurrences.

    Returns:
        The process.

    Raises:
        BadValue: unless exactly one of edge and count is given and the graph has such links.
    """
    starts_us = moments(at_s, every_s, times)
    broken = [_choose_edges(world, rng, edge, count) for _ in starts_us]
    steps = windows(starts_us, span("for_s", for_s), broken, partial(_break, world), partial(_repair, world))
    return play(world, steps)


def _choose_edges(
    world: World, rng: np.random.Generator, edge: list[int] | None, count: int | None
) -> list[Edge]:
    if (edge is None) == (count is None):
        raise BadValue("edge", MISSING, "give exactly one of edge and count")
    edges = sorted((min(ends), max(ends)) for ends in world.network.graph.edges)
    if edge is not None:
        return [_known_link("edge", edge, world)]
    if (count or 0) > len(edges):
        raise BadValue("count", count, f"must be at most {len(edges)}, the number of links")
    return [edges[int(index)] for index in sorted(rng.choice(len(edges), size=count, replace=False))]


def _break(world: World, edges: Sequence[Edge]) -> None:
    for edge in edges:
        world.network.break_edge(*edge)
        world.log.add("link_down", *edge)
    _kill(world, lambda transfer: not set(edges).isdisjoint(transfer.route.links))


def _repair(world: World, edges: Sequence[Edge]) -> None:
    for edge in edges:
        world.network.mend_edge(*edge)
        world.log.add("link_up", *edge)


def _kill(world: World, doomed: Callable[[Transfer], bool]) -> None:
    """Lose the transfers under way that a fault hits, sender by sender."""
    under_way = [t for node in world.nodes for t in world.network.transfers(node) if t.src is node]
    world.network.kill([transfer for transfer in under_way if doomed(transfer)])


def message_loss(
    world: World,
    rng: np.random.Generator,
    *,
    probability: Share,
    at_s: NotNegative = 0.0,
    for_s: Positive | None = None,
    nodes: list[int] | None = None,
    count: Count | None = None,
    fraction: Share | None = None,
    every_s: Positive | None = None,
    times: Times = 1,
) -> Process:
    """Messages are lost: all their bytes are sent, and nothing arrives.

    Args:
        world: the world.
        rng: the stream that chooses whom it hits and seeds the messages' fates.
        probability: of each message that is sent meanwhile.
        at_s: when, in simulated seconds.
        for_s: for how long, in seconds; by default until the end.
        nodes: only what these nodes send or receive; or
        count: only what so many clients or peers do, chosen at random each time; or
        fraction: only what this share of them does, chosen at random each time. By default all.
        every_s: seconds from one occurrence to the next.
        times: how many occurrences.

    Returns:
        The process.

    Raises:
        BadValue: if more than one of nodes, count and fraction is given or the world has no such nodes.
    """

    def lose(world: World, rng: np.random.Generator, transfer: Transfer) -> None:
        if rng.random() < probability:
            transfer.doomed = True
            _note(world, "drop", transfer, transfer.size_bytes)

    return _disturb(world, rng, "message loss", lose, (at_s, for_s, every_s, times), (nodes, count, fraction))


def message_delay(
    world: World,
    rng: np.random.Generator,
    *,
    seconds: Positive,
    at_s: NotNegative = 0.0,
    for_s: Positive | None = None,
    nodes: list[int] | None = None,
    count: Count | None = None,
    fraction: Share | None = None,
    every_s: Positive | None = None,
    times: Times = 1,
) -> Process:
    """Messages take longer than they should, each by another time, so that they may overtake each other.

    Args:
        world: the world.
        rng: the stream that chooses whom it hits and seeds the messages' fates.
        seconds: mean of the additional delay, which is exponentially distributed.
        at_s: when, in simulated seconds.
        for_s: for how long, in seconds; by default until the end.
        nodes: only what these nodes send or receive; or
        count: only what so many clients or peers do, chosen at random each time; or
        fraction: only what this share of them does, chosen at random each time. By default all.
        every_s: seconds from one occurrence to the next.
        times: how many occurrences.

    Returns:
        The process.

    Raises:
        BadValue: if more than one of nodes, count and fraction is given or the world has no such nodes.
    """
    span("seconds", seconds)

    def hold_up(world: World, rng: np.random.Generator, transfer: Transfer) -> None:
        late_us = micros(rng.exponential(seconds))
        transfer.late_us += late_us
        _note(world, "delay", transfer, late_us)

    return _disturb(
        world, rng, "message delay", hold_up, (at_s, for_s, every_s, times), (nodes, count, fraction)
    )


def message_duplication(
    world: World,
    rng: np.random.Generator,
    *,
    probability: Share,
    at_s: NotNegative = 0.0,
    for_s: Positive | None = None,
    nodes: list[int] | None = None,
    count: Count | None = None,
    fraction: Share | None = None,
    every_s: Positive | None = None,
    times: Times = 1,
) -> Process:
    """Messages are sent twice; the copy costs as many bytes as the original.

    Args:
        world: the world.
        rng: the stream that chooses whom it hits and seeds the messages' fates.
        probability: of each message that is sent meanwhile.
        at_s: when, in simulated seconds.
        for_s: for how long, in seconds; by default until the end.
        nodes: only what these nodes send or receive; or
        count: only what so many clients or peers do, chosen at random each time; or
        fraction: only what this share of them does, chosen at random each time. By default all.
        every_s: seconds from one occurrence to the next.
        times: how many occurrences.

    Returns:
        The process.

    Raises:
        BadValue: if more than one of nodes, count and fraction is given or the world has no such nodes.
    """

    def double(world: World, rng: np.random.Generator, transfer: Transfer) -> None:
        if not transfer.copy and rng.random() < probability:
            transfer.copies += 1
            _note(world, "duplicate", transfer, transfer.size_bytes)

    return _disturb(
        world, rng, "message duplication", double, (at_s, for_s, every_s, times), (nodes, count, fraction)
    )


def _disturb(
    world: World,
    rng: np.random.Generator,
    name: str,
    effect: Effect,
    when: tuple[float, float | None, float | None, int],
    who: tuple[list[int] | None, int | None, float | None],
) -> Process:
    """Return the process of a fault that befalls single messages."""
    at_s, for_s, every_s, times = when
    seed = int(rng.integers(2**63))
    starts_us = moments(at_s, every_s, times)
    length_us = None if for_s is None else span("for_s", for_s)
    hazards: list[Hazard] = []
    for index in range(len(starts_us)):
        hit = None if who == (None, None, None) else {node.id for node in choose(world, rng, *who)}
        hazards.append(partial(_befall, world, seed, f"{name} {index}", effect, hit))
    network = world.network
    return play(world, windows(starts_us, length_us, hazards, network.hazards.append, network.hazards.remove))


def _befall(
    world: World, seed: int, name: str, effect: Effect, hit: Collection[int] | None, transfer: Transfer
) -> None:
    src, dst = transfer.src.id, transfer.dst.id
    if hit is None or src in hit or dst in hit:
        effect(world, stream(seed, f"{name} {transfer.copy}", src, transfer.number), transfer)


def _note(world: World, kind: str, transfer: Transfer, size: int) -> None:
    world.log.add(kind, transfer.src.id, transfer.dst.id, size, transfer.message.round)
