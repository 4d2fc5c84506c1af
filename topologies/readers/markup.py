"""GML files, read with NetworkX."""

from __future__ import annotations

import re
from typing import Any

import networkx as nx

from fedsim.errors import MISSING, BadValue
from topologies.readers.net import LINK_KEYS, VALUE, Link, Net

AXES = ("Longitude", "Latitude")
"""Where a node of the Topology Zoo is, in degrees."""


def gml(content: bytes) -> Net:
    """Read a graph; nodes go by their ids, and links that are there twice are two, as in the Topology Zoo.

    >>> gml(b'graph [ node [ id 0 label "A" ] node [ id 1 ] edge [ source 0 target 1 latency_ms 2 ] ]').links
    [('0', '1', {'latency_ms': 2})]
    """
    text = content.decode("utf-8-sig")
    if not re.search(
        r"\bmultigraph\s+1", text
    ):  # NetworkX refuses a second link in a graph that does not say so
        text = re.sub(r"\bgraph\s*\[", "graph [ multigraph 1", text, count=1)
    try:
        graph: Any = nx.parse_gml(text, label=None)  # type: ignore[call-overload]
    except nx.NetworkXError as error:
        raise ValueError(str(error)) from error
    if graph.is_directed():
        raise BadValue("path", MISSING, "the graph is directed", "links work both ways: directed 0")
    keys = (*LINK_KEYS, VALUE)
    links: list[Link] = [
        (str(a), str(b), {k: v for k, v in data.items() if k in keys})
        for a, b, data in graph.edges(data=True)
    ]
    places = {
        str(node): (float(data[AXES[0]]), float(data[AXES[1]]))
        for node, data in graph.nodes(data=True)
        if all(axis in data for axis in AXES)
    }
    names = {str(node): str(data["label"]) for node, data in graph.nodes(data=True) if "label" in data}
    return Net(
        [str(node) for node in graph], links, places, names, parallel=True, geographic=bool(places) or None
    )
