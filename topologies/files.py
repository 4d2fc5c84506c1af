"""Graphs from files: GraphML and edge lists, with the latency and the bandwidth of each link."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import networkx as nx

from fedsim.errors import BadValue, did_you_mean
from topologies.graphs import Graph, ordered, require_connected, require_two

LINK_KEYS = ("latency_ms", "mbps")

_Links = Iterable[tuple[str, str, Mapping[str, Any]]]
_UNREADABLE = (
    OSError,
    ElementTree.ParseError,
    nx.NetworkXError,
    KeyError,
    TypeError,
    ValueError,
    SyntaxError,
)


def file(n: int, *, path: str) -> Graph:
    """Read a graph from a GraphML file or an edge list.

    A line of an edge list is ``a b``, ``a b latency_ms=20 mbps=100`` or, as NetworkX writes it,
    ``a b {'latency_ms': 20, 'mbps': 100}``; ``#`` begins a comment. GraphML files and dictionaries may carry
    further attributes, which are left out. A link may be listed again, either way round, if it says the same.

    Args:
        n: number of nodes that the file must have.
        path: the file, ending in .graphml, or in .edgelist, .edges or .txt.

    Returns:
        The graph over the nodes 0 … n-1, in the natural order of their labels (2 before 10, ``n2`` before
        ``n10``). Node attribute ``name`` is the label as text; link attributes, where given, are
        ``latency_ms`` (one way, milliseconds, at least 0) and ``mbps`` (megabits per second, above 0).

    Raises:
        BadValue: with the key ``path``, if there is no such file, or if it cannot be read, has another number
            of nodes, is directed or disconnected, links a node to itself, or gives a link a bad value.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile("w", suffix=".edges") as trio:
    ...     print("rome oslo latency_ms=20", "oslo bern", sep=chr(10), file=trio, flush=True)
    ...     graph = file(3, path=trio.name)
    >>> graph.nodes(data="name"), graph.edges[1, 2]
    (NodeDataView({0: 'bern', 1: 'oslo', 2: 'rome'}, data='name'), {'latency_ms': 20.0})
    """
    require_two(n)
    labels, links = _read(path)
    graph = _simple(path, labels, links)
    if len(graph) != n:
        raise BadValue("path", path, f"the file has {len(graph)} nodes, but the experiment has {n}")
    return require_connected(graph, "path", path, "add the missing links to the file")


def _read(path: str) -> tuple[list[str], _Links]:
    readers = {".graphml": _graphml, ".edgelist": _edge_list, ".edges": _edge_list, ".txt": _edge_list}
    reader = readers.get(Path(path).suffix.lower())
    if reader is None:
        raise BadValue("path", path, f"must end in {', '.join(readers)}")
    try:
        return reader(path)
    except FileNotFoundError:
        raise BadValue("path", path, "there is no such file") from None
    except BadValue:
        raise
    except _UNREADABLE as error:
        raise BadValue("path", path, f"cannot be read ({error})") from error


def _graphml(path: str) -> tuple[list[str], _Links]:
    root = ElementTree.parse(path).getroot()
    # As text, so that a bad number is reported with its link instead of by the parser.
    for key in root.iter():
        if key.tag.endswith("key"):
            key.set("attr.type", "string")
    graph = nx.parse_graphml(ElementTree.tostring(root, encoding="unicode"))
    if graph.is_directed():
        raise BadValue(
            "path", path, "the graph is directed", 'links work both ways: edgedefault="undirected"'
        )
    default = graph.graph["edge_default"]
    return list(graph), [(a, b, {**default, **data}) for a, b, data in graph.edges(data=True)]


def _edge_list(path: str) -> tuple[list[str], _Links]:
    links = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8-sig").splitlines(), start=1):
        words = line.partition("#")[0].split(maxsplit=2)
        if not words:
            continue
        try:
            links.append(_link(*words))
        except (TypeError, ValueError, SyntaxError) as error:
            hint = "write: a b latency_ms=20 mbps=100"
            raise BadValue("path", path, f"line {number} is not a link ({error})", hint) from error
    return [label for a, b, _ in links for label in (a, b)], links


def _link(a: str, b: str = "", data: str = "") -> tuple[str, str, dict[str, Any]]:
    if not b:
        raise ValueError(f"{a} is linked to nothing")
    if data.startswith("{"):
        return a, b, dict(ast.literal_eval(data))
    pairs = [word.partition("=") for word in data.split()]
    for key, equals, value in pairs:
        if key not in LINK_KEYS or not equals:
            raise ValueError(f"{key}{equals}{value}: {did_you_mean(key, LINK_KEYS)}")
    return a, b, {key: value for key, _, value in pairs}


def _simple(path: str, labels: Iterable[str], links: _Links) -> Graph:
    index = {label: i for i, label in enumerate(sorted(set(labels), key=_natural))}
    graph = Graph()
    graph.add_nodes_from((i, {"name": label}) for label, i in index.items())
    for a, b, data in links:
        link = {key: _number(path, a, b, key, data[key]) for key in LINK_KEYS if key in data}
        if a == b:
            raise BadValue("path", path, f"node {a} is linked to itself")
        if graph.has_edge(index[a], index[b]) and graph.edges[index[a], index[b]] != link:
            raise BadValue("path", path, f"link {a} - {b} is listed twice with different values")
        graph.add_edge(index[a], index[b], **link)
    return ordered(graph)


def _number(path: str, a: str, b: str, key: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    zero_is_fine = key == "latency_ms"
    if not math.isfinite(number) or number < 0 or (number == 0 and not zero_is_fine):
        least = "at least" if zero_is_fine else "above"
        raise BadValue("path", path, f"link {a} - {b}: {key} must be a number {least} 0, is {value!r}")
    return number


def _natural(label: str) -> tuple[list[str | int], str]:
    # Text and numbers alternate, so that like is compared with like.
    parts = re.split(r"([0-9]+)", label)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], label
