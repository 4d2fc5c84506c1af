"""Graphs from files of many formats, told by content or ending; ``docs/networks.md`` has a table of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from fedsim.errors import MISSING, BadValue
from topologies.graphml import about_nodes, parse
from topologies.readers import lists, markup, matrices, pajek, plain, sndlib
from topologies.readers.net import LINK_KEYS, Net

__all__ = ["LINK_KEYS", "Net", "kind", "read"]


def _graphml(content: bytes) -> Net:
    labels, links, directed = parse(content, LINK_KEYS)
    if directed:
        hint = 'links work both ways: edgedefault="undirected"'
        raise BadValue("path", MISSING, "the graph is directed", hint)
    about = about_nodes(content)
    places = {
        label: (float(data[x]), float(data[y]))
        for label, data in about.items()
        for x, y in [markup.AXES]
        if x in data and y in data
    }
    names = {label: data["label"] for label, data in about.items() if "label" in data}
    return Net(labels, links, places, names, parallel=True, geographic=bool(places) or None)


READERS: dict[str, Callable[[bytes], Net]] = {
    "GraphML": _graphml,
    "GML": markup.gml,
    "Pajek": pajek.read,
    "edge list": lists.edges,
    "adjacency list": lists.adjacency,
    "Matrix Market": matrices.market,
    "METIS": matrices.metis,
    "SNDlib XML": sndlib.xml,
    "SNDlib native": sndlib.native,
    "BRITE": plain.brite,
    "CAIDA as-rel": lists.relations,
    "Rocketfuel map": plain.rocketfuel,
    "Rocketfuel links": lists.intra,
}
"""What reads a format."""

ENDINGS = {
    ".graphml": "GraphML",
    ".gml": "GML",
    ".net": "Pajek",
    ".paj": "Pajek",
    ".edgelist": "edge list",
    ".edges": "edge list",
    ".txt": "edge list",
    ".adjlist": "adjacency list",
    ".mtx": "Matrix Market",
    ".metis": "METIS",
    ".graph": "METIS",
    ".xml": "SNDlib XML",
    ".sndlib": "SNDlib native",
    ".brite": "BRITE",
    ".as-rel": "CAIDA as-rel",
    ".cch": "Rocketfuel map",
    ".intra": "Rocketfuel links",
}
"""What a file is by its ending, if its content does not say."""

LOOSE = (".txt", ".xml", ".net", "")
"""Endings that many formats have: content decides."""

SIGNS = {
    "GraphML": r"\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)*<graphml\b",
    "SNDlib XML": r"\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)*<network\b",
    "SNDlib native": r"\s*\?SNDlib native format",
    "Matrix Market": r"%%MatrixMarket",
    "BRITE": r"\s*Topology\s*:\s*\(",
    "Pajek": r"(\s*(%[^\n]*|\*network[^\n]*)?\n)*\s*\*vertices\b",
    "GML": r"(\s*(#[^\n]*|creator[^\n]*|version[^\n]*)?\n)*\s*graph\s*\[",
    "CAIDA as-rel": r"(#[^\n]*\n)*[0-9]+\|[0-9]+\|(-1|0|1)\b",
}
"""How a file of a format begins."""


def kind(path: str, content: bytes) -> str:
    """Return the format of a file.

    Raises:
        BadValue: if nothing tells, or its content is of another format than its ending.

    >>> kind("a.txt", b"0 1"), kind("a.txt", b"%%MatrixMarket matrix"), kind("20240101.as-rel2.txt", b"1|2|0")
    ('edge list', 'Matrix Market', 'CAIDA as-rel')
    """
    start = content[:4096].decode("utf-8-sig", "replace")
    found = next((one for one, sign in SIGNS.items() if re.match(sign, start, re.I | re.S)), None)
    ending = Path(path).suffix.lower()
    named = ENDINGS.get(ending)
    if found is None and named is None:
        raise BadValue("path", MISSING, f"must end in {', '.join(ENDINGS)}")
    if found is not None and named is not None and found != named and ending not in LOOSE:
        raise BadValue("path", MISSING, f"ends in {ending}, and holds {found}, not {named}")
    return found or named or ""


def read(path: str, content: bytes) -> Net:
    """Return what a file says.

    Raises:
        ValueError: with what is wrong, and where; also as a BadValue, with a hint.
    """
    return READERS[kind(path, content)](content)
