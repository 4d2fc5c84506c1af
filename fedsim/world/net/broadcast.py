"""One message to several nodes as one object, for as long as all its parts fare alike.

Most messages of a decentralized method are broadcasts: a node sends the same model to all its neighbours, and all parts
of it leave at the same rate and arrive together. Keeping them together saves most of the work; it changes nothing else,
but for the order of some transfers that end in the same microsecond.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from operator import attrgetter
from typing import Protocol

from fedsim.world.clock import Clock
from fedsim.world.log import EventLog, pack_pair
from fedsim.world.net.flows import Bundle, Link, Path, Sharing
from fedsim.world.net.messages import Endpoint, Message, Route, Traffic, Transfer


class Carrier(Protocol):
    """What broadcasts need of the network that they go over; see :class:`fedsim.world.net.network.Network`."""

    clock: Clock
    log: EventLog
    flows: Sharing
    sharing: str
    header_bytes: int
    total: Traffic

    def route(self, src: int, dst: int) -> Route | None:
        """Return the way between two nodes, or None if there is none."""

    def count(self, node: int, messages: int) -> tuple[int, int]:
        """Count messages that a node is about to send, and return the numbers before theirs."""

    def arrive(self, transfer: Transfer) -> None:
        """Deliver a message that goes its own way."""

    def book(self, src: int, dst: int, route: Route, size: int) -> None:
        """Book delivered bytes."""


class Wave:
    """Those receivers of a fan that a broadcast reaches at the same time.

    Args:
        latency_us: how long the way takes.
        places: which of the fan's receivers they are.
        ends: those, each with its place and, packed for the log, with the sender.
    """

    __slots__ = ("ends", "latency_us", "places", "unbooked")

    def __init__(self, latency_us: int, places: list[int], ends: list[tuple[int, Endpoint, bytes]]) -> None:
        self.latency_us, self.places, self.ends = latency_us, places, ends
        self.unbooked = 0  # bytes delivered to each and not booked yet


class Fan:
    """The ways from a node to several others, worked out once because they are used again and again.

    Args:
        src: the sender.
        nodes: the receivers.
        routes: the way to each.
    """

    __slots__ = ("alive", "nodes", "outgoing", "path", "routes", "src", "waves")

    def __init__(self, src: Endpoint, nodes: tuple[Endpoint, ...], routes: Sequence[Route]) -> None:
        self.src, self.nodes, self.routes = src, nodes, routes
        up = routes[0].path.up
        others = [link for route in routes for link in route.path.links if link is not up]
        self.path = Path(up, others, Link())
        waves: dict[int, list[int]] = {}
        for place, route in enumerate(routes):
            waves.setdefault(route.latency_us, []).append(place)
        ends = [(place, node, pack_pair(node.id, src.id)) for place, node in enumerate(nodes)]
        self.waves = [Wave(us, waves[us], [ends[place] for place in waves[us]]) for us in sorted(waves)]
        self.outgoing = [pack_pair(src.id, node.id) for node in nodes]
        self.alive: dict[Broadcast, None] = {}  # those under way

    def suits(self, shared: bool) -> bool:
        """Whether broadcasts over it can be bundles.

        Args:
            shared: whether transfers share links; else each has its narrowest one for itself.
        """
        if shared:
            links = self.path.links
            return len(dict.fromkeys(links)) == len(links) and (not links or links[0] is self.path.up)
        rates = {min((link.capacity for link in route.path.links), default=0.0) for route in self.routes}
        return len(rates) == 1


class Broadcast(Bundle):
    """A message to all nodes of a fan.

    Args:
        fan: the ways.
        message: what is sent.
        size_bytes: its size on the wire, for each receiver.
        number: how many messages the sender has sent before.
        serial: of its first part; see :class:`Bundle`.
    """

    __slots__ = ("booked", "fan", "is_sent", "message", "number", "parts", "reached", "size_bytes", "wave")

    def __init__(self, fan: Fan, message: Message, size_bytes: int, number: int, serial: int) -> None:
        super().__init__(size_bytes * 8, fan.path, serial, len(fan.nodes))
        self.fan, self.message, self.size_bytes, self.number = fan, message, size_bytes, number
        self.is_sent = False
        self.parts: list[Transfer] | None = None
        self.wave: Wave | None = None  # the latest to arrive
        self.reached = 0  # how many of that wave have the message
        self.booked = 0  # how many of them have it booked, because somebody asked while it arrived

    def part(self, place: int) -> Transfer:
        """Return one of its messages as a transfer of its own, as far as it has come."""
        fan, number, serial = self.fan, self.number + place + 1, self.serial + place
        dst, route = fan.nodes[place], fan.routes[place]
        part = Transfer(self.message, fan.src, dst, route, self.size_bytes, None, number, 0, serial)
        part.left, part.since_us, part.rate = self.left, self.since_us, self.rate
        part.wakes, part.is_sent = self.wakes, self.is_sent
        return part

    def places_gone(self) -> set[int]:
        """Return the places of the receivers that have the message."""
        if self.wave is None:
            return set()
        before = self.fan.waves[: self.fan.waves.index(self.wave)]
        return {place for wave in before for place in wave.places} | set(self.wave.places[: self.reached])


class Broadcasts:
    """Carries broadcasts over a network.

    Args:
        network: sends what does not go together, and counts everything.
    """

    def __init__(self, network: Carrier) -> None:
        self._network = network
        self._latest: dict[Endpoint, tuple[tuple[Endpoint, ...], Fan | None]] = {}
        self._to: defaultdict[Endpoint, dict[Fan, None]] = defaultdict(dict)
        self._unbooked: dict[Wave, Fan] = {}
        self._arriving: tuple[Broadcast, Wave] | None = None

    def send(self, src: Endpoint, nodes: tuple[Endpoint, ...], message: Message) -> bool:
        """Send a message to several nodes, if all can be reached and the messages go together.

        Returns:
            Whether they do; if not, nothing has been sent.
        """
        network, fan = self._network, self._fan(src, nodes)
        if fan is None or not all(map(_online, nodes)):
            return False
        size = message.size_bytes + network.header_bytes
        broadcast = Broadcast(fan, message, size, *network.count(src.id, len(nodes)))
        network.log.add_all("send", fan.outgoing, size, message.round)
        src.transfers[broadcast] = fan.alive[broadcast] = None
        if fan.path.links:
            network.flows.start(broadcast)
        else:
            self.sent(broadcast)
        return True

    def _fan(self, src: Endpoint, nodes: tuple[Endpoint, ...]) -> Fan | None:
        """Return the ways to some nodes; the last ones of a sender are kept."""
        latest = self._latest.get(src)
        if latest is None or latest[0] != nodes:
            if latest is not None and latest[1] is not None:
                self._forget(latest[1])
            latest = self._latest[src] = nodes, self._make_fan(src, nodes)
        return latest[1]

    def _make_fan(self, src: Endpoint, nodes: tuple[Endpoint, ...]) -> Fan | None:
        network = self._network
        routes = [route for node in nodes if (route := network.route(src.id, node.id)) is not None]
        if not network.flows.bundles or not len({src, *nodes}) == 1 + len(routes) > 1:
            return None
        fan = Fan(src, nodes, routes)
        if not fan.suits(network.sharing != "none"):
            return None
        for node in nodes:
            self._to[node][fan] = None
        return fan

    def _forget(self, fan: Fan) -> None:
        for broadcast in list(fan.alive):
            self.split(broadcast)
        for wave in fan.waves:
            if wave in self._unbooked:
                self._book(wave)
        for node in fan.nodes:
            del self._to[node][fan]

    def reaches(self, node: Endpoint) -> bool:
        """Whether a broadcast is on its way to a node."""
        return any(fan.alive for fan in self._to.get(node, ()))

    def sent(self, broadcast: Broadcast) -> None:
        """The last bit of all parts has left the sender."""
        broadcast.is_sent = True
        for wave in broadcast.fan.waves:
            self._network.clock.after(wave.latency_us, self._arrive, broadcast, wave)

    def _arrive(self, broadcast: Broadcast, wave: Wave) -> None:
        network, fan, message, size = self._network, broadcast.fan, broadcast.message, broadcast.size_bytes
        total = network.total
        write = network.log.writer("deliver", size, message.round)
        broadcast.wave, broadcast.reached, broadcast.booked = wave, 0, 0
        self._arriving = broadcast, wave
        for place, node, pair in wave.ends:
            if broadcast.parts is not None:
                network.arrive(broadcast.parts[place])
                continue
            broadcast.reached += 1
            total.up += size
            total.down += size
            write(pair)
            node.deliver(message)
            if node.on_message is not None:  # it may have broadcast something itself
                write = network.log.writer("deliver", size, message.round)
        self._arriving = None
        if broadcast.parts is None and not broadcast.booked:
            wave.unbooked += size
            self._unbooked[wave] = fan
        else:
            self._book_reached(broadcast, wave)
        if wave is fan.waves[-1] and broadcast in fan.alive:
            del fan.src.transfers[broadcast], fan.alive[broadcast]

    def book(self) -> None:
        """Book the bytes that have been delivered since the last time; doing it each time would cost more."""
        for wave in list(self._unbooked):
            self._book(wave)
        if self._arriving is not None:
            self._book_reached(*self._arriving)

    def _book(self, wave: Wave) -> None:
        fan = self._unbooked.pop(wave)
        for place in wave.places:
            self._network.book(fan.src.id, fan.nodes[place].id, fan.routes[place], wave.unbooked)
        wave.unbooked = 0

    def _book_reached(self, broadcast: Broadcast, wave: Wave) -> None:
        """Book what a wave has delivered that has not delivered all."""
        fan = broadcast.fan
        for place in wave.places[broadcast.booked : broadcast.reached]:
            self._network.book(fan.src.id, fan.nodes[place].id, fan.routes[place], broadcast.size_bytes)
        broadcast.booked = broadcast.reached

    def split(self, broadcast: Broadcast) -> None:
        """Let the parts of a broadcast go their own ways."""
        fan, gone = broadcast.fan, broadcast.places_gone()
        broadcast.parts = [broadcast.part(place) for place in range(broadcast.size)]
        for place, part in enumerate(broadcast.parts):
            part.alive = place not in gone
            if part.alive:
                fan.src.transfers[part] = part.dst.transfers[part] = None
        del fan.src.transfers[broadcast], fan.alive[broadcast]
        if not broadcast.is_sent:
            self._network.flows.replace(broadcast, broadcast.parts)

    def split_at(self, node: Endpoint) -> None:
        """Split all broadcasts that a node sends or receives."""
        sends = [flow for flow in node.transfers if isinstance(flow, Broadcast)]
        for broadcast in sends + [flow for fan in self._to.get(node, ()) for flow in fan.alive]:
            self.split(broadcast)


_online = attrgetter("online")
