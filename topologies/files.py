"""Graphs from files, with the latency and the bandwidth of each link where the file gives them."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

from fedsim.errors import BadValue, clip
from topologies import readers
from topologies.graphs import Graph, ordered, require_connected, require_two
from topologies.readers.net import LINK_KEYS, VALUE, Link, Net

_UNREADABLE = (OSError, ElementTree.ParseError, ValueError, LookupError, TypeError, RecursionError)

Values = Literal["latency_ms", "mbps"]


def file(n: int, *, path: str, values: Values | None = None) -> Graph:
    """Read a graph from a file: GraphML, an edge list, or one of the other formats that docs/networks.md lists.

    A line of an edge list is ``a b``, ``a b latency_ms=20 mbps=100`` or, as NetworkX writes it,
    ``a b {'latency_ms': 20, 'mbps': 100}``; ``#`` begins a comment at the start of a word. What else a file says of
    its nodes and links is left out. Two links between the same nodes are one: where a format may have several
    (GraphML, GML, Pajek, SNDlib, BRITE), their capacities are added, and the latency is the least; where it lists a
    link twice (edge lists and the like), it must say the same. GraphML's defaults count; its nested graphs, hyperedges
    and ports are refused.

    Args:
        n: number of nodes that the file must have.
        path: the file; its content or its ending tells the format.
        values: what the numbers are that a format gives its links without saying what they mean: latency_ms or mbps;
            null leaves them out.

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
    graph = simple(path, read(path), values)
    if len(graph) != n:
        raise BadValue("path", path, f"the file has {len(graph)} nodes, but the experiment has {n}")
    return require_connected(graph, "path", path, "add the missing links to the file")


def read(path: str) -> Net:
    """Return what a file says.

    Raises:
        BadValue: with the key ``path``.
    """
    try:
        return readers.read(path, Path(path).read_bytes())
    except FileNotFoundError:
        raise BadValue("path", path, "there is no such file") from None
    except BadValue as error:
        raise BadValue("path", path, error.rule, error.hint) from error
    except _UNREADABLE as error:
        raise BadValue("path", path, f"cannot be read ({error})") from error


def simple(path: str, net: Net, values: Values | None = None) -> Graph:
    """Return the graph of a file, its nodes numbered in the natural order of their labels."""
    index = {label: i for i, label in enumerate(sorted(set(net.labels), key=_natural))}
    graph = Graph()
    graph.add_nodes_from((i, {"name": label}) for label, i in index.items())
    for label, (east, north) in degrees(net).items():
        graph.nodes[index[label]].update(longitude=east, latitude=north)
    for a, b, data in net.links:
        link = _link(path, (a, b, data), values)
        if a == b:
            raise BadValue("path", path, f"node {a} is linked to itself")
        ends = index[a], index[b]
        if not graph.has_edge(*ends):
            graph.add_edge(*ends, **link)
        elif net.parallel:
            graph.edges[ends].update(_merged(path, a, b, graph.edges[ends], link))
        elif graph.edges[ends] != link:
            raise BadValue("path", path, f"link {a} - {b} is listed twice with different values")
    return ordered(graph)


def degrees(net: Net) -> dict[str, tuple[float, float]]:
    """Return longitude and latitude by label, where the file's coordinates are that, and are on Earth."""
    off = any(not (abs(east) <= 360 and abs(north) <= 90) for east, north in net.places.values())
    return {} if net.geographic is False or off else dict(net.places)


def _merged(
    path: str, a: str, b: str, one: Mapping[str, float], other: Mapping[str, float]
) -> dict[str, float]:
    """Return what two links between the same nodes are together."""
    if set(one) != set(other):
        rule = f"link {a} - {b} is there twice, once with {' and '.join(sorted({*one} ^ {*other}))} and once without"
        raise BadValue("path", path, rule)
    merged = {}
    if "latency_ms" in one:
        merged["latency_ms"] = min(one["latency_ms"], other["latency_ms"])
    if "mbps" in one:
        merged["mbps"] = one["mbps"] + other["mbps"]
    return merged


def _link(path: str, link: Link, values: Values | None) -> dict[str, Any]:
    a, b, data = link
    _near_misses(path, a, b, data)
    given = {key: data[key] for key in LINK_KEYS if key in data}
    if values is not None and VALUE in data:
        given.setdefault(values, data[VALUE])
    return {key: _number(path, a, b, key, value) for key, value in given.items()}


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
