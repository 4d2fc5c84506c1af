"""Every format in which networks are published, in small files as they really are."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
import scipy.io
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.errors import BadValue
from topologies.files import file
from topologies.readers import ENDINGS, READERS, kind, read

GML = """Creator "Topology Zoo Toolset"
graph [
  directed 0
  node [ id 0 label "New York" Longitude -74.01 Latitude 40.71 ]
  node [ id 1 label "Chicago" Longitude -87.65 Latitude 41.85 ]
  node [ id 7 label "Chicago" Longitude -77.04 Latitude 38.90 ]
  edge [ source 0 target 1 LinkLabel "OC-192" latency_ms 5 mbps 10.0 ]
  edge [ source 0 target 7 latency_ms 2.5 ]
  edge [ source 1 target 0 latency_ms 4 mbps 30 ]
]
"""
PAJEK = """% a comment
*Vertices 4
 1 "New York" 0.1 0.2 0.5
 2 "O'Hare" 0.3 0.4
*Edges
 1 2 3.5
*Arcs
 2 3 7
 3 2 7
*Edgeslist
 4 1 2 3
"""
SNDLIB_XML = """<?xml version="1.0" encoding="ISO-8859-1"?>
<network xmlns="http://sndlib.zib.de/network" version="1.0">
 <networkStructure>
  <nodes coordinatesType="geographical">
   <node id="Gdansk"><coordinates><x>18.60</x><y>54.20</y></coordinates></node>
   <node id="Warsaw"><coordinates><x>21.00</x><y>52.20</y></coordinates></node>
  </nodes>
  <links>
   <link id="Link_0_10"><source>Gdansk</source><target>Warsaw</target>
    <preInstalledModule><capacity>155.0</capacity><cost>0.0</cost></preInstalledModule>
    <additionalModules><addModule><capacity>622.0</capacity><cost>468.0</cost></addModule></additionalModules>
   </link>
  </links>
 </networkStructure>
 <demands><demand id="Demand_0_1"><source>Gdansk</source><target>Warsaw</target></demand></demands>
</network>
"""
SNDLIB = """?SNDlib native format; type: network; version: 1.0
# network polska

META (
  granularity = 1month
)

NODES (
  Gdansk ( 18.60 54.20 )   # the sea
  Warsaw ( 21.00 52.20 )
)

LINKS (
  Link_0_10 ( Gdansk Warsaw ) 0.00 0.00 0.00 156.00 ( 155.00 156.00 622.00 468.00 )
)

DEMANDS (
  Demand_0_1 ( Gdansk Warsaw ) 1 195.00 UNLIMITED
)
"""
BRITE = """Topology: ( 3 Nodes, 2 Edges )
Model (1 - RTWaxman):  3 1000 100 1  2  0.15 0.2 1 1 10.0 1024.0

Nodes: ( 3 )
0\t711.00\t339.00\t2\t2\t-1\tRT_NODE
1\t42.00\t57.00\t2\t2\t-1\tRT_NODE
2\t10.00\t20.00\t2\t2\t-1\tRT_NODE

Edges: ( 2 )
0\t0\t1\t725.6\t2.42\t10.0\t-1\t-1\tE_RT\tU
1\t1\t2\t50.0\t0.17\t10.0\t-1\t-1\tE_RT\tU
"""
AS_REL = """# input clique: 174 209
# inferred 20240101
1|11537|0
1|21616|-1
21616|11537|-1|bgp
"""
CCH = """1 @Albany,+NY + bb (2) &1 -> <2> <3> {-4} =cr1.albany.net r0
2 @Boston,+MA (1) -> <1> =cr1.boston.net! r1
3 @Nowhere (1) -> <1> =x r0
-4 =outside.net r2
"""


@pytest.fixture
def write(tmp_path):
    def write(text: str, name: str) -> str:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def links(graph):
    names = graph.nodes(data="name")
    return {(names[a], names[b]): data for a, b, data in graph.edges(data=True)}


def test_gml_adds_parallel_links_up(write):
    graph = file(3, path=write(GML, "zoo.gml"))
    # Two links between 0 and 1: 10 + 30 Mbit/s, and the quicker one's latency.
    assert links(graph) == {("0", "1"): {"latency_ms": 4.0, "mbps": 40.0}, ("0", "7"): {"latency_ms": 2.5}}


def test_places_are_kept_where_they_are_degrees(write):
    graph = file(2, path=write(SNDLIB_XML, "polska.xml"))
    assert graph.nodes[0] == {"name": "Gdansk", "longitude": 18.6, "latitude": 54.2}
    assert (
        "longitude" not in file(2, path=write(SNDLIB_XML.replace("geographical", "pixel"), "p.xml")).nodes[0]
    )
    assert "longitude" not in file(2, path=write(SNDLIB_XML.replace("54.20", "540.20"), "q.xml")).nodes[0]
    assert "longitude" not in file(4, path=write(PAJEK, "a.net")).nodes[0]  # a drawing's, from 0 to 1


def test_gml_knows_places_and_names():
    net = read("zoo.gml", GML.encode())
    assert net.places["1"] == (-87.65, 41.85)
    assert net.names == {"0": "New York", "1": "Chicago", "7": "Chicago"}
    assert net.geographic


def test_pajek_reads_mixed_sections_and_neighbour_lists(write):
    graph = file(4, path=write(PAJEK, "a.net"), values="latency_ms")
    assert sorted(
        links(file(4, path=write(PAJEK.replace("4 1 2 3", "4 1"), "b.net"), values="latency_ms"))
    ) == [
        ("1", "2"),
        ("1", "4"),
        ("2", "3"),
    ]
    assert graph.edges[0, 1] == {"latency_ms": 3.5}
    assert graph.edges[1, 2] == {"latency_ms": 7.0}
    assert sorted(graph[3]) == [0, 1, 2]


def test_pajek_arcs_one_way_are_refused_wherever_they_stand(write):
    for text in ("*Edges\n1 2\n*Arcs\n2 3\n", "*Arcs\n2 3\n*Edges\n1 2\n", "*Arcslist\n1 2 3\n"):
        with pytest.raises(BadValue, match="the graph is directed"):
            file(3, path=write(f"*Vertices 3\n{text}", "a.net"))


def test_an_adjacency_list(write):
    graph = file(4, path=write("# adj\na b c\nb c # and so on\nd a\n", "a.adjlist"))
    assert sorted(links(graph)) == [("a", "b"), ("a", "c"), ("a", "d"), ("b", "c")]


def test_matrix_market(write):
    text = "%%MatrixMarket matrix coordinate real general\n% c\n3 3 4\n1 2 5\n2 1 5\n2 3 0.5\n3 2 0.5\n"
    graph = file(3, path=write(text, "a.mtx"), values="mbps")
    assert links(graph) == {("1", "2"): {"mbps": 5.0}, ("2", "3"): {"mbps": 0.5}}
    assert links(file(3, path=write(text, "a.mtx"))) == {("1", "2"): {}, ("2", "3"): {}}
    pattern = "%%MatrixMarket matrix coordinate pattern symmetric\n3 3 2\n2 1\n3 2\n"
    assert sorted(links(file(3, path=write(pattern, "a.txt")))) == [("1", "2"), ("2", "3")]


def test_metis_with_sizes_and_weights(write):
    # Form 111: a size, one weight of the node, then neighbours with the weight of the link.
    text = "% c\n3 2 111 1\n9 8 2 5\n9 8 1 5 3 7\n9 8 2 7\n"
    assert links(file(3, path=write(text, "a.metis"), values="latency_ms")) == {
        ("1", "2"): {"latency_ms": 5.0},
        ("2", "3"): {"latency_ms": 7.0},
    }
    assert sorted(links(file(3, path=write("3 2\n2\n1 3\n2\n", "b.graph")))) == [("1", "2"), ("2", "3")]


@pytest.mark.parametrize(("text", "name"), [(SNDLIB, "polska.txt"), (SNDLIB_XML, "polska.xml")])
def test_sndlib_in_both_formats(write, text, name):
    assert links(file(2, path=write(text, name))) == {("Gdansk", "Warsaw"): {}}
    net = read(name, text.encode())
    assert net.places == {"Gdansk": (18.6, 54.2), "Warsaw": (21.0, 52.2)}
    assert net.geographic is (True if name.endswith("xml") else None)


def test_brite_has_delays_in_milliseconds(write):
    assert links(file(3, path=write(BRITE, "a.brite"))) == {
        ("0", "1"): {"latency_ms": 2.42, "mbps": 10.0},
        ("1", "2"): {"latency_ms": 0.17, "mbps": 10.0},
    }


def test_relations_of_autonomous_systems(write):
    assert sorted(links(file(3, path=write(AS_REL, "20240101.as-rel2.txt")))) == [
        ("1", "11537"),
        ("1", "21616"),
        ("11537", "21616"),
    ]


def test_rocketfuels_maps_and_links(write):
    assert sorted(links(file(3, path=write(CCH, "1.cch")))) == [("1", "2"), ("1", "3")]
    assert read("1.cch", CCH.encode()).names == {"1": "Albany,+NY", "2": "Boston,+MA", "3": "Nowhere"}
    text = "Albany,+NY1 Boston,+MA2 3.5\nBoston,+MA2 Albany,+NY1 3.5\n"
    graph = file(2, path=write(text, "latencies.intra"), values="latency_ms")
    assert links(graph) == {("Albany,+NY1", "Boston,+MA2"): {"latency_ms": 3.5}}


def test_parallel_graphml_links_add_up(write):
    edge = '<edge source="a" target="b"><data key="l">{}</data><data key="m">{}</data></edge>'
    text = (
        '<graphml><key id="l" for="edge" attr.name="latency_ms"/><key id="m" for="edge" attr.name="mbps"/>'
        f'<graph edgedefault="undirected"><node id="a"/><node id="b"/>{edge.format(3, 10)}{edge.format(2, 5)}'
        "</graph></graphml>"
    )
    assert links(file(2, path=write(text, "a.graphml"))) == {("a", "b"): {"latency_ms": 2.0, "mbps": 15.0}}


def test_graphml_knows_the_places_of_the_topology_zoo():
    text = (
        '<graphml><key id="d1" for="node" attr.name="Longitude"/><key id="d2" for="node" attr.name="Latitude"/>'
        '<key id="d3" for="node" attr.name="label"/><graph edgedefault="undirected"><node id="0">'
        '<data key="d1">-74.01</data><data key="d2">40.71</data><data key="d3">New York</data></node>'
        '<node id="1"/><edge source="0" target="1"/></graph></graphml>'
    )
    net = read("a.graphml", text.encode())
    assert (net.places, net.names, net.geographic) == ({"0": (-74.01, 40.71)}, {"0": "New York"}, True)


@pytest.mark.parametrize(
    ("text", "name", "words"),
    [
        (GML, "a.graphml", "ends in .graphml, and holds GML, not GraphML"),
        (SNDLIB, "a.gml", "ends in .gml, and holds SNDlib native, not GML"),
        (GML.replace("directed 0", "directed 1"), "a.gml", "the graph is directed"),
        ("graph [ node [ id 0 ]", "a.gml", "cannot be read ("),
        ("graph [ node [ id 0 ] edge [ source 0 target 1 ] ]", "a.gml", "cannot be read ("),
        ("*Vertices 2\n1 5\n*Edges\n1 3\n", "a.net", "line 4: 3 is not a node; nodes are 1 to 2"),
        ("*Vertices 4 2\n*Edges\n1 3\n", "a.net", "nodes of two kinds"),
        ("*Vertices\n", "a.net", "line 1 does not say how many nodes there are"),
        (
            "*Vertices 2\n*Matrix\n0 1\n1 0\n",
            "a.net",
            "line 2: the section *Matrix is not one of nodes and links",
        ),
        ("*Vertices 99999999999\n", "a.net", "for 99999999999 nodes, and this machine has"),
        ("1 2\n", "a.net", "line 1 stands before *Vertices"),
        ("%%MatrixMarket matrix coordinate real general\n2 3 1\n1 2 5\n", "a.mtx", "2 rows and 3 columns"),
        ("%%MatrixMarket matrix coordinate real general\n2 2 1\n1 2 5\n", "a.mtx", "the graph is directed"),
        (
            "%%MatrixMarket matrix coordinate complex symmetric\n2 2 1\n2 1 5 1\n",
            "a.mtx",
            "its numbers are complex",
        ),
        (
            "%%MatrixMarket matrix coordinate real symmetric\n99999999999 99999999999 0\n",
            "a.mtx",
            "99999999999 nodes",
        ),
        ("%%MatrixMarket\n", "a.mtx", "cannot be read ("),
        ("2 1\n2\n", "a.metis", "there must be a line for each of 2 nodes, and there are 1"),
        ("2 2\n2\n1\n", "a.metis", "promises 2 links, and there are 1"),
        ("2 1\n3\n1\n", "a.metis", "node 1 names the node 3; nodes are 1 to 2"),
        ("2 1\n2\n\n", "a.metis", "the graph is directed"),
        ("2 1\nx\n1\n", "a.metis", "line 2 must hold whole numbers: x"),
        ("2 1 7\n2\n1\n", "a.metis", "the form must be three digits 0 or 1, not 007"),
        ("2\n", "a.metis", "the first line must say how many"),
        (SNDLIB.replace("( Gdansk Warsaw ) 0", "( Gdansk Krakow ) 0"), "a.txt", "names the node Krakow"),
        (SNDLIB.replace("LINKS", "EDGES"), "a.txt", "it has no section LINKS"),
        (SNDLIB.replace("18.60", "east"), "a.txt", "the node Gdansk is at east 54.20, which are no numbers"),
        (SNDLIB.replace("Warsaw ( 21", "Gdansk ( 21"), "a.txt", "the node Gdansk is there twice"),
        (SNDLIB.replace("Link_0_10 (", "Link_0_10"), "a.txt", "this is not a link: Link_0_10 Gdansk"),
        (SNDLIB_XML.replace("networkStructure", "structure"), "a.xml", "no networkStructure of SNDlib's"),
        (
            SNDLIB_XML.replace("<target>Warsaw", "<target>Krakow"),
            "a.xml",
            "the link Link_0_10 names the node Krakow",
        ),
        (SNDLIB_XML.replace('id="Warsaw"', 'id="Gdansk"'), "a.xml", "the node Gdansk is there twice"),
        ("<root/>", "a.xml", "it has no networkStructure"),
        (BRITE.replace("E_RT\tU", "E_RT\tD"), "a.brite", "the graph is directed"),
        (BRITE.replace("( 3 )", "( 4 )"), "a.brite", "it promises 4 nodes, and has 3"),
        (BRITE.replace("0\t0\t1\t725.6", "0\t0\t9\t725.6"), "a.brite", "names the node 9"),
        (
            BRITE.replace("0\t711.00\t339.00\t2\t2\t-1\tRT_NODE", "0"),
            "a.brite",
            "line 5 is not one of the nodes: 0",
        ),
        ("1|2|5\n", "a.as-rel", "line 1 is not two systems and their relation: 1|2|5"),
        ("1 Albany\n", "a.cch", "line 1 is not a router: 1 Albany"),
        ("1 @A -> <2>\n", "a.cch", "router 1 names the node 2"),
        ("a b\n", "a.intra", "line 1 is not two routers and a number"),
        ("a b c\n", "a.intra", "line 1: c is not a number"),
        ("a b 1\nb a 2\n", "a.intra", "line 2: b - a has another number the other way round"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(write, text, name, words):
    with pytest.raises(BadValue) as caught:
        file(2, path=write(text, name))
    assert caught.value.key == "path"
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_ending_and_every_sign_names_a_reader():
    assert set(ENDINGS.values()) == set(READERS)


@pytest.mark.parametrize("text", ["", "\n\n", "\x00", "\xff" * 20])
@pytest.mark.parametrize("ending", ENDINGS)
def test_rubbish_is_refused_and_never_breaks(write, text, ending):
    with pytest.raises(BadValue):
        file(2, path=write(text, f"a{ending}"))


@given(n=st.integers(2, 12), seed=st.integers(0, 10**6))
@settings(deadline=None, max_examples=25)
def test_what_libraries_write_is_read_back(tmp_path_factory, n, seed):
    folder = tmp_path_factory.mktemp("written")
    graph = nx.gnp_random_graph(n, 0.6, seed=seed)
    graph = nx.compose(graph, nx.path_graph(n))
    nx.write_gml(graph, folder / "a.gml")
    nx.write_adjlist(graph, folder / "a.adjlist")
    nx.write_pajek(graph, folder / "a.net")
    scipy.io.mmwrite(
        folder / "a.mtx", scipy.sparse.coo_array(nx.to_scipy_sparse_array(graph, dtype=np.int64))
    )
    lines = [f"{n} {graph.number_of_edges()}", *(" ".join(str(j + 1) for j in graph[i]) for i in range(n))]
    (folder / "a.metis").write_text("\n".join(lines) + "\n")
    wanted = sorted(tuple(sorted(edge)) for edge in graph.edges)
    for name in ("a.gml", "a.adjlist", "a.net", "a.mtx", "a.metis"):
        assert kind(name, (folder / name).read_bytes()) == ENDINGS[f".{name[2:]}"]
        assert sorted(file(n, path=str(folder / name)).edges) == wanted, name
