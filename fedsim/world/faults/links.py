"""Failure injection in the network: it falls apart, and messages are lost, late or doubled.

What befalls one message depends on the fault, its sender and how many messages that one has sent before, and on
nothing else: traffic elsewhere does not change it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import networkx as nx
import numpy as np

from fedsim.errors import MISSING, BadValue
from fedsim.parts import Count, NotNegative, Positive, Share
from fedsim.rng import stream
from fedsim.world.clock import micros
from fedsim.world.faults.schedule import Who, Window, check_known, span
from fedsim.world.net.network import Transfer
from fedsim.world.world import World

Wall = dict[int, int]
"""The group of every node, by id."""

Edge = tuple[int, int]

Effect = Callable[[World, np.random.Generator, Transfer], None]
"""What befalls a message, given the message's own stream."""


@dataclass(kw_only=True)
class Partition(Window):
    """The network falls apart into groups for a while: messages from one to another are lost.

    Transfers under way between groups die when it begins. Within a group messages get through, even where their way
    leads over a node of another group.

    Args:
        for_s: for how long, in seconds.
        groups: at least two groups of nodes; whoever is in none, such as the server, belongs to the first; or
        cut: links of the topology, each as its two nodes; what hangs together without them is a group; or
        fraction: what share of the clients or peers is cut off from all others, chosen at random each time.
    """

    for_s: Positive
    groups: list[list[int]] | None = None
    cut: list[list[int]] | None = None
    fraction: Share | None = None

    def targets(self, world: World, rng: np.random.Generator) -> list[Any]:
        """Draw who is apart from whom."""
        if sum(choice is not None for choice in (self.groups, self.cut, self.fraction)) != 1:
            raise BadValue("groups", MISSING, "give exactly one of groups, cut and fraction")
        if self.groups is not None:
            return [_wall(world, self.groups)] * self.times
        if self.cut is not None:
            return [_wall(world, _pieces(world, self.cut))] * self.times
        return [_random_wall(world, rng, self.fraction or 0.0) for _ in range(self.times)]

    def begin(self, world: World, target: Any) -> None:
        """Build the wall."""
        world.network.walls.append(target)
        world.log.add("partition", -1, size=sum(group > 0 for group in target.values()))
        _kill(world, lambda transfer: target[transfer.src.id] != target[transfer.dst.id])

    def end(self, world: World, target: Any) -> None:
        """Tear it down."""
        world.network.walls.remove(target)
        world.log.add("heal", -1, size=sum(group > 0 for group in target.values()))


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
    known = {node.id for node in world.nodes}
    pieces = sorted(sorted(piece & known) for piece in nx.connected_components(rest) if piece & known)
    if len(pieces) < 2:
        raise BadValue("cut", cut, "must divide the topology; without these links it still hangs together")
    return pieces


def _known_link(key: str, link: list[int], world: World) -> Edge:
    """Refuse what is not a link of the topology, and return it with its smaller node first."""
    unknown = sorted(set(link) - set(world.network.graph))  # routers have links, too
    if unknown:
        hint = f"nodes are 0 to {len(world.network.graph) - 1}"
        raise BadValue(key, link, f"no such node: {unknown[0]}", hint)
    if not link:
        check_known(key, link, world)
    edge = min(link), max(link)
    if len(link) != 2 or not world.network.graph.has_edge(*edge):
        raise BadValue(key, link, "must be the two nodes of a link of the topology")
    return edge


def _random_wall(world: World, rng: np.random.Generator, fraction: float) -> Wall:
    away = {node.id for node in Who(fraction=fraction).choose(world, rng)}
    if not 0 < len(away) < len(world.nodes):
        rule = f"cuts {len(away)} of {len(world.nodes)} nodes off, which divides nobody"
        raise BadValue("fraction", fraction, rule)
    return {node.id: int(node.id in away) for node in world.nodes}


@dataclass(kw_only=True)
class LinkDown(Window):
    """Links stop working for a while; messages take another way if there is one, and are lost otherwise.

    Args:
        for_s: for how long, in seconds.
        edge: the two nodes of a link; or
        count: how many links, chosen at random each time.
    """

    for_s: Positive
    edge: list[int] | None = None
    count: Count | None = None

    def targets(self, world: World, rng: np.random.Generator) -> list[Any]:
        """Draw the links of each occurrence."""
        return [_choose_edges(world, rng, self.edge, self.count) for _ in range(self.times)]

    def begin(self, world: World, target: Any) -> None:
        """Cut them."""
        for edge in target:
            world.network.break_edge(*edge)
            world.log.add("link_down", *edge)
        _kill(world, lambda transfer: not set(target).isdisjoint(transfer.route.links))

    def end(self, world: World, target: Any) -> None:
        """Mend them."""
        for edge in target:
            world.network.mend_edge(*edge)
            world.log.add("link_up", *edge)


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


def _kill(world: World, doomed: Callable[[Transfer], bool]) -> None:
    """Lose the transfers under way that a fault hits, sender by sender."""
    under_way = [t for node in world.nodes for t in world.network.transfers(node) if t.src is node]
    world.network.kill([transfer for transfer in under_way if doomed(transfer)])


@dataclass(kw_only=True)
class Disturbance(Who, Window):
    """A fault that befalls single messages: those that the nodes named send or receive, by default all.

    Args:
        for_s: for how long, in seconds; by default until the end.
    """

    at_s: NotNegative = 0.0
    for_s: Positive | None = None
    purpose: ClassVar[str]

    @abstractmethod
    def befall(self, world: World, rng: np.random.Generator, transfer: Transfer) -> None:
        """Let something happen to a message, given the message's own stream."""

    def targets(self, world: World, rng: np.random.Generator) -> list[Any]:
        """Draw the seed of the messages' fates, and whom each occurrence hits."""
        seed, hazards = int(rng.integers(2**63)), []
        for index in range(self.times):
            hit = None if self.everybody else {node.id for node in self.choose(world, rng)}
            hazards.append(partial(_befall, world, seed, f"{self.purpose} {index}", self.befall, hit))
        return hazards

    def begin(self, world: World, target: Any) -> None:
        """Watch what is sent."""
        world.network.hazards.append(target)

    def end(self, world: World, target: Any) -> None:
        """Look away."""
        world.network.hazards.remove(target)


@dataclass(kw_only=True)
class MessageLoss(Disturbance):
    """Messages are lost: all their bytes are sent, and nothing arrives.

    Args:
        probability: of each message that is sent meanwhile.
    """

    probability: Share
    purpose = "message loss"

    def befall(self, world: World, rng: np.random.Generator, transfer: Transfer) -> None:
        """Lose it, perhaps."""
        if rng.random() < self.probability:
            transfer.doomed = True
            _note(world, "drop", transfer, transfer.size_bytes)


@dataclass(kw_only=True)
class MessageDelay(Disturbance):
    """Messages take longer than they should, each by another time, so that they may overtake each other.

    Args:
        seconds: mean of the additional delay, which is exponentially distributed.
    """

    seconds: Positive
    purpose = "message delay"

    def __post_init__(self) -> None:
        span("seconds", self.seconds)

    def befall(self, world: World, rng: np.random.Generator, transfer: Transfer) -> None:
        """Hold it up."""
        late_us = micros(rng.exponential(self.seconds))
        transfer.late_us += late_us
        _note(world, "delay", transfer, late_us)


@dataclass(kw_only=True)
class MessageDuplication(Disturbance):
    """Messages are sent twice; the copy costs as many bytes as the original.

    Args:
        probability: of each message that is sent meanwhile.
    """

    probability: Share
    purpose = "message duplication"

    def befall(self, world: World, rng: np.random.Generator, transfer: Transfer) -> None:
        """Double it, perhaps."""
        if not transfer.copy and rng.random() < self.probability:
            transfer.copies += 1
            _note(world, "duplicate", transfer, transfer.size_bytes)


def _befall(
    world: World, seed: int, name: str, effect: Effect, hit: Collection[int] | None, transfer: Transfer
) -> None:
    src, dst = transfer.src.id, transfer.dst.id
    if hit is None or src in hit or dst in hit:
        effect(world, stream(seed, f"{name} {transfer.copy}", src, transfer.number), transfer)


def _note(world: World, kind: str, transfer: Transfer, size: int) -> None:
    world.log.add(kind, transfer.src.id, transfer.dst.id, size, transfer.message.round)
