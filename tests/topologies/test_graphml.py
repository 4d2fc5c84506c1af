"""GraphML files: defaults of every kind of key count, and what cannot be a link is refused by name."""

from __future__ import annotations

import networkx as nx
import pytest

import fedsim
from fedsim.errors import BadValue
from topologies import graphml
from topologies.files import file

RING = """<graphml xmlns="http://graphml.graphdrawing.org/xmlns">
  <key id="d" {about} attr.name="latency_ms" attr.type="double"><default>250</default></key>
  <graph edgedefault="undirected">
    <node id="0"/><node id="1"/><node id="2"/>
    <edge source="0" target="1"/><edge source="1" target="2"/><edge source="2" target="0"/>
  </graph>
</graphml>
"""
EVERY = ['for="all"', "", 'for="edge"']


@pytest.fixture
def write(tmp_path):
    def write(text: str, name: str = "net.graphml") -> str:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def refusal(path: str) -> str:
    with pytest.raises(BadValue) as caught:
        file(3, path=path)
    assert caught.value.key == "path"
    return str(caught.value.rule)


@pytest.mark.parametrize("about", EVERY)
def test_a_default_for_all_is_one_for_links(write, about):
    graph = file(3, path=write(RING.format(about=about)))
    assert [data for *_, data in graph.edges(data=True)] == [{"latency_ms": 250.0}] * 3


@pytest.mark.parametrize("about", EVERY)
def test_a_round_over_such_links_takes_their_time(write, tmp_path, about):
    experiment = {
        "data": {"name": "quadratic", "clients": 2, "samples": 81},
        "model": "linear",
        "strategy": {"name": "fedavg", "fraction_evaluate": 0.0, "local": {"epochs": 1}},
        "topology": {"name": "file", "path": write(RING.format(about=about))},
        "devices": {"seconds_per_sample": 0.0005},
        "stop": {"rounds": 1},
        "record": {"report": False},
    }
    found = fedsim.run(experiment, out=tmp_path, timing_only=True).summary
    # The server is adjacent to both clients: 0.25 s there, 81 x 0.0005 s = 0.0405 s of work, 0.25 s back.
    assert found["sim_time_s"] == pytest.approx(0.25 + 0.0405 + 0.25, abs=1e-9)


def test_an_own_value_wins_over_the_default(write):
    text = RING.format(about="").replace(
        '<edge source="0" target="1"/>', '<edge source="0" target="1"><data key="d">3</data></edge>'
    )
    assert file(3, path=write(text)).edges[0, 1] == {"latency_ms": 3.0}


NEW = {
    "node": ('<node id="0"/>', '<node id="0">{}</node>'),
    "edge": ('<edge source="0" target="1"/>', '<edge source="0" target="1">{}</edge>'),
    "graph": ('<graph edgedefault="undirected">', '<graph edgedefault="undirected">{}'),
}
INNER = '<graph edgedefault="undirected"><node id="9"/></graph>'


@pytest.mark.parametrize(
    ("where", "what", "rule"),
    [
        ("node", INNER, "0 holds a graph, and nested graphs are not links"),
        ("edge", INNER, "edge holds a graph, and nested graphs are not links"),
        ("graph", INNER, "graph holds a graph, and nested graphs are not links"),
        ("node", '<port name="North"/>', "0 holds a port, and ports are not links"),
        ("graph", '<hyperedge><endpoint node="0"/></hyperedge>', "hyperedges are not links"),
        ("graph", '<locator href="x"/>', "parts in other files are not links"),
        ("graph", '<node id="0"/>', "the node 0 is there twice"),
        ("graph", "<node/>", "a node has no id"),
        ("graph", '<edge source="0" target="7"/>', "the edge 0 - 7 ends at a node that is not there"),
        ("graph", '<edge source="0"/>', "the edge 0 - None ends at a node that is not there"),
        ("graph", '<edge source="0" target="1" sourceport="N"/>', "the edge 0 - 1 names a port"),
        ("edge", '<data key="x">3</data>', "the edge 0 - 1 has data of the key x, which is not declared"),
        ("edge", '<data key="d">3</data><data key="d">4</data>', "the edge 0 - 1 has latency_ms twice"),
        ("node", '<data key="d">3</data>', "the node 0 has latency_ms, and only edges have it"),
        ("graph", '<data key="d">3</data>', "the graph has latency_ms, and only edges have it"),
    ],
)
def test_what_would_be_lost_is_refused_by_name(write, where, what, rule):
    old, new = NEW[where]
    assert rule in refusal(write(RING.format(about="").replace(old, new.format(what), 1)))


@pytest.mark.parametrize(
    ("old", "new", "rule"),
    [
        ("</graphml>", f"{INNER}</graphml>", "it holds 2 graphs, and must hold one"),
        ("</graphml>", '<key id="d" attr.name="mbps"/></graphml>', "the key d is declared twice"),
        (
            '<node id="0"/>',
            '<key id="e" attr.name="mbps"><default>3</default></key><node id="0"/>',
            "a graph holds a key, and keys stand before the graph, in graphml",
        ),
        (
            "</graphml>",
            '<key id="e" attr.name="latency_ms"><default>3</default></key></graphml>',
            "latency_ms has two defaults, 250 and 3",
        ),
        (
            "</graphml>",
            '<key id="e" for="node" attr.name="mbps"/></graphml>',
            "mbps is declared for node, and only edges have it",
        ),
        ('"undirected"', '"both"', "edgedefault must be directed or undirected, not both"),
        ("latency_ms", "latency", "link 0 - 1: latency is unknown"),
        ("latency_ms", "Mbps", "link 0 - 1: Mbps is unknown"),
    ],
)
def test_what_is_said_twice_or_nowhere_is_refused(write, old, new, rule):
    assert rule in refusal(write(RING.format(about="").replace(old, new, 1)))


def test_drawings_and_descriptions_do_not_matter(write):
    text = RING.format(about="").replace(
        '<node id="0"/>',
        '<node id="0"><desc>Rome</desc><data key="y"><s:graph xmlns:s="http://www.yworks.com/xml/graphml"/></data></node>',
    )
    text = text.replace("<graph ", '<key id="y" for="node" yfiles.type="nodegraphics"/><graph ', 1)
    assert len(file(3, path=write(text))) == 3


def test_entities_that_grow_without_end_are_refused(write):
    doubled = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 10))
    bomb = f'<!DOCTYPE graphml [<!ENTITY e0 "lol">{doubled}]>' + RING.format(about="").replace("250", "&e9;")
    assert refusal(write(bomb)).startswith("cannot be read (")


@pytest.mark.parametrize("graph", [nx.path_graph(4), nx.cycle_graph(5), nx.star_graph(3)])
def test_links_are_those_that_networkx_reads(graph, tmp_path):
    nx.set_edge_attributes(graph, 7.5, "latency_ms")
    nx.write_graphml(graph, tmp_path / "net.graphml")
    nodes, links, directed = graphml.parse((tmp_path / "net.graphml").read_bytes())
    theirs = nx.read_graphml(tmp_path / "net.graphml")
    assert nodes == list(theirs)
    assert [(a, b, float(data["latency_ms"])) for a, b, data in links] == [
        (a, b, data["latency_ms"]) for a, b, data in theirs.edges(data=True)
    ]
    assert not directed


# edge lists


def test_numbers_of_numpy_are_numbers(write):
    # What nx.write_edgelist makes of numpy.float64(3.0) and numpy.int64(7) under numpy 2.
    text = "a b {'latency_ms': np.float64(3.0), 'mbps': np.int64(7), 'seen': np.array([1])}\n"
    graph = file(2, path=write(text, "net.edges"))
    assert graph.edges[0, 1] == {"latency_ms": 3.0, "mbps": 7.0}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ("latency_ms=20 latency_ms=30", "latency_ms is there twice"),
        ("{'latency_ms': 20, 'latency_ms': 30}", "latency_ms is there twice"),
        ("{'latency_ms': open('x')}", "open('x') is not a number"),
        ("{'latency_ms': np.float64(open('x'))}", "open('x') is not a number"),
        ("{'latency_ms': nan}", "nan is not a number"),
        ("{3: 4}", "has a key that is not text"),
        ("{**x}", "has a key that is not text"),
        ("{" + "9" * 5000, "9999... is not a dictionary"),
        ("{" + "(" * 5000 + ")" * 5000 + "}", "is not a dictionary"),
    ],
)
def test_what_a_line_says_twice_or_does_not_say_is_refused(write, data, reason):
    with pytest.raises(BadValue) as caught:
        file(2, path=write(f"a b {data}\n", "net.edges"))
    assert reason in caught.value.rule
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)


def test_true_is_not_a_latency(write):
    with pytest.raises(BadValue, match="latency_ms must be a number at least 0, is True"):
        file(2, path=write("a b {'latency_ms': True}\n", "net.edges"))


def test_a_hash_inside_of_a_label_hides_nothing(write):
    graph = file(2, path=write("a site#2 latency_ms=20 # a comment\n#whole line\n", "net.edges"))
    assert graph.edges[0, 1] == {"latency_ms": 20.0}
    assert graph.nodes[1]["name"] == "site#2"
