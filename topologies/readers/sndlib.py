"""Networks of SNDlib, in both of its formats: nodes with coordinates, and links."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from fedsim.errors import clip
from topologies.readers.net import Link, Net, known

SPACE = "{http://sndlib.zib.de/network}"

NODE = re.compile(r"(\S+)\s*\(\s*(\S+)\s+(\S+)\s*\)")
LINK = re.compile(r"(\S+)\s*\(\s*(\S+)\s+(\S+)\s*\)")


def xml(content: bytes) -> Net:
    """Read an XML file. Capacities and costs are left out: SNDlib gives them no unit."""
    root = ElementTree.fromstring(content)
    structure = root.find(f"{SPACE}networkStructure")
    if structure is None:
        raise ValueError("it has no networkStructure of SNDlib's")
    found = structure.find(f"{SPACE}nodes")
    places: dict[str, tuple[float, float]] = {}
    labels = []
    for node in structure.iter(f"{SPACE}node"):
        label = node.get("id", "")
        if not label or label in labels:
            raise ValueError(f"the node {label or 'without an id'} is there twice or has no name")
        labels.append(label)
        x, y = (node.findtext(f"{SPACE}coordinates/{SPACE}{axis}") for axis in "xy")
        if x is not None and y is not None:
            places[label] = float(x), float(y)
    links: list[Link] = []
    for link in structure.iter(f"{SPACE}link"):
        ends = [(link.findtext(f"{SPACE}{end}") or "").strip() for end in ("source", "target")]
        a, b = (known(end, labels, f"the link {link.get('id')}") for end in ends)
        links.append((a, b, {}))
    kind = found.get("coordinatesType", "") if found is not None else ""
    return Net(
        labels, links, places, parallel=True, geographic={"geographical": True, "pixel": False}.get(kind)
    )


def native(content: bytes) -> Net:
    r"""Read a file in SNDlib's own format: the sections NODES and LINKS.

    >>> text = b"?SNDlib native format; type: network; version: 1.0\nNODES (\n A ( 1.5 50.0 )\n B ( 2 51 )\n)\n"
    >>> native(text + b"LINKS (\n L1 ( A B ) 0.00 0.00 0.00 0.00 ( )\n)\n").links
    [('A', 'B', {})]
    """
    text = re.sub(r"#[^\n]*", "", content.decode("utf-8-sig"))
    places: dict[str, tuple[float, float]] = {}
    for label, x, y in NODE.findall(_section(text, "NODES")):
        if label in places:
            raise ValueError(f"the node {label} is there twice")
        try:
            places[label] = float(x), float(y)
        except ValueError:
            raise ValueError(f"the node {label} is at {clip(f'{x} {y}')}, which are no numbers") from None
    links: list[Link] = []
    for line in _section(text, "LINKS").splitlines():
        match = LINK.match(line.strip())
        if match:
            a, b = (known(end, places, f"the link {match[1]}") for end in match.groups()[1:])
            links.append((a, b, {}))
        elif line.strip():
            raise ValueError(f"this is not a link: {clip(line.strip())}")
    return Net(list(places), links, places, parallel=True)


def _section(text: str, name: str) -> str:
    """Return what stands between the brackets of a section; those inside of it come in pairs."""
    start = re.search(rf"^\s*{name}\s*\(", text, re.M)
    if start is None:
        raise ValueError(f"it has no section {name}")
    depth, at = 1, start.end()
    while at < len(text) and depth:
        depth += {"(": 1, ")": -1}.get(text[at], 0)
        at += 1
    return text[start.end() : at - 1]
