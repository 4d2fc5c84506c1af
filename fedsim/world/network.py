"""Messages over a graph: latency, bandwidth, and every byte counted at its node and link."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import networkx as nx

from fedsim.world.clock import MICRO, Clock
from fedsim.world.graph import Graph
from fedsim.world.log import EventLog
from fedsim.world.sharing import KINDS, Flow, Link, Path

if TYPE_CHECKING:
    from fedsim.world.node import Node


class Message(NamedTuple):
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


class Route(NamedTuple):
    """A way through the graph.

    Args:
        latency_us: the sum over its edges and both ends.
        path: the limited links that it crosses.
        links: its edges, as pairs of nodes with the smaller one first.
    """

    latency_us: int
    path: Path
    links: tuple[tuple[int, int], ...]

    @property
    def bits_per_s(self) -> int:
        """The capacity of its narrowest place, or 0 for no limit."""
        return round(min((link.capacity for link in self.path.links), default=0.0) * MICRO)


class Transfer(Flow):
    """A message on its way."""

    __slots__ = ("alive", "dst", "is_sent", "message", "on_end", "route", "size_bytes", "src")

    def __init__(
        self,
        message: Message,
        src: Node,
        dst: Node,
        route: Route,
        size_bytes: int,
        on_end: Callable[[bool], None] | None,
    ) -> None:
        super().__init__(size_bytes * 8, route.path)
        self.message, self.src, self.dst, self.route = message, src, dst, route
        self.size_bytes, self.on_end = size_bytes, on_end
        self.alive = True
        self.is_sent = False


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

    A message arrives when its last bit has left the sender, at a rate that depends on who shares the links, and has
    travelled the route's latency. Nodes that are not adjacent are joined by the quickest path; the nodes on it only
    pass bytes on, and do so even when they are offline. Every link is full duplex.

    Args:
        clock: simulated time.
        log: where every send, delivery and loss is written down.
        graph: edges with ``latency_us`` (int) and ``bits_per_s`` (int, 0 for unlimited).
        access: how each node is attached.
        sharing: how transfers share a link: ``max-min``, ``greedy`` or ``none``.
        header_bytes: added to the size of every message.
    """

    clock: Clock
    log: EventLog
    graph: Graph
    access: Mapping[int, Access]
    sharing: str = "max-min"
    header_bytes: int = 0
    traffic: dict[int, Traffic] = field(default_factory=dict)
    links: Counter[tuple[int, int]] = field(default_factory=Counter)
    _routes: dict[tuple[int, int], Route] = field(default_factory=dict)
    _ends: dict[int, tuple[Link, Link]] = field(default_factory=dict)
    _edges: dict[tuple[int, int], Link] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.traffic = {node: Traffic() for node in self.graph}
        self._sharing = KINDS[self.sharing](self.clock, self._sent)
        self._ends = {node: (_link(a.up_bps), _link(a.down_bps)) for node, a in self.access.items()}

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
        transfer = Transfer(message, src, dst, route, size, on_end)
        self.log.add("send", src.id, dst.id, size, message.round)
        if dst.online:
            src.transfers[transfer] = None
            dst.transfers[transfer] = None
            if route.path.links:
                self._sharing.start(transfer)
            else:
                self._sent(transfer)
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
            sent = transfer.size_bytes
            if not transfer.is_sent:
                sent = transfer.sent_bytes(self.clock.now)
                self._sharing.stop(transfer)
                if sent == transfer.size_bytes:  # the last bit left in this very microsecond
                    self._sent(transfer)
            if not transfer.is_sent or transfer.dst is node:
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
            return Route(0, Path(Link(), (), Link()), ())
        path = [src, dst] if self.graph.has_edge(src, dst) else nx.dijkstra_path(self.graph, src, dst, _cost)
        hops = tuple(pairwise(path))
        latency_us = sum(self.graph.edges[hop]["latency_us"] for hop in hops)
        latency_us += self.access[src].latency_us + self.access[dst].latency_us
        edges = tuple(self._edge(hop) for hop in hops if self.graph.edges[hop]["bits_per_s"])
        links = Path(self._ends[src][0], edges, self._ends[dst][1])
        return Route(latency_us, links, tuple((min(hop), max(hop)) for hop in hops))

    def _edge(self, hop: tuple[int, int]) -> Link:
        if hop not in self._edges:
            self._edges[hop] = _link(self.graph.edges[hop]["bits_per_s"])
        return self._edges[hop]

    def _sent(self, transfer: Transfer) -> None:
        """The last bit has left the sender."""
        transfer.is_sent = True
        self.clock.after(transfer.route.latency_us, self._arrive, transfer)

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
        for hop in transfer.route.links:
            self.links[hop] += sent


def _link(bits_per_s: int) -> Link:
    return Link(bits_per_s / MICRO) if bits_per_s else Link()


def _cost(_a: int, _b: int, edge: Mapping[str, int]) -> int:
    return edge["latency_us"] * 1_000_000 + 1
