"""Messages over a graph: latency, bandwidth, and every byte counted at its node and link."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

import networkx as nx

from fedsim.world.clock import MICRO, Clock
from fedsim.world.graph import Graph
from fedsim.world.log import EventLog
from fedsim.world.net.broadcast import Broadcast, Broadcasts
from fedsim.world.net.flows import Link, Path
from fedsim.world.net.messages import NOWHERE, Effort, Endpoint, First, Message, Route, Traffic, Transfer
from fedsim.world.net.sharing import KINDS

__all__ = ["Access", "Hazard", "Message", "Network", "Route", "Traffic", "Transfer"]


Hazard = Callable[[Transfer], None]
"""What a fault does to a message that is about to start."""


NOTHING = Traffic()
"""The bytes of a node that has sent and received none; nobody adds to it."""

ROUTES = 100_000
"""How many routes are kept; a broadcast keeps its own. Finding one again takes some microseconds."""

ENDS = 1_000_000
"""How many ends of quickest paths are kept."""


@dataclass(frozen=True, slots=True)
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
        delay_us: the latency from one node to another, where it does not belong to an edge.
        overlay: whether the graph only says who talks to whom, and messages take no detours over it.

    Faults add to ``hazards``, which every message is exposed to, and to ``walls``, each of which gives every node a
    group: no message gets from one group to another. ``total``, ``effort`` and ``switches`` sum up what the nodes have
    done, and how often one has come or gone: nobody has to go through all nodes for that.
    """

    clock: Clock
    log: EventLog
    graph: Graph
    access: Mapping[int, Access]
    sharing: str = "max-min"
    header_bytes: int = 0
    delay_us: Callable[[int, int], int] | None = None
    overlay: bool = False
    hazards: list[Hazard] = field(default_factory=list)
    walls: list[Mapping[int, int]] = field(default_factory=list)
    total: Traffic = field(default_factory=Traffic)
    effort: Effort = field(default_factory=Effort)
    switches: int = 0
    _broken: Counter[tuple[int, int]] = field(default_factory=Counter)
    _numbers: Counter[int] = field(default_factory=Counter)
    _serial: int = 0
    _traffic: defaultdict[int, Traffic] = field(default_factory=lambda: defaultdict(Traffic))
    _links: Counter[tuple[int, int]] = field(default_factory=Counter)
    _routes: dict[tuple[int, int], Route | None] = field(default_factory=dict)
    _trees: dict[int, dict[int, int]] = field(default_factory=dict)
    _ends: dict[int, tuple[Link, Link]] = field(default_factory=dict)
    _edges: dict[tuple[int, int], Link] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._broadcasts = Broadcasts(self)
        self.flows = KINDS[self.sharing](self.clock, self._sent, self._broadcasts.split)

    @property
    def traffic(self) -> Mapping[int, Traffic]:
        """Bytes by node."""
        self._broadcasts.book()
        return {node: self._traffic.get(node, NOTHING) for node in self.graph}

    def traffic_of(self, node: int) -> Traffic:
        """Return the bytes of one node."""
        self._broadcasts.book()
        return self._traffic.get(node, NOTHING)

    @property
    def links(self) -> Counter[tuple[int, int]]:
        """Bytes by edge, which has its smaller node first."""
        self._broadcasts.book()
        return self._links

    def send(
        self, src: Endpoint, dst: Endpoint, message: Message, on_end: Callable[[bool], None] | None = None
    ) -> Transfer:
        """Start a transfer.

        Args:
            src: the sender, online.
            dst: the receiver; if it is offline or there is no way to it, the transfer fails at once and only the
                header is lost.
            message: what to send.
            on_end: called once with True at the delivery, or with False when an end went offline before it or the
                message was lost; of several copies, the first that is delivered counts.

        Returns:
            The transfer, under way or already dead.
        """
        number, serial = self.count(src.id, 1)
        walled = self.walls and self._walled(src.id, dst.id)
        route = None if walled else self.route(src.id, dst.id)
        size = message.size_bytes + self.header_bytes
        transfer = Transfer(message, src, dst, route or NOWHERE, size, on_end, number + 1, 0, serial)
        self.log.add("send", src.id, dst.id, size, message.round)
        if not dst.online or route is None:
            self._lose(transfer, self.header_bytes)
        elif self.hazards and src is not dst:
            self._expose(transfer)
        else:
            self._start(transfer)
        return transfer

    def send_all(self, src: Endpoint, nodes: tuple[Endpoint, ...], message: Message) -> None:
        """Start a transfer to each of several nodes, as one :meth:`send` after the other.

        Of transfers that end in the same microsecond, others may come first.

        Args:
            src: the sender, online.
            nodes: the receivers.
            message: what to send to each of them.
        """
        calm = not (self.hazards or self.walls or self._broken)
        if not (calm and self._broadcasts.send(src, nodes, message)):
            for dst in nodes:
                self.send(src, dst, message)

    def transfers(self, node: Endpoint) -> list[Transfer]:
        """Return the transfers that a node sends or receives, in the order in which they were started."""
        self._broadcasts.split_at(node)
        return sorted((t for t in node.transfers if isinstance(t, Transfer)), key=lambda t: t.serial)

    def busy(self, node: Endpoint) -> bool:
        """Whether a node sends anything, or anything is on its way to it."""
        return bool(node.transfers) or self._broadcasts.reaches(node)

    def count(self, node: int, messages: int) -> tuple[int, int]:
        """Count messages that a node is about to send, and return the numbers before theirs: its own, and all."""
        number, serial = self._numbers[node], self._serial
        self._numbers[node] += messages
        self._serial += messages
        return number, serial

    def book(self, src: int, dst: int, route: Route, size: int) -> None:
        """Book delivered bytes at both ends and at the links between them."""
        self._traffic[dst].down += size
        self._traffic[src].up += size
        for hop in route.links:
            self._links[hop] += size

    def _start(self, transfer: Transfer) -> None:
        transfer.src.transfers[transfer] = None
        transfer.dst.transfers[transfer] = None
        if transfer.path.links:
            self.flows.start(transfer)
        else:
            self._sent(transfer)

    def _expose(self, transfer: Transfer) -> None:
        """Let faults act on a message, and start what they leave of it."""
        for hazard in self.hazards:
            hazard(transfer)
        if transfer.copies:
            transfer.on_end = First(transfer.on_end, 1 + transfer.copies)
        self._start(transfer)
        message, src, dst, size = transfer.message, transfer.src, transfer.dst, transfer.size_bytes
        for copy in range(1, 1 + transfer.copies):
            end, number, (_, serial) = transfer.on_end, transfer.number, self.count(src.id, 0)
            twin = Transfer(message, src, dst, transfer.route, size, end, number, copy, serial)
            self.log.add("send", src.id, dst.id, size, message.round)
            for hazard in self.hazards:
                hazard(twin)
            self._start(twin)

    def kill(self, transfers: Iterable[Transfer]) -> None:
        """Lose transfers where they are; bytes that left a sender stay counted."""
        for transfer in transfers:
            if transfer.alive:  # the end of another one may have ended it, too
                self._lose(transfer, self._halt(transfer))

    def break_edge(self, a: int, b: int) -> None:
        """Stop using an edge until it is mended as often as it was broken; what is on it stays for :meth:`kill`."""
        self._broken[min(a, b), max(a, b)] += 1
        self._forget()

    def mend_edge(self, a: int, b: int) -> None:
        """Take back one :meth:`break_edge`."""
        self._broken[min(a, b), max(a, b)] -= 1
        self._broken += Counter()  # forgets what is whole again
        self._forget()

    def _forget(self) -> None:
        self._routes.clear()
        self._trees.clear()

    def cut(self, node: Endpoint) -> None:
        """Kill the transfers of a node that has just gone offline; bytes that left a sender stay counted.

        What a sender had put on the wire completely still arrives: its going offline comes too late to stop it.
        """
        for transfer in self.transfers(node):
            if not transfer.alive:  # the end of another one may have cut it, too
                continue
            sent = self._halt(transfer)
            if transfer.dst is node or sent < transfer.size_bytes:
                self._lose(transfer, sent)

    def _halt(self, transfer: Transfer) -> int:
        """Stop sending, and return how many bytes have left the sender."""
        if transfer.is_sent:
            return transfer.size_bytes
        sent = transfer.sent_bytes(self.clock.now)
        self.flows.stop(transfer)
        if sent == transfer.size_bytes:  # the last bit left in this very microsecond
            self._sent(transfer)
        return sent

    def _walled(self, src: int, dst: int) -> bool:
        return any(wall[src] != wall[dst] for wall in self.walls)

    def route(self, src: int, dst: int) -> Route | None:
        """Return the link between two nodes, or the quickest path where they are not adjacent.

        The quickest path has the lowest sum of latencies; of equally quick ones, it has the fewest hops. Where broken
        edges leave no path, there is none.
        """
        ends = src, dst
        found = self._routes.get(ends, NOWHERE)
        if found is NOWHERE:  # it has not been looked for, or it is that of a node to itself
            if len(self._routes) >= ROUTES:
                self._routes.clear()
            found = self._routes[ends] = self._find_route(src, dst)
        return found

    def _find_route(self, src: int, dst: int) -> Route | None:
        if src == dst:
            return NOWHERE
        graph = nx.restricted_view(self.graph, [], list(self._broken)) if self._broken else self.graph
        straight = graph.has_edge(src, dst) or (self.overlay and not self.graph.has_edge(src, dst))
        if self.overlay and not straight:
            return None  # the link is broken, and there are no detours
        path = [src, dst] if straight else self._path(graph, src, dst)
        if not path:
            return None
        latency_us, edges, hops = self.access[src].latency_us + self.access[dst].latency_us, [], []
        for a, b in pairwise(path):
            edge = self.graph.get_edge_data(a, b)  # much quicker than graph.edges[a, b]
            latency_us += edge["latency_us"] if self.delay_us is None else self.delay_us(a, b)
            if edge and edge["bits_per_s"]:
                edges.append(self._edge((a, b)))
            hops.append((a, b) if a < b else (b, a))
        links = Path(self._end_links(src)[0], edges, self._end_links(dst)[1])
        return Route(latency_us, links, tuple(hops))

    def _path(self, graph: Graph, src: int, dst: int) -> list[int]:
        """Return the quickest path, empty if there is none; one search finds those to all other nodes."""
        if src not in self._trees:
            if len(self._trees) * len(graph) >= ENDS:
                self._trees.clear()
            before, _ = nx.dijkstra_predecessor_and_distance(graph, src, weight=self._cost)
            self._trees[src] = {node: nodes[0] for node, nodes in before.items() if nodes}
        tree, path = self._trees[src], [dst]
        while path[-1] in tree:
            path.append(tree[path[-1]])
        return path[::-1] if path[-1] == src else []

    def _cost(self, a: int, b: int, edge: Mapping[str, int]) -> int:
        latency_us = edge["latency_us"] if self.delay_us is None else self.delay_us(a, b)
        return latency_us * 1_000_000 + 1

    def _end_links(self, node: int) -> tuple[Link, Link]:
        """Return a node's uplink and downlink, which are made when they are first needed."""
        if node not in self._ends:
            self._ends[node] = _link(self.access[node].up_bps), _link(self.access[node].down_bps)
        return self._ends[node]

    def _edge(self, hop: tuple[int, int]) -> Link:
        if hop not in self._edges:
            self._edges[hop] = _link(self.graph.edges[hop]["bits_per_s"])
        return self._edges[hop]

    def _sent(self, flow: Transfer | Broadcast) -> None:
        """The last bit has left the sender."""
        flow.is_sent = True
        if isinstance(flow, Broadcast):
            self._broadcasts.sent(flow)
        else:
            self.clock.after(flow.route.latency_us + flow.late_us, self.arrive, flow)

    def arrive(self, transfer: Transfer) -> None:
        """Deliver what has travelled all its way, unless it has been lost meanwhile."""
        if not transfer.alive:
            return
        if transfer.doomed:
            self._lose(transfer, transfer.size_bytes)
            return
        message, node, size = transfer.message, transfer.dst, transfer.size_bytes
        self._end(transfer, size)
        self.total.down += size
        self._traffic[node.id].down += size
        self.log.add("deliver", node.id, transfer.src.id, size, message.round)
        node.deliver(message)
        if transfer.on_end is not None:
            transfer.on_end(True)

    def _lose(self, transfer: Transfer, sent: int) -> None:
        self._end(transfer, sent)
        self.total.lost += sent
        self._traffic[transfer.src.id].lost += sent
        self.log.add("lost", transfer.src.id, transfer.dst.id, sent, transfer.message.round)
        if transfer.on_end is not None:
            transfer.on_end(False)

    def _end(self, transfer: Transfer, sent: int) -> None:
        transfer.alive, src = False, transfer.src
        src.transfers.pop(transfer, None)
        transfer.dst.transfers.pop(transfer, None)
        self.total.up += sent
        self._traffic[src.id].up += sent
        for hop in transfer.route.links:
            self._links[hop] += sent


def _link(bits_per_s: int) -> Link:
    return Link(bits_per_s / MICRO) if bits_per_s else Link()
