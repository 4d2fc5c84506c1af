"""Random worlds as experiments, and a witness of what happens in them."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import networkx as nx
from hypothesis import strategies as st

from fedsim.errors import StalledError
from fedsim.running.build import prepare
from fedsim.running.observer import Observer
from fedsim.running.run import drive
from fedsim.spec.experiment import load
from fedsim.world.net.network import Transfer
from fedsim.world.world import World

NEAR = 1e-6
"""How far rates may be off, relatively, because they are floats."""

PEERS = "dpsgd"


def write_files(folder: Path) -> None:
    """Write the files that experiments name: an asymmetric matrix with a gap, sessions, and devices."""
    (folder / "matrix.csv").write_text("0,20,35\n90,0,-1\n35,60,0\n")
    (folder / "sessions.csv").write_text(
        "# period_s: 4\n# nodes: 3\nnode,start_s,end_s\n0,0,4\n1,0.5,2.5\n1,3,4\n2,0,1.25\n2,2,3.75\n"
    )
    (folder / "devices.csv").write_text("node,seconds_per_sample\n0,0.004\n1,0.03\n2,0.0125\n")


def listed(n: int, *, nodes: list[int], links: list[list[Any]]) -> nx.Graph:
    """A topology as a file would list it: nodes in any order, links as [a, b, latency_ms, mbps]."""
    graph = nx.Graph()
    graph.add_nodes_from(nodes)
    for a, b, latency_ms, mbps in links:
        own = {"latency_ms": latency_ms, "mbps": mbps}
        graph.add_edge(a, b, **{key: value for key, value in own.items() if value is not None})
    assert len(graph) == n
    return graph


def rate(low: float, high: float) -> st.SearchStrategy[Any]:
    """A bandwidth: none, a number that often is the same, or a distribution."""
    spread = {"distribution": "uniform", "low": low, "high": high}
    wide = {"distribution": "lognormal", "median": low, "sigma": 1}
    return st.sampled_from([None, low, high, spread, wide])


LATENCIES = st.sampled_from(
    [
        0,
        40,
        {"distribution": "uniform", "low": 5, "high": 80},
        {"distribution": "exponential", "mean": 30},
        {"distribution": "lognormal", "median": 20, "sigma": 0.7},
    ]
)


@st.composite
def topology(draw: st.DrawFn, size: int) -> dict[str, Any]:
    """A random tree and some more links; some have a latency or a bandwidth of their own."""
    links = {(draw(st.integers(0, b - 1)), b) for b in range(1, size)}
    more = st.sets(st.tuples(st.integers(0, size - 1), st.integers(0, size - 1)), max_size=6)
    links |= {(a, b) for a, b in draw(more) if a < b}
    own = st.tuples(st.sampled_from([None, None, 0, 7, 55.5]), st.sampled_from([None, None, 0.002, 0.02]))
    return {
        "name": "worlds:listed",
        "nodes": list(range(size)),
        "links": [[a, b, *draw(own)] for a, b in sorted(links)],
    }


@st.composite
def network(draw: st.DrawFn, folder: Path) -> dict[str, Any]:
    """Every kind of latency and bandwidth, slow enough for a message to take a while."""
    latency = st.one_of(
        LATENCIES.map(lambda given: {"latency_ms": given}),
        st.sampled_from(["one_way", "round_trip"]).map(
            lambda unit: {"latency_matrix": str(folder / "matrix.csv"), "latency_unit": unit}
        ),
    )
    return {
        **draw(latency),
        "node_latency_ms": draw(LATENCIES),
        "overlay": draw(st.booleans()),
        "up_mbps": draw(rate(0.002, 0.01)),
        "down_mbps": draw(rate(0.004, 0.02)),
        "edge_mbps": draw(rate(0.003, 0.05)),
        "sharing": draw(st.sampled_from(["max-min", "max-min", "greedy", "none"])),
        "header_bytes": draw(st.sampled_from([0, 64, 333])),
        "server": draw(st.sampled_from([{}, {"latency_ms": 4, "up_mbps": 0.01, "down_mbps": 0.006}])),
        "detect_s": draw(st.sampled_from([0, 0.3])),
    }


def devices(folder: Path) -> st.SearchStrategy[dict[str, Any]]:
    """Every kind of device."""
    quick, slow = {"share": 0.5, "seconds_per_sample": 0.002}, {"share": 0.5, "seconds_per_sample": 0.02}
    kinds = [
        {"seconds_per_sample": 0.01},
        {"seconds_per_sample": {"distribution": "lognormal", "median": 0.01, "sigma": 0.8}},
        {"classes": [quick, slow]},
        {"trace": str(folder / "devices.csv")},
    ]
    stragglers = st.sampled_from([{}, {"stragglers": {"share": 0.3, "factor": 3}}])
    return st.tuples(st.sampled_from(kinds), stragglers).map(lambda pair: {**pair[0], **pair[1]})


@st.composite
def churn(draw: st.DrawFn, folder: Path) -> Any:
    """Every kind of churn, quick enough to matter within a few seconds."""
    means = {
        "online_s": draw(st.sampled_from([0.4, 2.0, 9.0])),
        "offline_s": draw(st.sampled_from([0.1, 1.0])),
    }
    return draw(
        st.sampled_from(
            [
                "always",
                {"name": "exponential", **means},
                {"name": "weibull", "shape": 0.6, **means},
                {"name": "diurnal", "low": 0.4, "high": 0.9, "period_s": 5, "step_s": 0.25},
                {"name": "trace", "path": str(folder / "sessions.csv")},
                {"name": "arrive", "count": 2, "at_s": 0.5, "every_s": 1},
                {"name": "depart", "count": 1, "at_s": 0.7},
            ]
        )
    )


@st.composite
def fault(draw: st.DrawFn, members: int, server: bool) -> dict[str, Any]:
    """Any fault, with any way to say when and whom."""
    at_s, length_s = draw(st.integers(0, 40)) / 16, draw(st.integers(1, 32)) / 16
    again = draw(st.sampled_from([{}, {"every_s": 1.0, "times": 3}]))
    who = draw(st.sampled_from([{"count": 1}, {"fraction": 0.5}, {"nodes": [0, members - 1]}]))
    strike, window = {"at_s": at_s, **again}, {"at_s": at_s, "for_s": length_s, **again}
    kinds = {
        "crash": {**strike, **who},
        "crash_recover": {"down_s": length_s, **strike, **who},
        "flaky": {"mtbf_s": 1.0, "mttr_s": length_s, **who},
        "slow_down": {"factor": 2.5, **window, **who},
        "corrupt": {"kind": "sign_flip", **window, **who},
        "message_loss": {"probability": 0.3, **window, **draw(st.sampled_from([{}, who]))},
        "message_delay": {"seconds": 0.2, **window, **who},
        "message_duplication": {"probability": 0.4, **window},
        "partition": {**draw(st.sampled_from([{"fraction": 0.5}, {"groups": [[0], [1, 2]]}])), **window},
        "link_down": {"count": 1, **window},
    }
    if server:
        kinds["server_crash"] = {"down_s": length_s, **strike}
    name = draw(st.sampled_from(sorted(kinds)))
    return {"name": name, **kinds[name]}


@st.composite
def experiments(draw: st.DrawFn, folder: Path, calm: bool = False) -> dict[str, Any]:
    """A whole experiment with 3 to 6 clients or peers; in a calm one, nothing fails and nobody leaves."""
    name = draw(st.sampled_from([PEERS, PEERS, "fedavg", "fedamd"]))
    members, server = draw(st.integers(3, 6)), name != PEERS
    own = {PEERS: {}, "fedavg": {"fraction_evaluate": 0.0}, "fedamd": {"participants": 2, "p": 0.5}}[name]
    faults = st.lists(fault(members, server), max_size=3)
    listed, settings = draw(topology(members + server)), draw(network(folder))
    if "latency_matrix" in settings:  # it gives all latencies, or the links do
        listed["links"] = [[a, b, None, mbps] for a, b, _, mbps in listed["links"]]
    return {
        "seed": draw(st.integers(0, 999)),
        "data": {"name": "quadratic", "clients": members},
        "model": "linear",
        "strategy": {
            "name": name,
            "local": {"steps": draw(st.integers(1, 3)), "batch_size": 5, "lr": 0.01},
            "timeout_s": None if calm else draw(st.sampled_from([1.5, 6.0])),
            **own,
        },
        "topology": listed,
        "network": settings,
        "devices": draw(devices(folder)),
        "churn": "always" if calm else draw(churn(folder)),
        "faults": [] if calm else draw(faults),
        "stop": {"rounds": 2} if calm else {"rounds": 4, "sim_time_s": 8},
        "record": {"report": False},
    }


class NoRecord:
    """Leaves nothing behind, whatever is to be recorded."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *row, **columns: None


def play(given: dict[str, Any], dry: bool = True, witness: bool = False) -> tuple[World, Any]:
    """Run an experiment without leaving a folder, and return its world and perhaps a witness of it.

    A run may end early because nobody can go on; whatever holds at all times holds then, too.
    """
    experiment = load(given)
    setup = prepare(experiment, dry=dry)
    seen = Witness(setup.world, experiment.network.sharing) if witness else None
    observer = Observer(experiment, setup.learner, setup.world, NoRecord())
    may_stall = given["faults"] or given["churn"] != "always"
    with suppress(StalledError) if may_stall else nullcontext():
        drive(setup, observer)
    return setup.world, seen


def event_hash(given: dict[str, Any], dry: bool = True) -> str:
    """Return what identifies the timing of a run."""
    return play(given, dry)[0].log.hexdigest()


class Witness:
    """Writes a world's events down, and looks at all transfers after each moment in which something happened.

    It works capacities out from the experiment's graph and attachments, not from the sharing's own books.

    Args:
        world: what to look at, before it runs.
        sharing: how bandwidth is shared there.
    """

    def __init__(self, world: World, sharing: str) -> None:
        self.world, self.check = world, {"max-min": fair, "greedy": greedy, "none": alone}[sharing]
        self.events = list(world.log.early)
        self.looks = 0
        self.sent_bits: dict[Transfer, float] = {}
        self.rates: dict[Transfer, float] = {}
        world.log.listen(lambda *event: self.events.append(event))
        self._step = world.clock.step
        world.clock.step = self.step  # type: ignore[method-assign]

    @property
    def kinds(self) -> Counter[str]:
        """How often each kind of event has happened."""
        return Counter(event[1] for event in self.events)

    def step(self) -> None:
        """Do one step of the clock; before time passes, look."""
        now, due = self.world.clock.now, self.world.clock.peek()
        assert due >= now
        if due > now:
            self.look(0 if due == math.inf else due - now)
        self._step()

    def look(self, wait_us: float) -> None:
        """Check the rates that hold for so many microseconds, and add up what they send."""
        sending = [
            transfer
            for node in self.world.nodes
            for transfer in self.world.network.transfers(node)
            if transfer.src is node and not transfer.is_sent
        ]
        for transfer in self.rates.keys() - set(sending):
            self.ended(transfer)
        self.rates = {transfer: transfer.rate for transfer in sending}
        if not sending:
            return
        self.looks += 1
        self.check({transfer: (transfer.rate, self.places(transfer)) for transfer in sending})
        for transfer in sending:
            done = self.sent_bits.get(transfer, 0.0)
            assert done < transfer.size_bytes * 8 + NEAR, "is still sending what has been sent"
            self.sent_bits[transfer] = done + transfer.rate * wait_us

    def ended(self, transfer: Transfer) -> None:
        """What has been sent is the integral of the rate, but for the last microsecond, which is rounded up."""
        done, bits = self.sent_bits.pop(transfer), transfer.size_bytes * 8
        assert done < bits + self.rates[transfer] + NEAR * bits
        if transfer.is_sent:
            assert done > bits - NEAR * bits

    def places(self, transfer: Transfer) -> dict[Any, float]:
        """Return the limited places that a transfer crosses, with their capacities in bits per microsecond."""
        network, src, dst = self.world.network, transfer.src.id, transfer.dst.id
        found = {("up", src): network.access[src].up_bps, ("down", dst): network.access[dst].down_bps}
        at = src
        for a, b in transfer.route.links:
            there = b if a == at else a
            if network.graph.has_edge(at, there):
                found["edge", at, there] = network.graph.edges[at, there]["bits_per_s"]
            at = there
        assert at == dst
        return {place: bits_per_s / 1e6 for place, bits_per_s in found.items() if bits_per_s}


Crossing = dict[Transfer, tuple[float, dict[Any, float]]]
"""The rate of every transfer and the capacities of the places that it crosses."""


def by_place(crossing: Crossing) -> dict[Any, list[float]]:
    """Return the rates at each place, and check that none is negative and no capacity is exceeded."""
    rates = defaultdict(list)
    capacity = {}
    for rate, places in crossing.values():
        assert rate >= 0
        capacity |= places
        for place in places:
            rates[place].append(rate)
    for place, each in rates.items():
        assert sum(each) <= capacity[place] * (1 + NEAR), f"{place} carries {each} of {capacity[place]}"
    return rates


def fair(crossing: Crossing) -> None:
    """Max-min: every transfer crosses a place that is full and where nobody is faster."""
    rates = by_place(crossing)
    for transfer, (rate, places) in crossing.items():
        held_up = [
            place
            for place, capacity in places.items()
            if sum(rates[place]) >= capacity * (1 - NEAR) and rate >= max(rates[place]) * (1 - NEAR)
        ]
        assert held_up, f"{transfer.src} to {transfer.dst} could be faster than {rate}: {places}"


def greedy(crossing: Crossing) -> None:
    """Greedy: links are not shared out but limit each transfer; nobody waits while both ends have some to spare."""
    own = {t: {p: c for p, c in places.items() if p[0] != "edge"} for t, (_, places) in crossing.items()}
    rates = by_place({transfer: (rate, own[transfer]) for transfer, (rate, _) in crossing.items()})
    for transfer, (rate, places) in crossing.items():
        assert rate <= min(places.values()) * (1 + NEAR)
        full = [
            place for place, capacity in own[transfer].items() if sum(rates[place]) >= capacity * (1 - NEAR)
        ]
        assert rate > 0 or full, f"{transfer.src} to {transfer.dst} waits for nothing"


def alone(crossing: Crossing) -> None:
    """None: every transfer has the narrowest place for itself."""
    for rate, places in crossing.values():
        assert rate == min(places.values())


def check_books(world: World, events: list[tuple[int, str, int, int, int, int]]) -> None:
    """Check that every byte and all work in the events is counted once, and that who is offline does nothing."""
    times = [event[0] for event in events]
    assert times == sorted(times)
    assert times[-1:] <= [world.clock.now]
    _check_presence(world, events)
    up, down, lost = Counter[int](), Counter[int](), Counter[int]()
    open_sends: Counter[tuple[int, int, int]] = Counter()
    work = wasted = 0
    for _, kind, node, peer, size, round in events:
        if kind == "send":
            open_sends[node, peer, round] += 1
        elif kind == "deliver":
            open_sends[peer, node, round] -= 1
            up[peer], down[node] = up[peer] + size, down[node] + size
        elif kind == "lost":
            open_sends[node, peer, round] -= 1
            up[node], lost[node] = up[node] + size, lost[node] + size
        elif kind in ("done", "aborted"):
            work, wasted = work + size, wasted + size * (kind == "aborted")
    under_way = [t for node in world.nodes for t in world.network.transfers(node) if t.src is node]
    assert +open_sends == Counter((t.src.id, t.dst.id, t.message.round) for t in under_way)
    assert not -open_sends
    for id, traffic in world.network.traffic.items():
        assert (traffic.up, traffic.down, traffic.lost) == (up[id], down[id], lost[id])
    assert up.total() == down.total() + lost.total()
    assert sum(node.work for node in world.nodes) == world.totals()["work"] == work
    assert sum(node.wasted for node in world.nodes) == world.totals()["wasted"]
    assert wasted <= sum(node.wasted for node in world.nodes) <= work


def _check_presence(world: World, events: list[tuple[int, str, int, int, int, int]]) -> None:
    """A node switches in turns, computes one thing at a time, and does nothing while it is offline."""
    online, busy, gone = {node.id for node in world.nodes}, set[int](), set[int]()
    for time_us, kind, node, peer, size, _ in events:
        if kind == "online":
            assert node not in online | gone
            online.add(node)
        elif kind == "offline":
            online.remove(node)
        elif kind == "crash":
            gone.add(node)
        elif kind == "compute":
            assert node not in busy
            busy.add(node)
        elif kind in ("done", "aborted"):
            busy.remove(node)
        if kind in ("send", "deliver", "compute", "done"):
            assert node in online, f"node {node} is offline at {time_us} µs: {kind} {peer} {size}"
    assert online == {node.id for node in world.nodes if node.online}
    assert all(world.nodes[id].crashed for id in gone)


def settle(world: World, most_steps: int = 100_000) -> None:
    """Let time pass until nothing is on its way any more."""
    for _ in range(most_steps):
        if not any(node.transfers for node in world.nodes):
            return
        world.clock.step()
    raise AssertionError("transfers do not end")
