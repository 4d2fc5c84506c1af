#!/usr/bin/env bash
# networkx 3.6.1: read_pajek / parse_pajek take the second link section of a file for more of the first one,
# and read *Arcslist and *Edgeslist as if they were *Arcs and *Edges.
#
# Seen: *Arcs followed by *Edges gives a two-way link in one direction only; *Edges followed by *Arcs gives a
# one-way link in both directions; "1 2 3 4" below *Arcslist gives one link 1 -> 2 of weight 3, where the format
# means 1 -> 2, 1 -> 3 and 1 -> 4. No warning, no error.
# Expected: the Pajek manual ("Networks" under "Data objects"; Batagelj and Mrvar) defines the arc list as
# "1 2 3 - line from 1 to 2 and from 1 to 3", and its page on the format gives an example with *Arcs and *Edges in
# one file. NetworkX documents that it handles "directed and undirected graphs" and points to that format.
# Why it matters: a gossip or routing simulation on such a file loses links, or sends one way where nobody can
# answer, and a neighbour's number becomes a bandwidth.
# Right value: split the file at the lines that begin with "*" and read one section at a time, or have Pajek save
# it with only *Arcs; then compare the number of links with the file's.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet networkx==3.6.1
"$work/venv/bin/python" - <<'PYTHON'
import networkx as nx

print("networkx", nx.__version__)
VERTICES = '*Vertices 4\n1 "a"\n2 "b"\n3 "c"\n4 "d"\n'


def read(title, sections, expected):
    graph = nx.parse_pajek(VERTICES + sections)
    kind = "directed" if graph.is_directed() else "undirected"
    links = [(a, b, data["weight"]) for a, b, data in graph.edges(data=True)]
    print(f"{title}\n  got      {kind} {links}\n  expected {expected}")
    return kind, links


arcs, edges = "*Arcs\n1 2 5\n", "*Edges\n3 4 7\n"
first = read("arcs, then edges", arcs + edges, "a->b 5, c->d 7 and d->c 7")
assert first == ("directed", [("a", "b", 5.0), ("c", "d", 7.0)]), "c-d now works both ways"
second = read("edges, then arcs", edges + arcs, "a->b 5, c->d 7 and d->c 7")
assert second == ("undirected", [("a", "b", 5.0), ("c", "d", 7.0)]), "a->b is now one way"
third = read("arc list", "*Arcslist\n1 2 3 4\n", "a->b, a->c, a->d, each of weight 1")
assert third == ("directed", [("a", "b", 3.0)]), "the arc list is now read as a list"
fourth = read("edge list", "*Edgeslist\n1 2 3 4\n", "a-b, a-c, a-d, each of weight 1")
assert fourth == ("undirected", [("a", "b", 3.0)]), "the edge list is now read as a list"
PYTHON
