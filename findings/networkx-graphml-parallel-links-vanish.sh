#!/usr/bin/env bash
# networkx 3.6.1: read_graphml drops one of two parallel edges when their ids are the same number (1 and 01), or
# when one has no id and the other's is 0; the one that is left has the later one's data.
#
# Seen: a file with two edges between a and b is read as a graph with one edge, also with force_multigraph=True.
# Expected: two edges. In GraphML an edge's id is optional and is an NMTOKEN, so "1" and "01" are different names
# (GraphML primer, section on edges; graphml-structure.xsd). read_graphml documents that it returns "a multigraph
# when multiedges are in the graph", and that an edge without id and key gets "a default NetworkX multigraph edge
# key". In fact the ids are made integers (edge_key_type=int) and used as the multigraph's keys, where 0 is
# already the default key of the first edge without an id.
# Why it matters: redundant links are what failure experiments are about; here one has been cut before the start,
# and a capacity is halved, without a word.
# Right value: read_graphml(path, edge_key_type=str), which keeps "1", "01" and "0" apart; then count the edges.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet networkx==3.6.1
"$work/venv/bin/python" - <<'PYTHON'
import networkx as nx

print("networkx", nx.__version__)


def graphml(*edges):
    links = "".join(
        f'<edge {name} source="a" target="b"><data key="w">{mbps}</data></edge>' for name, mbps in edges
    )
    return (
        '<graphml xmlns="http://graphml.graphdrawing.org/xmlns">'
        '<key id="w" for="edge" attr.name="mbps" attr.type="int"/>'
        f'<graph edgedefault="undirected"><node id="a"/><node id="b"/>{links}</graph></graphml>'
    )


for names in (('id="1"', 'id="01"'), ("", 'id="0"')):
    text = graphml((names[0], 10), (names[1], 100))
    for force in (False, True):
        graph = nx.parse_graphml(text, force_multigraph=force)
        found = [mbps for _, _, mbps in graph.edges(data="mbps")]
        print(f"edges {names}, force_multigraph={force}: got {found}, expected [10, 100]")
        assert found == [100], "both edges are read now"
    kept = nx.parse_graphml(text, edge_key_type=str)
    assert sorted(mbps for _, _, mbps in kept.edges(data="mbps")) == [10, 100]
print("with edge_key_type=str both are there")
PYTHON
