"""Formats with sections or lines of their own: BRITE's generator, and Rocketfuel's maps."""

from __future__ import annotations

import re

from fedsim.errors import MISSING, BadValue, clip
from topologies.readers.net import Link, Net, known, lines

SECTION = re.compile(r"(Nodes|Edges)\s*:\s*\(\s*([0-9]+)\s*\)", re.I)

ROUTER = re.compile(r"(-?[0-9]+)\s+@(\S+)(.*?)->(.*)")
"""A router of a map: number, place, what it is, and its neighbours."""


def brite(content: bytes) -> Net:
    r"""Read what BRITE writes: a link's delay in milliseconds and its bandwidth in Mbit/s.

    >>> text = b"Topology: ( 2 Nodes, 1 Edges )\nModel (1 - RTWaxman): 2\n\nNodes: (2)\n0 1 2 1 1 -1 RT_NODE\n"
    >>> brite(text + b"1 3 4 1 1 -1 RT_NODE\n\nEdges: (1)\n0 0 1 2.8 0.01 10.0 -1 -1 E_RT U\n").links
    [('0', '1', {'latency_ms': 0.01, 'mbps': 10.0})]
    """
    section, promised = "", {"nodes": 0, "edges": 0}
    places: dict[str, tuple[float, float]] = {}
    links: list[Link] = []
    for number, line in lines(content):
        head = SECTION.match(line)
        words = line.split()
        if head:
            section = head[1].lower()
            promised[section] = int(head[2])
        elif section == "nodes" and len(words) >= 3:
            places[words[0]] = float(words[1]), float(words[2])
        elif section == "edges" and len(words) >= 6:
            if words[-1] == "D":
                raise BadValue(
                    "path", MISSING, "the graph is directed", f"links work both ways, and line {number} is D"
                )
            a, b = (known(end, places, f"line {number}") for end in words[1:3])
            links.append((a, b, {"latency_ms": float(words[4]), "mbps": float(words[5])}))
        elif section:
            raise ValueError(f"line {number} is not one of the {section}: {clip(line)}")
    for name, found in (("nodes", len(places)), ("edges", len(links))):
        if found != promised[name]:
            raise ValueError(f"it promises {promised[name]} {name}, and has {found}")
    return Net(list(places), links, places, parallel=True, geographic=False)


def rocketfuel(content: bytes) -> Net:
    r"""Read a map: the routers of one network and their neighbours; those outside, with negative numbers, are left out.

    >>> rocketfuel(b"1 @Rome,+Italy bb (1) &1 -> <2> {-7} =r1.net r0\n2 @Oslo,+Norway (1) -> <1> =r2.net r0").links
    [('1', '2', {})]
    """
    rows = {}
    for number, line in lines(content):
        match = ROUTER.match(line)
        if match is None and not line.startswith("-"):
            raise ValueError(f"line {number} is not a router: {clip(line)}")
        if match is not None and not match[1].startswith("-"):
            rows[match[1]] = match[2], re.findall(r"<([0-9]+)>", match[4])
    links: list[Link] = [
        (label, known(other, rows, f"router {label}"), {})
        for label, (_, others) in rows.items()
        for other in others
        if int(other) > int(label) or label not in rows.get(other, ("", []))[1]
    ]
    return Net(list(rows), links, names={label: place for label, (place, _) in rows.items()})
