"""Graphs from files: GraphML and edge lists, with the latency and the bandwidth of each link."""

from __future__ import annotations

import ast
import difflib
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from fedsim.errors import BadValue, clip, did_you_mean
from topologies import graphml
from topologies.graphs import Graph, ordered, require_connected, require_two

LINK_KEYS = ("latency_ms", "mbps")

_Links = Iterable[tuple[str, str, Mapping[str, Any]]]
_UNREADABLE = (OSError, ElementTree.ParseError, ValueError, LookupError)
_NUMPY = re.compile(r"(np|numpy)\.(float[0-9]+|u?int[0-9]+|longdouble)")
"""How numpy 2 writes the kinds of its numbers."""


def file(n: int, *, path: str) -> Graph:
    """Read a graph from a GraphML file or an edge list.

    A line of an edge list is ``a b``, ``a b latency_ms=20 mbps=100`` or, as NetworkX writes it,
    ``a b {'latency_ms': 20, 'mbps': 100}``; ``#`` begins a comment at the start of a word. GraphML files and
    dictionaries may carry further attributes, which are left out. A link may be listed again, either way round, if it
    says the same. GraphML's defaults count; its nested graphs, hyperedges and ports are refused.

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
    labels, links, directed = graphml.parse(Path(path).read_bytes(), LINK_KEYS)
    if directed:
        raise BadValue(
            "path", path, "the graph is directed", 'links work both ways: edgedefault="undirected"'
        )
    return labels, links


def _edge_list(path: str) -> tuple[list[str], _Links]:
    links = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8-sig").splitlines(), start=1):
        # A # inside of a word is part of a label: what follows it must not be lost.
        words = re.split(r"(?:^|\s)#", line, maxsplit=1)[0].split(maxsplit=2)
        if not words:
            continue
        try:
            links.append(_link(*words))
        except ValueError as error:
            hint = "write: a b latency_ms=20 mbps=100"
            raise BadValue("path", path, f"line {number} is not a link ({error})", hint) from error
    return [label for a, b, _ in links for label in (a, b)], links


def _link(a: str, b: str = "", data: str = "") -> tuple[str, str, dict[str, Any]]:
    if not b:
        raise ValueError(f"{clip(a)} is linked to nothing")
    if data.startswith("{"):
        return a, b, _once(_written(data))
    pairs = [word.partition("=") for word in data.split()]
    for key, equals, value in pairs:
        if key not in LINK_KEYS or not equals:
            raise ValueError(f"{clip(key + equals + value)}: {did_you_mean(key, LINK_KEYS)}")
    return a, b, _once([(key, value) for key, _, value in pairs])


def _once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Make a dictionary of pairs in which no key comes twice."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{clip(key)} is there twice")
        found[key] = value
    return found


def _written(text: str) -> list[tuple[str, Any]]:
    """Return the pairs of a dictionary as Python writes it; what is not a link's is not looked at."""
    try:
        node = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ValueError(f"{clip(text)} is not a dictionary") from None
    if not isinstance(node, ast.Dict):
        raise ValueError(f"{clip(text)} is not a dictionary")
    pairs = []
    for key, value in zip(node.keys, node.values):
        name = key.value if isinstance(key, ast.Constant) else None
        if not isinstance(name, str):
            raise ValueError(f"{clip(text)} has a key that is not text")
        pairs.append((name, _value(value) if name in LINK_KEYS else None))
    return pairs


def _value(node: ast.expr) -> Any:
    """Return a literal; numpy 2 puts its own numbers' kind around it: ``np.float64(3.0)``."""
    match node:
        case ast.Call(func, [inner], []) if _NUMPY.fullmatch(ast.unparse(func)):
            node = inner
    try:
        return ast.literal_eval(node)
    except (TypeError, ValueError, SyntaxError, RecursionError, MemoryError):
        raise ValueError(f"{clip(ast.unparse(node))} is not a number") from None


def _simple(path: str, labels: Iterable[str], links: _Links) -> Graph:
    index = {label: i for i, label in enumerate(sorted(set(labels), key=_natural))}
    graph = Graph()
    graph.add_nodes_from((i, {"name": label}) for label, i in index.items())
    for a, b, data in links:
        _near_misses(path, a, b, data)
        link = {key: _number(path, a, b, key, data[key]) for key in LINK_KEYS if key in data}
        if a == b:
            raise BadValue("path", path, f"node {a} is linked to itself")
        if graph.has_edge(index[a], index[b]) and graph.edges[index[a], index[b]] != link:
            raise BadValue("path", path, f"link {a} - {b} is listed twice with different values")
        graph.add_edge(index[a], index[b], **link)
    return ordered(graph)


def _near_misses(path: str, a: str, b: str, data: Mapping[str, Any]) -> None:
    """Refuse an attribute that is a misspelt latency or bandwidth: left out, the link would have none."""
    for key in data:
        meant = difflib.get_close_matches(str(key).lower(), LINK_KEYS, n=1, cutoff=0.8)
        if meant and meant[0] not in data:
            raise BadValue(
                "path", path, f"link {a} - {b}: {clip(key)} is unknown", f"did you mean {meant[0]}?"
            )


def _number(path: str, a: str, b: str, key: str, value: Any) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    zero_is_fine = key == "latency_ms"
    if not math.isfinite(number) or number < 0 or (number == 0 and not zero_is_fine):
        least = "at least" if zero_is_fine else "above"
        raise BadValue(
            "path", path, f"link {a} - {b}: {key} must be a number {least} 0, is {clip(repr(value))}"
        )
    return number


def _natural(label: str) -> tuple[list[str | int], str]:
    # Text and numbers alternate, so that like is compared with like.
    parts = re.split(r"([0-9]+)", label)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], label
