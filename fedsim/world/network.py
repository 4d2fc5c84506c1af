"""Messages over a graph: latency, bandwidth, and every byte counted at its node and link."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import networkx as nx

from fedsim.world.clock import MICRO, Clock
from fedsim.world.graph import Graph
from fedsim.world.log import EventLog

if TYPE_CHECKING:
    from fedsim.world.node import Node


@dataclass(frozen=True)
class Message:
    """What one node sends to another.

    Args:
        kind: what it is, such as ``"model"``.
        payload: anything; the network does not look at it.
        size_bytes: its size on the wire, without the network's header.
        round: the round it belongs to, or -1.
        src: the sender's id, filled in by :meth:`Node.send`.
    """

    kind: str
    payload: Any
    size_bytes: int
    round: int = -1
    src: int = -1


@dataclass(frozen=True)
class Route:
    """A path through the graph.

    Args:
        latency_us: the sum over its edges and both ends.
        bits_per_s: the narrowest place, or 0 for unlimited.
        links: the edges that the bytes cross.
    """

    latency_us: int
    bits_per_s: int
    links: tuple[tuple[int, int], ...]

    def sending_us(self, size_bytes: int) -> int:
        """Return how long the sender is busy putting that many bytes on the wire."""
        return -(-size_bytes * 8 * MICRO // self.bits_per_s) if self.bits_per_s else 0


@dataclass(eq=False)
class Transfer:
    """A message on its way."""

    message: Message
    src: Node
    dst: Node
    route: Route
    size_bytes: int
    start_us: int
    on_end: Callable[[bool], None] | None
    alive: bool = True

    def sent_bytes(self, now_us: int) -> int:
        """Return how many bytes have left the sender."""
        rate = self.route.bits_per_s
        elapsed_us = now_us - self.start_us
        return min(self.size_bytes, elapsed_us * rate // (8 * MICRO)) if rate else self.size_bytes


@dataclass
class Access:
    """How a node is attached to the network.

    Args:
        latency_us: added to every message that it sends or receives.
        up_bps: bits per second that it can send, 0 for unlimited.
        down_bps: bits per second that it can receive, 0 for unlimited.
    """

    latency_us: int = 0
    up_bps: int = 0
    down_bps: int = 0


@dataclass
class Traffic:
    """Bytes counted at one node; every byte sent is delivered or lost."""

    up: int = 0
    down: int = 0
    lost: int = 0


@dataclass
class Network:
    """Carries messages between nodes over an undirected graph.

    A message arrives after its route's latency plus its size over the narrowest bandwidth on the way. Nodes that
    are not adjacent are joined by the quickest path; the nodes on it only pass bytes on, and do so even when they
    are offline. Transfers do not slow one another down.

    Args:
        clock: simulated time.
        log: where every send, delivery and loss is written down.
        graph: edges with ``latency_us`` (int) and ``bits_per_s`` (int, 0 for unlimited).
        access: how each node is attached.
        header_bytes: added to the size of every message.
    """

    clock: Clock
    log: EventLog
    graph: Graph
    access: Mapping[int, Access]
    header_bytes: int = 0
    traffic: dict[int, Traffic] = field(default_factory=dict)
    links: Counter[tuple[int, int]] = field(default_factory=Counter)
    _routes: dict[tuple[int, int], Route] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.traffic = {node: Traffic() for node in self.graph}

    def send(
        self, src: Node, dst: Node, message: Message, on_end: Callable[[bool], None] | None = None
    ) -> Transfer:
        """Start a transfer.

        Args:
            src: the sender, online.
            dst: the receiver; if it is offline, the transfer fails at once and only the header is lost.
            message: what to send.
            on_end: called once with True at the delivery, or with False when an end went offline before it.

        Returns:
            The transfer, under way or already dead.
        """
        route = self.route(src.id, dst.id)
        size = message.size_bytes + self.header_bytes
        transfer = Transfer(message, src, dst, route, size, self.clock.now, on_end)
        self.log.add("send", src.id, dst.id, size, message.round)
        if dst.online:
            src.transfers[transfer] = None
            dst.transfers[transfer] = None
            self.clock.after(route.sending_us(size) + route.latency_us, self._arrive, transfer)
        else:
            self._lose(transfer, self.header_bytes)
        return transfer

    def cut(self, node: Node) -> None:
        """Kill the transfers of a node that has just gone offline; bytes that left a sender stay counted.

        What a sender had put on the wire completely still arrives: its going offline comes too late to stop it.
        """
        for transfer in list(node.transfers):
            if not transfer.alive:  # the end of another one may have cut it, too
                continue
            sent = transfer.sent_bytes(self.clock.now)
            if transfer.src is node and transfer.dst is not node and sent == transfer.size_bytes:
                continue
            self._lose(transfer, sent)

    def route(self, src: int, dst: int) -> Route:
        """Return the link between two nodes, or the quickest path where they are not adjacent.

        The quickest path has the lowest sum of latencies; of equally quick ones, it has the fewest hops.
        """
        if (src, dst) not in self._routes:
            self._routes[src, dst] = self._find_route(src, dst)
        return self._routes[src, dst]

    def _find_route(self, src: int, dst: int) -> Route:
        if src == dst:
            return Route(0, 0, ())
        path = [src, dst] if self.graph.has_edge(src, dst) else nx.dijkstra_path(self.graph, src, dst, _cost)
        hops = list(pairwise(path))
        edges = [self.graph.edges[hop] for hop in hops]
        ends = self.access[src], self.access[dst]
        limits = [ends[0].up_bps, ends[1].down_bps, *(edge["bits_per_s"] for edge in edges)]
        latency_us = sum(end.latency_us for end in ends) + sum(edge["latency_us"] for edge in edges)
        links = tuple((min(hop), max(hop)) for hop in hops)
        return Route(latency_us, min((limit for limit in limits if limit), default=0), links)

    def _arrive(self, transfer: Transfer) -> None:
        if not transfer.alive:
            return
        self._end(transfer, transfer.size_bytes)
        src, dst, size = transfer.src.id, transfer.dst.id, transfer.size_bytes
        self.traffic[dst].down += size
        self.log.add("deliver", dst, src, size, transfer.message.round)
        transfer.dst.deliver(transfer.message)
        if transfer.on_end is not None:
            transfer.on_end(True)

    def _lose(self, transfer: Transfer, sent: int) -> None:
        self._end(transfer, sent)
        self.traffic[transfer.src.id].lost += sent
        self.log.add("lost", transfer.src.id, transfer.dst.id, sent, transfer.message.round)
        if transfer.on_end is not None:
            transfer.on_end(False)

    def _end(self, transfer: Transfer, sent: int) -> None:
        transfer.alive = False
        transfer.src.transfers.pop(transfer, None)
        transfer.dst.transfers.pop(transfer, None)
        self.traffic[transfer.src.id].up += sent
        for link in transfer.route.links:
            self.links[link] += sent


def _cost(_a: int, _b: int, edge: Mapping[str, int]) -> int:
    return edge["latency_us"] * 1_000_000 + 1
