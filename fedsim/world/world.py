"""The simulated world: a clock, nodes and the network between them."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from functools import cache, cached_property
from itertools import starmap
from typing import Literal, NamedTuple

import numpy as np

from fedsim import parts, rng
from fedsim.errors import BadValue, FedsimError, RunError, StalledError
from fedsim.spec.experiment import Draw, Experiment
from fedsim.spec.world import Network as Settings
from fedsim.spec.world import Server
from fedsim.spec.yamlfile import Steps
from fedsim.world.churn import always
from fedsim.world.clock import MICRO, Clock, Process, micros
from fedsim.world.devices import Kit, kits
from fedsim.world.graph import Graph, members
from fedsim.world.homes import Way, homes
from fedsim.world.links import MANY, packed, pairs
from fedsim.world.log import EventLog
from fedsim.world.net.matrix import Matrix, note, read
from fedsim.world.net.network import Access, Network
from fedsim.world.node import Node

MEGA = 1_000_000

NEVER = 2**62
"""Microseconds to where no way leads."""


class Usage(NamedTuple):
    """What a node has done with its time and energy.

    Args:
        busy_us: it computed.
        idle_us: it was online and did not compute: it sent, received, or waited.
        offline_us: it was not online.
        wasted_us: that part of ``busy_us`` whose result was broken off, or reached a server that did not use it.
        joules: the energy of its work and its bytes, or None where none is counted.
    """

    busy_us: int
    idle_us: int
    offline_us: int
    wasted_us: int
    joules: float | None


@dataclass
class World:
    """Everything that the event plane consists of.

    Args:
        clock: simulated time.
        log: the event log.
        network: the network.
        nodes: all nodes by id; clients or peers first, the servers (if there are any) last.
        kits: what each client or peer has.
        notes: what whoever reads its times must know, one sentence each.
        homes: the server of each client, where there are several.
    """

    clock: Clock
    log: EventLog
    network: Network
    nodes: list[Node]
    kits: list[Kit] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    homes: list[int] = field(default_factory=list)

    @cached_property
    def servers(self) -> list[Node]:
        """The servers, which hold no data."""
        return [node for node in self.nodes if node.role == "server"]

    @property
    def server(self) -> Node | None:
        """The server, or None in a world of peers; of several the last one."""
        return self.nodes[-1] if self.nodes[-1].role == "server" else None

    @cached_property
    def members(self) -> list[Node]:
        """The clients or peers: the nodes that hold data."""
        return [node for node in self.nodes if node.role != "server"]

    def equip_server(self) -> None:
        """Let the server compute, as fast and for as much energy as the clients do on average."""
        if self.server is None:
            return
        pace = round(sum(kit.ps_per_sample for kit in self.kits) / len(self.kits))
        joules = [kit.joules_per_sample for kit in self.kits if kit.joules_per_sample is not None]
        self.server.ps_per_sample = pace
        self.kits.append(Kit(pace, math.fsum(joules) / len(joules) if joules else None))

    def totals(self) -> dict[str, int]:
        """Return bytes and work summed over all nodes."""
        total, effort = self.network.total, self.network.effort
        return {
            "bytes_up": total.up,
            "bytes_down": total.down,
            "bytes_lost": total.lost,
            "work": effort.work,
            "wasted": effort.wasted,
        }

    def usage(self, node: Node) -> Usage:
        """Return what a node has done with its time until now, and the energy that it took."""
        online_us, traffic = node.online_us(), self.network.traffic_of(node.id)
        kit = self.kits[node.id] if node.id < len(self.kits) else Kit(0)
        return Usage(
            node.busy_us,
            online_us - node.busy_us,
            self.clock.now - online_us,
            node.wasted_us,
            kit.joules(node.work, traffic.up + traffic.down),
        )

    def spent(self) -> dict[str, float | None]:
        """Return time in seconds and energy in joules, summed over the clients or peers, and a server that computes."""
        usages = [self.usage(node) for node in self.nodes if node.role != "server" or node.work]
        joules = [one.joules for one in usages if one.joules is not None]
        return {
            "busy_s": sum(one.busy_us for one in usages) / MICRO,
            "idle_s": sum(one.idle_us for one in usages) / MICRO,
            "offline_s": sum(one.offline_us for one in usages) / MICRO,
            "wasted_s": sum(one.wasted_us for one in usages) / MICRO,
            "joules": math.fsum(joules) if joules else None,
        }


def build(experiment: Experiment, graph: Graph, servers: int) -> World:
    """Make the world that an experiment describes, at t=0 and before anything has happened.

    Args:
        experiment: the experiment.
        graph: nodes 0 to n-1, and routers after them; edges may have ``latency_ms`` and ``mbps``, which win over the
            experiment's.
        servers: how many servers there are, which are the last ones of those nodes.

    Returns:
        The world; :func:`start` sets churn and faults going.
    """
    clock = Clock()
    log = EventLog(clock)
    seed, ids = experiment.seed, members(graph)
    size = len(ids)
    clock.expect(size)
    settings = experiment.network
    with experiment.blame("network"):
        matrix, notes = None, []
        if settings.latency_matrix and settings.latency_unit:
            if any("latency_ms" in edge for *_, edge in graph.edges(data=True)):
                rule = f"the topology {experiment.topology.name} gives its links latency_ms as well"
                raise BadValue("latency_matrix", settings.latency_matrix, rule, "take one of the two")
            form = settings.latency_unit, settings.latency_in, settings.latency_missing
            matrix = read(settings.latency_matrix, *form)
            notes = [note(settings.latency_matrix, settings.latency_unit, matrix)]
        for number, key, one in _attached(settings, servers):
            _place(matrix, size - servers + number, key, one.site)
    wired = _wire(experiment, graph, matrix)
    with experiment.blame("devices"):
        owned = kits(experiment.devices, size - servers, seed)
    with experiment.blame("network"):
        access = _access(experiment, owned, ids)
    network = Network(
        clock,
        log,
        wired,
        access,
        settings.sharing,
        settings.header_bytes,
        matrix.delay_us if matrix else _pairs(experiment, wired) if settings.overlay else None,
        settings.overlay,
    )
    pace = [kit.ps_per_sample for kit in owned] + [0] * servers
    roles = ["client" if servers else "peer"] * (size - servers) + ["server"] * servers
    nodes = [Node(id, roles[id], clock, log, network, pace[id]) for id in ids]
    with experiment.blame("network"):
        own = _homes(experiment, network, list(range(size - servers, size))) if servers > 1 else []
    return World(clock, log, network, nodes, owned, notes, own)


def _attached(settings: Settings, servers: int) -> list[tuple[int, str, Server]]:
    """Return how servers are attached, each with its number and its key in the block network."""
    listed = not isinstance(settings.servers, int)
    found = settings.attached[:servers]
    return [(at, f"servers.{at}" if listed else "server", one) for at, one in enumerate(found)]


def _place(matrix: Matrix | None, server: int, key: str, site: int | Literal["best"] | None) -> None:
    """Let a server stand at its site."""
    if site is None:
        return
    if matrix is None:
        rule = "names a row of network.latency_matrix, and there is none"
        raise BadValue(f"{key}.site", site, rule, "give latency_matrix")
    matrix.place(server, site, f"{key}.site")


def _homes(experiment: Experiment, network: Network, servers: list[int]) -> list[int]:
    """Return the server of each client."""

    def way(server: int, client: int) -> Way:
        route = network.route(server, client)
        return (NEVER, 0) if route is None else (route.latency_us, len(route.links))

    return homes(experiment.network.assign, servers[0], servers, way, experiment.seed)


def start(world: World, experiment: Experiment) -> None:
    """Set churn and faults going.

    Raises:
        ConfigError: if one of them refuses its parameters.
    """
    seed = experiment.seed
    with experiment.blame("churn"):
        part, members = experiment.find("churn", experiment.churn.name), world.members
        live = parts.bind(part, experiment.churn.params, ("node", "rng", "n"))
        draws = "rng" in parts.parameters(part)
        for node in members if part is not always else ():  # which does nothing, whatever the number of nodes
            own = rng.stream(seed, "churn", node.id) if draws else None
            process = live(node=node, rng=own, n=len(members))
            world.clock.process(_told(world.clock, experiment, ("churn",), process, node.id))
    for index, fault in enumerate(experiment.faults):
        with experiment.blame("faults", index):
            part = experiment.find("faults", fault.name)
            drawn = rng.stream(seed, "faults", round=index)
            made = parts.call(part, fault.params, {"world": world, "rng": drawn})
            process = made if isinstance(made, Generator) else made.process(world, drawn)
            world.clock.process(_told(world.clock, experiment, ("faults", index), process))
    try:  # who is offline at the start must be so before anybody looks
        world.clock.advance(lambda: world.clock.peek() > 0)
    except StalledError as error:
        raise experiment.problem(("churn",), BadValue("name", experiment.churn.name, error.reason)) from error


def _told(
    clock: Clock, experiment: Experiment, block: Steps, process: Process, node: int | None = None
) -> Process:
    """Go through a process of churn or a fault; one that breaks ends check with one line, and a run with its scene."""
    try:
        yield from process
    except (FedsimError, KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:
        broken = experiment.broken(block, error) if clock.now == 0 else None
        name = block[0] if isinstance(block[0], str) else ""
        reason = f"{type(error).__name__}: {error}"
        raise broken or RunError(reason, node, None, clock.now_s, name) from error


def _pairs(experiment: Experiment, wired: Graph) -> Callable[[int, int], int]:
    """Return the latency between any two nodes: their edge's, or one drawn for the pair."""

    def delay_us(a: int, b: int) -> int:
        if wired.has_edge(a, b):
            return int(wired.edges[a, b]["latency_us"])
        stream = rng.stream(experiment.seed, "pair latency", min(a, b), max(a, b))
        return micros(float(experiment.network.latency_ms.sample(stream, 1)[0]) / 1000)

    return delay_us


def _wire(experiment: Experiment, graph: Graph, matrix: Matrix | None) -> Graph:
    """Copy the graph in a canonical order, with integer latencies and bandwidths on its edges."""
    settings, seed, links = experiment.network, experiment.seed, pairs(graph)
    latency_ms = settings.latency_ms.sample(rng.stream(seed, "latency"), len(links))
    mbps = _mbps(settings.edge_mbps, rng.stream(seed, "edge bandwidth"), len(links))
    if len(links) > MANY and not any(own for *_, own in graph.edges(data=True)):
        delays = latency_ms / 1000 * MICRO if matrix is None else starmap(matrix.delay_us, links.tolist())
        facts = {
            "latency_us": np.rint(np.fromiter(delays, float, len(links))),
            "bits_per_s": np.maximum(np.rint(mbps * MEGA), mbps > 0),
        }
        wired = packed(len(graph), links, facts)
    else:
        wired = Graph()
        wired.add_nodes_from(sorted(graph))
        for (a, b), delay, rate in zip(links.tolist(), latency_ms, mbps, strict=True):
            own = graph.edges[a, b]
            wired.add_edge(
                a,
                b,
                latency_us=matrix.delay_us(a, b) if matrix else micros(own.get("latency_ms", delay) / 1000),
                bits_per_s=_bps(own.get("mbps", rate)),
            )
    wired.graph.update(graph.graph)
    return wired


def _access(experiment: Experiment, owned: list[Kit], ids: list[int]) -> dict[int, Access]:
    """Attach clients or peers with what is drawn for them or traced, and servers with what they are given."""
    settings, seed, members = experiment.network, experiment.seed, len(owned)
    delay = settings.node_latency_ms.sample(rng.stream(seed, "node latency"), members)
    up, down = _bandwidth(experiment, owned, "up_mbps"), _bandwidth(experiment, owned, "down_mbps")
    attached = cache(Access)  # those who are attached alike share what says so
    access = {id: attached(micros(delay[id] / 1000), _bps(up[id]), _bps(down[id])) for id in ids[:members]}
    for number, _, own in _attached(settings, len(ids) - members):
        access[members + number] = Access(
            micros(own.latency_ms / 1000), _bps(own.up_mbps or 0), _bps(own.down_mbps or 0)
        )
    return access


def _bandwidth(experiment: Experiment, owned: list[Kit], key: str) -> np.ndarray:
    """Return what the network gives the nodes or what their trace does, but not both; 0 stands for unlimited."""
    given = getattr(experiment.network, key)
    traced = np.array([getattr(kit, key) or 0.0 for kit in owned])
    if given is None:
        return traced
    if traced.any():
        rule = f"the devices' trace {experiment.devices.trace} has {key} as well"
        hint = f"leave out network.{key}, or that column of the trace"
        raise BadValue(key, given.model_dump(), rule, hint)
    return _mbps(given, rng.stream(experiment.seed, key.replace("_mbps", " bandwidth")), len(owned))


def _mbps(draw: Draw | None, generator: np.random.Generator, size: int) -> np.ndarray:
    """Draw bandwidths; 0 stands for unlimited."""
    return np.zeros(size) if draw is None else np.maximum(draw.sample(generator, size), 1 / MEGA)


def _bps(mbps: float) -> int:
    """Return bits per second; what is above 0 is at least 1, because 0 stands for unlimited."""
    return max(round(mbps * MEGA), int(mbps > 0))
