"""Clients at the sites of a backbone."""

from __future__ import annotations

import math

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fedsim
from fedsim import parts
from fedsim.errors import BadValue, ConfigError
from fedsim.record.store import facts, read
from fedsim.running import build, described
from fedsim.spec.experiment import load
from fedsim.world.graph import TALK, members, talk
from topologies.backbone import backbone
from topologies.sites import attach, check_places, distance_km

pytest.importorskip("topohub")


def line(*latencies):
    graph = nx.path_graph(len(latencies) + 1)
    for a, latency in enumerate(latencies):
        graph.edges[a, a + 1]["latency_ms"] = latency
    nx.set_node_attributes(graph, {i: f"s{i}" for i in graph}, "name")
    return graph


def hub(n, servers=1, **given):
    supplied = {"n": n, "seed": 0, "servers": servers}
    return parts.call(parts.find("topologies", "topohub"), given, supplied)


def home(graph, node):
    return next(iter(graph[node])) - len(members(graph))


def test_kilometres_over_the_earth():
    assert distance_km((0, 0), (0, 90)) == pytest.approx(6371.0088 * math.pi / 2)
    assert distance_km((179, 0), (-179, 0)) == pytest.approx(6371.0088 * math.radians(2))
    assert distance_km((13.4, 52.5), (13.4, 52.5)) == 0


def test_clients_go_round_the_sites_and_the_server_to_the_middle():
    graph = attach(line(10, 10), 8, servers=1, seed=0)
    assert [home(graph, node) for node in range(8)] == [0, 1, 2, 0, 1, 2, 0, 1]
    assert members(graph) == list(range(8))
    assert [graph.nodes[8 + site] for site in range(3)] == [
        {"name": f"s{site}", "router": True} for site in range(3)
    ]


def test_the_best_site_has_the_least_mean_latency():
    # Three clients at sites 0, 1, 2 of a line with 1 ms and 9 ms: 11, 10 and 19 ms in all.
    assert home(attach(line(1, 9), 4, servers=1, seed=0), 3) == 1
    assert home(attach(line(5), 3, servers=1, seed=0), 2) == 0  # of equals, the first
    assert home(attach(line(9, 1), 4, servers=1, seed=0), 3) == 1
    assert home(attach(line(1, 9), 4, servers=1, server="s2", seed=0), 3) == 2
    assert home(attach(line(1, 9), 4, servers=1, server=2, seed=0), 3) == 2


def test_in_proportion_to_links_or_population():
    # A line of 3 sites has 1, 2 and 1 ends of links: of 6 peers 1.5, 3 and 1.5, and of equal rests the first.
    graph = attach(line(1, 1), 6, servers=0, spread="links", seed=0)
    assert [home(graph, node) for node in range(6)] == [0, 0, 1, 1, 1, 2]
    sites = line(1, 1)
    for site, population in enumerate((10, 0, 30)):
        sites.nodes[site]["population"] = population
    graph = attach(sites, 4, servers=0, spread="population", seed=0)
    assert [home(graph, node) for node in range(4)] == [0, 2, 2, 2]


def test_peers_talk_at_their_site_and_across_empty_ones():
    sites = line(1, 1, 1)
    graph = attach(sites, 3, servers=0, spread="even", seed=0)
    assert sorted(graph.graph[TALK].edges) == [(0, 1), (1, 2)]
    for site, population in enumerate((2, 0, 0, 1)):
        sites.nodes[site]["population"] = population
    graph = attach(sites, 3, servers=0, spread="population", seed=0)
    assert [home(graph, node) for node in range(3)] == [0, 0, 3]
    assert sorted(talk(graph).edges) == [(0, 1), (0, 2), (1, 2)]


@given(
    sites=st.integers(1, 12),
    n=st.integers(3, 30),
    spread=st.sampled_from(["even", "random", "links"]),
    servers=st.integers(0, 2),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=60)
def test_everybody_has_one_site_and_reaches_everybody(sites, n, spread, servers, seed):
    if sites == 1 and spread == "links":
        spread = "even"
    ring = nx.cycle_graph(sites) if sites > 2 else nx.path_graph(sites)
    nx.set_edge_attributes(ring, 1.0, "latency_ms")
    graph = attach(ring, n, servers=servers, spread=spread, seed=seed)
    assert nx.is_connected(graph)
    assert all(
        graph.degree(node) == 1 and graph.nodes[next(iter(graph[node]))]["router"] for node in range(n)
    )
    assert sorted(talk(graph)) == list(range(n))
    assert nx.is_connected(talk(graph))


def test_abilene_has_its_kilometres():
    graph = hub(12, key="topozoo/Abilene", access_ms=0.5, mbps=40)
    names = {data["name"]: node for node, data in graph.nodes(data=True) if data.get("router")}
    link = graph.edges[names["New York"], names["Chicago"]]
    # topohub says 1146.16 km from New York to Chicago, 5 microseconds each.
    assert link == {"latency_ms": pytest.approx(5.7308), "mbps": 40}
    assert graph.edges[0, 12] == {"latency_ms": 0.5}
    longer = hub(12, key="topozoo/Abilene", us_per_km=7.5)
    assert longer.edges[names["New York"], names["Chicago"]]["latency_ms"] == pytest.approx(8.5962)
    assert graph.nodes[0]["longitude"] == pytest.approx(-74.01)


def test_a_plane_has_kilometres_and_no_map():
    graph = hub(5, key="gabriel/25/0")
    assert described.places(graph) == []
    assert graph.edges[5, 21]["latency_ms"] == pytest.approx(127.58 * 0.005)


@pytest.mark.parametrize("name", ["norway", "france", "newyork", "zib54", "ta1", "ta2", "sun", "atlanta"])
def test_pixels_are_no_degrees(name):
    with pytest.raises(BadValue, match="which is nowhere on Earth") as caught:
        hub(5, key=f"sndlib/{name}")
    assert (caught.value.key, caught.value.value) == ("key", f"sndlib/{name}")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            {"key": "topozoo/Abilen"},
            "key: topozoo/Abilen: topohub has no such network; did you mean topozoo/Abilene?",
        ),
        ({"key": "zoo/Abilene"}, "known: backbone, caida, gabriel, sndlib, topozoo"),
        ({"key": "gabriel/25/999"}, "did you mean gabriel/25/9"),
        (
            {"key": "topozoo/Abilene", "server": "Chigago"},
            "server: Chigago: there is no such site; did you mean Chicago?",
        ),
        ({"key": "topozoo/Abilene", "server": 11}, "server: 11: sites are 0 to 10"),
        (
            {"key": "topozoo/Abilene", "spread": "population"},
            "spread: population: the site New York has no population",
        ),
    ],
)
def test_a_network_or_site_that_is_not_there(given, words):
    with pytest.raises(BadValue) as caught:
        hub(12, **given)
    assert words in str(caught.value)


def test_two_sites_of_one_name_have_numbers():
    sites = line(1, 1)
    nx.set_node_attributes(sites, {0: "A", 1: "B", 2: "A"}, "name")
    with pytest.raises(BadValue, match=r"several sites of that name; give its number: \[0, 2\]"):
        attach(sites, 3, servers=1, server="A", seed=0)


def test_places_are_checked_by_name():
    check_places("fine", {"pole": (0.0, 90.0), "date line": (180.0, 0.0)})
    with pytest.raises(BadValue, match="key: odd: puts x at latitude 91, longitude 0"):
        check_places("odd", {"x": (0.0, 91.0)})


ZOO = """graph [ node [ id 0 label "A" Longitude 0.0 Latitude 0.0 ] node [ id 1 label "B" Longitude 1.0 Latitude 0.0 ]
node [ id 2 label "C" Longitude 2.0 Latitude 0.0 ] edge [ source 0 target 1 ] edge [ source 1 target 2 latency_ms 3 ] ]
"""


def test_a_file_has_lengths_where_it_has_no_latencies(tmp_path):
    path = tmp_path / "zoo.gml"
    path.write_text(ZOO)
    graph = backbone(4, path=str(path), servers=1, server="B", mbps=9, seed=0)
    assert graph.edges[4, 5] == {"latency_ms": pytest.approx(111.195 * 0.005, rel=1e-4), "mbps": 9}
    assert graph.edges[5, 6] == {"latency_ms": 3.0, "mbps": 9}
    assert home(graph, 3) == 1
    path.write_text(ZOO.replace("Latitude 0.0 ] edge", "] edge"))
    assert graph.edges[5, 6] == backbone(4, path=str(path), servers=1, mbps=9, seed=0).edges[5, 6]
    path.write_text(ZOO.replace(" latency_ms 3", "").replace("Latitude 0.0 ] edge", "] edge"))
    with pytest.raises(BadValue, match="link 1 - 2 has no latency, and its ends no latitude and longitude"):
        backbone(4, path=str(path), servers=1, seed=0)
    path.write_text(ZOO.replace("Latitude 0.0 ] edge", "Latitude 248 ] edge"))
    with pytest.raises(BadValue, match=r"path: .*: puts 2 at latitude 248, longitude 2, which is nowhere"):
        backbone(4, path=str(path), servers=1, seed=0)


BASE = {
    "data": {"clients": 4},
    "model": "softmax",
    "strategy": {"name": "fedavg", "fraction_evaluate": 0.0},
    "stop": {"rounds": 1},
    "evaluate": {"every": 9},
    "record": {"report": False},
}


def test_models_share_the_links_of_the_backbone(tmp_path):
    # Two sites 8 Mbit/s and 10 ms apart; the server and client 0 are at the first, clients 1 and 3 at the second.
    (tmp_path / "two.edges").write_text("a b latency_ms=10 mbps=8\n")
    path = str(tmp_path / "two.edges")
    given = {**BASE, "topology": {"name": "backbone", "path": path, "server": "a", "access_ms": 1}}
    given["devices"] = {"seconds_per_sample": 0.001}
    result = fedsim.run(given, out=tmp_path, timing_only=True, network__header_bytes=0)
    # Clients 0 and 2 are at a, 1 and 3 at b. Node 4 is the server, 5 the router of a, 6 that of b.
    held = carried(result)
    assert held[5, 6] == result.summary["bytes_down"] / 2
    assert held[4, 5] == result.summary["bytes_down"]
    events = read(result.path, "events")
    first = (events["kind"] == "deliver") & (events["peer"] == 4)
    arrived = dict(zip(events["node"][first].tolist(), events["time_us"][first].tolist()))
    (size,) = set(events["size"][first].tolist())
    # At the server's own site: two access links. Across: two models share 8 Mbit/s, that is 1 byte a microsecond.
    assert arrived == {0: 2000, 2: 2000, 1: 2 * size + 12_000, 3: 2 * size + 12_000}


def carried(result):
    links = read(result.path, "links")
    return {(a, b): held for a, b, held in zip(*(links[key].tolist() for key in ("a", "b", "bytes")))}


def test_peers_talk_over_routers_and_a_broken_link_is_gone_round(tmp_path):
    given = {**BASE, "strategy": "dpsgd", "topology": {"name": "topohub", "key": "topozoo/Abilene"}}
    given["data"] = {"clients": 11}
    setup = build.prepare(load(given))
    assert len(setup.world.nodes) == 11
    assert len(setup.world.network.graph) == 22
    whole = setup.world.network.route(0, 1).latency_us
    setup.world.network.break_edge(11, 12)
    assert setup.world.network.route(0, 1).latency_us > whole
    faults = [{"name": "link_down", "at_s": 0.001, "for_s": 9.0, "edge": [11, 12]}]
    calm, broken = (fedsim.run(given, out=tmp_path, faults=list(some)) for some in ([], faults))
    assert broken.summary["bytes_lost"] == 0
    assert carried(calm)[11, 12] > 0
    assert (11, 12) not in carried(broken)
    where = facts(calm.path)["places"]
    assert where[0] == {
        "node": 0,
        "name": "New York",
        "longitude": -74.01,
        "latitude": 40.71,
        "router": False,
    }
    assert [place["router"] for place in where] == [False] * 11 + [True] * 11


def test_a_cut_between_routers_divides_those_behind_them(tmp_path):
    (tmp_path / "two.edges").write_text("a b latency_ms=10\n")
    given = {
        **BASE,
        "strategy": "dpsgd",
        "topology": {"name": "backbone", "path": str(tmp_path / "two.edges")},
    }
    cut = {"name": "partition", "at_s": 0.0, "for_s": 1.0}
    setup = build.prepare(load({**given, "faults": [{**cut, "cut": [[4, 5]]}]}))
    (wall,) = setup.world.network.walls
    assert wall == {0: 0, 2: 0, 1: 1, 3: 1}
    with pytest.raises(ConfigError, match="no such node: 9"):
        build.prepare(load({**given, "faults": [{**cut, "cut": [[4, 9]]}]}))


OWN = """
import networkx as nx
def routed(n, *, told=True, extra=1):
    graph = nx.star_graph([n, *range(n)])
    graph.nodes[n]["router"] = bool(extra)
    if told:
        graph.graph["talk"] = nx.cycle_graph(n)
    return graph
"""


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            {"topology": {"name": "own:routed", "told": False}},
            "does not say which of the 4 peers talk to each other",
        ),
        (
            {"topology": {"name": "own:routed", "extra": 0}},
            "this one has 5 nodes; further nodes must be routers",
        ),
        ({"network": {"overlay": True}}, "with network.overlay messages go over none of them"),
    ],
)
def test_routers_of_ones_own(tmp_path, monkeypatch, given, words):
    (tmp_path / "own.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    base = {**BASE, "strategy": "dpsgd", "topology": "own:routed"}
    assert len(build.prepare(load(base)).world.nodes) == 4
    with pytest.raises(ConfigError) as caught:
        build.prepare(load({**base, **given}))
    assert words in str(caught.value)


def test_so_many_clients_at_each_site():
    def homes(n, per_site, sites=None):
        graph = attach(sites or line(1, 9), n + 1, servers=1, clients_per_site=per_site, seed=0)
        return [home(graph, node) for node in range(n)]

    assert homes(6, 2) == [0, 0, 1, 1, 2, 2]
    assert homes(5, [3, 0, 2]) == [0, 0, 0, 2, 2]
    assert homes(3, {"s2": 2, "s1": 1}) == [1, 2, 2]
    # all clients are at the far end of 1 ms and 9 ms: so is the best site
    assert home(attach(line(1, 9), 3, servers=1, clients_per_site={"s2": 2}, seed=0), 2) == 2


@pytest.mark.parametrize(
    ("per_site", "words"),
    [
        (2, r"clients_per_site: 2: makes 6 clients or peers, and there are 4; say data\.clients: 6"),
        ([4], r"must have a number for each of the 3 sites"),
        ({"s4": 4}, r"clients_per_site: s4: there is no such site; known: s0"),
    ],
)
def test_clients_that_do_not_add_up_are_refused(per_site, words):
    with pytest.raises(BadValue, match=words):
        attach(line(1, 9), 5, servers=1, clients_per_site=per_site, seed=0)


@given(sites=st.integers(2, 9), members=st.integers(1, 12), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=40)
def test_the_best_site_is_that_of_one_search_for_each(sites, members, seed):
    graph = nx.gnp_random_graph(sites, 0.7, seed=seed)
    graph.add_edges_from((a, a + 1) for a in range(sites - 1))
    for a, b in graph.edges:
        graph.edges[a, b]["latency_ms"] = float((7 * a + 3 * b + seed) % 5)  # some links have none
    made = attach(graph, members + 1, servers=1, spread="random", seed=seed)
    homes = [home(made, node) for node in range(members)]
    away = dict(nx.all_pairs_dijkstra_path_length(graph, weight="latency_ms"))
    wanted = min(range(sites), key=lambda site: (math.fsum(away[site][one] for one in homes), site))
    assert home(made, members) == wanted


def test_two_models_share_a_real_link_in_a_time_that_can_be_worked_out(tmp_path):
    # New York and Chicago are 1146.16 km apart in topohub: 5.7308 ms; 8 Mbit/s are one byte a microsecond.
    topology = {"name": "topohub", "key": "topozoo/Abilene", "server": "New York", "mbps": 8}
    topology |= {"clients_per_site": {"Chicago": 2, "Washington DC": 1}, "access_ms": 1}
    asked = {**BASE, "data": {"clients": 3}, "topology": topology}
    asked["devices"] = {"seconds_per_sample": 0.001}
    result = fedsim.run(asked, out=tmp_path, timing_only=True, network__header_bytes=0)
    events = read(result.path, "events")
    first = (events["kind"] == "deliver") & (events["peer"] == 3)
    arrived = dict(zip(events["node"][first].tolist(), events["time_us"][first].tolist()))
    (size,) = set(events["size"][first].tolist())
    graph = hub(4, **{key: value for key, value in topology.items() if key != "name"})
    by_name = {data["name"]: node for node, data in graph.nodes(data=True) if data.get("router")}
    washington = graph.edges[by_name["New York"], by_name["Washington DC"]]["latency_ms"]
    # two models share the way to Chicago, and so take twice as long; the third has the way to Washington for itself
    chicago_us = 2 * size + 2 * 1000 + 5730.8
    washington_us = size + 2 * 1000 + 1000 * washington
    sites = [home(graph, node) + 4 for node in range(3)]
    for node, site in enumerate(sites):
        wanted = chicago_us if site == by_name["Chicago"] else washington_us
        assert arrived[node] == pytest.approx(wanted, abs=3)
    assert sorted(site == by_name["Chicago"] for site in sites) == [False, True, True]
