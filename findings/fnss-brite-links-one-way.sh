#!/usr/bin/env bash
# fnss 0.9.1 with networkx 3.6.1: parse_brite makes a one-way link of every line of a BRITE file, also of those that
# the file marks as undirected (U).
#
# Seen: a chain 0 - 1 - 2 written by BRITE's rules, all lines ending in U: 2 reaches 0, but 0 does not reach 2.
# Expected: links in both directions. The last field of an edge line in an exported file is the direction, D or U
# (comment at the head of BRITE's class Export.BriteExport: "[EdgeType] [Direction]"). FNSS documents an argument
# "directed: If True, the topology is parsed as directed topology", true unless set, and does not read the field.
# Why it matters: which way a link works is an accident of which end the generator named first. Answers,
# acknowledgements and gossip have no way back, and centralities are those of another graph.
# Right value: parse_brite(path, directed=False), after checking that no line ends in D.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet fnss==0.9.1 networkx==3.6.1 numpy==2.4.6
"$work/venv/bin/python" -W ignore - "$work/chain.brite" <<'PYTHON'
import sys
from importlib.metadata import version
from pathlib import Path

import fnss
import networkx as nx

NODES = [(0, 10.0, 20.0, 1, 1, -1), (1, 30.0, 40.0, 2, 2, -1), (2, 50.0, 60.0, 1, 1, -1)]
EDGES = [(0, 1, 0, 28.28, 0.094, 10.0, -1, -1), (1, 2, 1, 28.28, 0.094, 10.0, -1, -1)]
lines = [
    "Topology: ( 3 Nodes, 2 Edges )",
    "Model (1 - RTWaxman):  3 1000 100 1  2  0.15 0.2 1 1 10.0 1024.0",
    "",
]
lines += ["Nodes: ( 3 )", *("\t".join(map(str, [*node, "RT_NODE"])) for node in NODES), "", ""]
lines += ["Edges: ( 2 )", *("\t".join(map(str, [*edge, "E_RT", "U"])) for edge in EDGES), ""]
Path(sys.argv[1]).write_text("\n".join(lines))

print("fnss", version("fnss"), "networkx", nx.__version__)
graph = fnss.parse_brite(sys.argv[1])
both = fnss.parse_brite(sys.argv[1], directed=False)
print("links:", sorted(graph.edges()), "expected: 0 - 1 and 1 - 2, both ways")
print(
    "from 2 to 0:", nx.has_path(graph, 2, 0), "from 0 to 2:", nx.has_path(graph, 0, 2), "expected: True True"
)
print("with directed=False:", nx.has_path(both, 2, 0), nx.has_path(both, 0, 2))
assert sorted(graph.edges()) == [(1, 0), (2, 1)], "the direction field is read now"
assert nx.has_path(both, 0, 2)
PYTHON
