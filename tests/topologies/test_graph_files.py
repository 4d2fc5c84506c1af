from __future__ import annotations

from pathlib import Path

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim import parts
from fedsim.errors import BadValue
from topologies.files import file

GRAPHML = """<?xml version="1.0" encoding="UTF-8"?>
<graphml xmlns="http://graphml.graphdrawing.org/xmlns">
  <key id="k0" for="edge" attr.name="latency_ms" attr.type="double"><default>{default}</default></key>
  <key id="k1" for="edge" attr.name="mbps" attr.type="int"/>
  <key id="k2" for="node" attr.name="country" attr.type="string"/>
  <graph edgedefault="{kind}">
    <node id="n10"/> <node id="n2"><data key="k2">NO</data></node> <node id="n1"/>
    <edge source="n10" target="n2"><data key="k0">{latency}</data></edge>
    <edge source="n1" target="n2"><data key="k1">{mbps}</data></edge>
    {more}
  </graph>
</graphml>
"""


def graphml(kind="undirected", default="7", latency="2.5", mbps="100", more=""):
    return GRAPHML.format(kind=kind, default=default, latency=latency, mbps=mbps, more=more)


@pytest.fixture
def write(tmp_path):
    def write(text: str, name: str = "net.edges") -> str:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def refusal(n: int, path: str) -> BadValue:
    with pytest.raises(BadValue) as caught:
        file(n, path=path)
    assert (caught.value.key, caught.value.value) == ("path", path)
    return caught.value


def test_a_plain_edge_list(write):
    graph = file(3, path=write("a b\nb c\n"))
    assert list(graph.nodes(data="name")) == [(0, "a"), (1, "b"), (2, "c")]
    assert list(graph.edges(data=True)) == [(0, 1, {}), (1, 2, {})]


@pytest.mark.parametrize("name", ["net.edgelist", "net.edges", "net.txt", "NET.TXT"])
def test_edge_lists_are_known_by_their_ending(write, name):
    assert file(2, path=write("0 1", name)).number_of_edges() == 1


def test_links_carry_latency_and_bandwidth_as_floats(write):
    text = """# three sites
    oslo rome latency_ms=20 mbps=1e3   # by sea
    rome bern {'mbps': 100, 'latency_ms': 0, 'weight': 3}

    bern oslo mbps=0.5
    """
    graph = file(3, path=write(text))
    assert dict(graph.nodes(data="name")) == {0: "bern", 1: "oslo", 2: "rome"}
    assert graph.edges[1, 2] == {"latency_ms": 20.0, "mbps": 1000.0}
    assert graph.edges[0, 2] == {"latency_ms": 0.0, "mbps": 100.0}
    assert graph.edges[0, 1] == {"mbps": 0.5}
    assert {type(v) for _, _, data in graph.edges(data=True) for v in data.values()} == {float}


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("10 9\n9 100\n100 1", ["1", "9", "10", "100"]),
        ("n10 n9\nn9 n100\nn100 n1", ["n1", "n9", "n10", "n100"]),
        ("7 b\nb a\na 70", ["7", "70", "a", "b"]),
        ("01 1\n1 2\n2 x1y10\nx1y10 x1y9", ["01", "1", "2", "x1y9", "x1y10"]),
    ],
)
def test_labels_are_numbered_in_their_natural_order(write, text, names):
    graph = file(len(names), path=write(text))
    assert [name for _, name in graph.nodes(data="name")] == names


def test_the_order_of_the_lines_does_not_matter(write):
    lines = ["3 1 mbps=5", "1 2", "2 3 latency_ms=4"]
    first = file(3, path=write("\n".join(lines), "a.txt"))
    second = file(3, path=write("\n".join(reversed(lines)), "b.txt"))
    assert list(first.edges(data=True)) == list(second.edges(data=True))
    assert list(first.edges) == [(0, 1), (0, 2), (1, 2)]


def test_a_link_listed_both_ways_counts_once(write):
    graph = file(2, path=write("a b mbps=8\nb a mbps=8.0\n"))
    assert list(graph.edges(data=True)) == [(0, 1, {"mbps": 8.0})]


def test_a_byte_order_mark_is_no_part_of_a_label(tmp_path):
    path = tmp_path / "net.txt"
    path.write_text("a b", encoding="utf-8-sig")
    assert file(2, path=str(path)).nodes[0]["name"] == "a"


def test_graphml_with_defaults_and_other_attributes(write):
    graph = file(3, path=write(graphml(), "net.graphml"))
    assert list(graph.nodes(data=True)) == [(0, {"name": "n1"}), (1, {"name": "n2"}), (2, {"name": "n10"})]
    assert graph.edges[1, 2] == {"latency_ms": 2.5}
    assert graph.edges[0, 1] == {"latency_ms": 7.0, "mbps": 100.0}


def test_parallel_graphml_links_that_agree_are_one(write):
    more = '<edge source="n2" target="n10"><data key="k0">2.50</data></edge>'
    graph = file(3, path=write(graphml(more=more), "net.graphml"))
    assert graph.number_of_edges() == 2


@pytest.mark.parametrize("writer", [nx.write_graphml, nx.write_edgelist])
@settings(max_examples=20, deadline=None)
@given(n=st.integers(2, 14), seed=st.integers(0, 1000))
def test_what_networkx_writes_is_read_back(tmp_path_factory, writer, n, seed):
    graph = nx.random_labeled_tree(n, seed=seed)
    for a, b in graph.edges:
        graph.edges[a, b].update(latency_ms=float(a + b), mbps=1.0 + a, weight=3)
    ending = "graphml" if writer is nx.write_graphml else "edgelist"
    path = str(tmp_path_factory.mktemp("trees") / f"tree.{ending}")
    writer(graph, path)
    read = file(n, path=path)
    assert {frozenset(edge) for edge in read.edges} == {frozenset(edge) for edge in graph.edges}
    for a, b in graph.edges:
        assert read.edges[a, b] == {"latency_ms": float(a + b), "mbps": 1.0 + a}
    assert [name for _, name in read.nodes(data="name")] == [str(i) for i in range(n)]


@pytest.mark.parametrize(
    ("attribute", "needs", "shown"),
    [
        ("mbps=0", "above 0", "'0'"),
        ("mbps=-3", "above 0", "'-3'"),
        ("mbps=fast", "above 0", "'fast'"),
        ("latency_ms=-0.1", "at least 0", "'-0.1'"),
        ("latency_ms=nan", "at least 0", "'nan'"),
        ("latency_ms=inf", "at least 0", "'inf'"),
        ("latency_ms=", "at least 0", "''"),
        ("{'mbps': None}", "above 0", "None"),
        ("{'mbps': [3]}", "above 0", "[3]"),
    ],
)
def test_a_bad_number_is_refused_with_its_link(write, attribute, needs, shown):
    error = refusal(3, write(f"a b\nb c {attribute}\n"))
    key = "mbps" if "mbps" in attribute else "latency_ms"
    assert error.rule == f"link b - c: {key} must be a number {needs}, is {shown}"


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"mbps": "0"}, "link n1 - n2: mbps must be a number above 0, is '0'"),
        ({"mbps": "quick"}, "link n1 - n2: mbps must be a number above 0, is 'quick'"),
        ({"latency": "-1"}, "link n10 - n2: latency_ms must be a number at least 0, is '-1'"),
        ({"latency": ""}, "link n10 - n2: latency_ms must be a number at least 0, is ''"),
        ({"default": "slow"}, "link n2 - n1: latency_ms must be a number at least 0, is 'slow'"),
        ({"more": '<edge source="n1" target="n1"/>'}, "node n1 is linked to itself"),
        (
            {"more": '<edge source="n2" target="n1"/>'},
            "link n2 - n1 is there twice, once with mbps and once without",
        ),
    ],
)
def test_a_bad_graphml_link_is_refused_with_its_place(write, change, rule):
    # NetworkX may name the ends of a link either way round.
    def ends(text: str) -> list[str]:
        return sorted(text.replace(":", " ").split())

    assert ends(refusal(3, write(graphml(**change), "net.graphml")).rule) == ends(rule)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("lonely", "line 2 is not a link (lonely is linked to nothing)"),
        ("a c 3.5", "line 2 is not a link (3.5: "),
        ("a c latency=5", "did you mean latency_ms?"),
        ("a c latency_ms", "did you mean latency_ms?"),
        ("a c {'mbps': ", "line 2 is not a link ("),
        ("a c {3}", "line 2 is not a link ("),
        ("a c {'mbps': open('x')}", "line 2 is not a link ("),
    ],
)
def test_a_line_that_is_no_link_is_refused_with_its_number(write, line, reason):
    error = refusal(3, write(f"a b\n{line}\n"))
    assert reason in error.rule
    assert error.hint == "write: a b latency_ms=20 mbps=100"


def test_a_link_to_oneself_is_refused(write):
    assert refusal(2, write("a b\nb b\n")).rule == "node b is linked to itself"


def test_a_link_listed_twice_must_say_the_same(write):
    error = refusal(2, write("a b mbps=8\nb a mbps=9\n"))
    assert error.rule == "link b - a is listed twice with different values"


def test_another_number_of_nodes_is_refused_with_both_numbers(write):
    assert refusal(5, write("a b\nb c")).rule == "the file has 3 nodes, but the experiment has 5"
    assert refusal(2, write("# nothing yet\n")).rule == "the file has 0 nodes, but the experiment has 2"


def test_a_disconnected_file_is_refused(write):
    error = refusal(5, write("a b\nc d\nd e"))
    assert error.rule == "gives 2 components, the largest with 3 of 5 nodes"
    assert error.hint == "add the missing links to the file"


def test_an_isolated_graphml_node_is_refused(write):
    error = refusal(4, write(graphml(more='<node id="n3"/>'), "net.graphml"))
    assert error.rule == "gives 2 components, the largest with 3 of 4 nodes"


def test_a_directed_graph_is_refused(write):
    error = refusal(3, write(graphml(kind="directed"), "net.graphml"))
    assert error.rule == "the graph is directed"
    assert "undirected" in error.hint


def test_a_directed_link_in_an_undirected_graph_is_refused_and_the_other_way_round_it_is_fine(write):
    arrow = '<edge source="n1" target="n10" directed="true"/>'
    assert refusal(3, write(graphml(more=arrow), "net.graphml")).rule == "the graph is directed"
    both = graphml(kind="directed").replace("<edge ", '<edge directed="false" ')
    assert file(3, path=write(both, "net.graphml")).number_of_edges() == 2


def test_a_missing_file_is_refused(tmp_path):
    assert refusal(3, str(tmp_path / "none.graphml")).rule == "there is no such file"
    assert refusal(3, str(tmp_path / "none.edges")).rule == "there is no such file"


def test_an_unknown_ending_is_refused(write):
    assert refusal(2, write("a b", "net.csv")).rule.startswith("must end in .graphml, .gml,")


def test_a_folder_is_refused(tmp_path):
    folder = tmp_path / "net.txt"
    folder.mkdir()
    assert refusal(2, str(folder)).rule.startswith("cannot be read (")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<graphml",
        "<html/>",
        "a b",
        graphml().replace('id="k1"', 'id="k9"'),
    ],
)
def test_unreadable_graphml_is_refused(write, text):
    assert refusal(3, write(text, "net.graphml")).rule.startswith("cannot be read (")


def test_bytes_that_are_no_text_are_refused(tmp_path):
    path = tmp_path / "net.txt"
    path.write_bytes(b"a b\n\xff\xfe c")
    assert refusal(3, str(path)).rule.startswith("cannot be read (")


def test_fewer_than_two_nodes_are_refused(write):
    with pytest.raises(BadValue, match="n: 1: a topology needs at least 2 nodes"):
        file(1, path=write("a b"))


def test_the_topology_named_file_is_found_and_needs_a_path(write):
    part = parts.find("topologies", "file")
    assert len(parts.call(part, {"path": write("a b")}, {"n": 2, "seed": 0})) == 2
    with pytest.raises(BadValue, match="path: is required"):
        parts.call(part, {}, {"n": 2, "seed": 0})
    with pytest.raises(BadValue, match="path"):
        parts.call(part, {"path": Path("net.txt")}, {"n": 2, "seed": 0})
