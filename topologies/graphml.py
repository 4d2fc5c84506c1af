"""GraphML files, read whole: what a list of links cannot hold is refused by name, and nothing is dropped.

See http://graphml.graphdrawing.org/specification.html. NetworkX's own reader loses defaults of keys that are for all
kinds of elements, nested graphs, and every graph but the first.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

Link = tuple[str, str, dict[str, Any]]

REFUSED = {
    "graph": "nested graphs",
    "hyperedge": "hyperedges",
    "port": "ports",
    "locator": "parts in other files",
}
"""What an undirected graph of nodes and links does not have."""
FOR_EDGES = ("edge", "all")


@dataclass(frozen=True)
class _Key:
    """What a ``<key>`` declares: a name, what it is for, and the value of whoever has none of its own."""

    name: str
    about: str
    default: str | None


def parse(content: bytes, names: Collection[str] = ()) -> tuple[list[str], list[Link], bool]:
    """Return what a GraphML file says.

    Args:
        content: the file.
        names: attributes that only links may have.

    Returns:
        The ids of the nodes, in the file's order; the links, with their attributes by name as text, defaults
        included; and whether any link has a direction.

    Raises:
        ElementTree.ParseError: if it is not XML.
        ValueError: if it is not GraphML, as with a key inside of a graph, or has what :data:`REFUSED` names, or more
            than one graph, or says something twice, or gives anything else what only links may have.

    >>> parse(b'''<graphml><key id="k" attr.name="latency_ms"><default>250</default></key>
    ... <graph edgedefault="undirected"><node id="a"/><node id="b"/><edge source="a" target="b"/></graph></graphml>''')
    (['a', 'b'], [('a', 'b', {'latency_ms': '250'})], False)
    """
    root = ElementTree.fromstring(content)
    if _tag(root) != "graphml":
        raise ValueError(f"it is {_tag(root)}, not graphml")
    graphs = list(_children(root, "graph"))
    if len(graphs) != 1:
        raise ValueError(f"it holds {len(graphs)} graphs, and must hold one")
    keys = _keys(root)
    _refuse(graphs[0])
    nodes = _nodes(graphs[0])
    _only_links(graphs[0], keys, names)
    default = graphs[0].get("edgedefault", "")
    if default not in ("directed", "undirected"):
        raise ValueError(f"edgedefault must be directed or undirected, not {default or 'missing'}")
    edges = list(_children(graphs[0], "edge"))
    directed = {"directed": "true", "undirected": "false"}[default]
    arrows = any(edge.get("directed", directed) not in ("false", "0") for edge in edges)
    return nodes, [_link(edge, keys, set(nodes)) for edge in edges], arrows


def about_nodes(content: bytes) -> dict[str, dict[str, str]]:
    """Return what a GraphML file that :func:`parse` has accepted says of its nodes: text by name, by id."""
    root = ElementTree.fromstring(content)
    keys, graph = _keys(root), next(_children(root, "graph"))
    return {
        node.attrib["id"]: _data(node, keys, "the node", ("node", "all")) for node in _children(graph, "node")
    }


def _tag(element: Element) -> str:
    """Return an element's name; those of other vocabularies (``y:ShapeNode``) keep their namespace."""
    space, _, name = element.tag.rpartition("}")
    return name if not space or "graphml.graphdrawing.org" in space else element.tag


def _children(element: Element, tag: str) -> Iterator[Element]:
    return (child for child in element if _tag(child) == tag)


def _keys(root: Element) -> dict[str, _Key]:
    """Return what is declared, by id; a key that does not say what it is for is for all."""
    found: dict[str, _Key] = {}
    for key in _children(root, "key"):
        id, default = key.get("id", ""), next(_children(key, "default"), None)
        if id in found:
            raise ValueError(f"the key {id} is declared twice")
        text = None if default is None else _text(default)
        found[id] = _Key(key.get("attr.name", id), key.get("for", "all"), text)
    return found


def _text(element: Element) -> str:
    return (element.text or "").strip()


def _refuse(graph: Element) -> None:
    if next(_children(graph, "key"), None) is not None:
        raise ValueError("a graph holds a key, and keys stand before the graph, in graphml")
    for owner in (graph, *_children(graph, "node"), *_children(graph, "edge")):
        for child in owner:
            if _tag(child) in REFUSED:
                where = owner.get("id") or _tag(owner)
                raise ValueError(f"{where} holds a {_tag(child)}, and {REFUSED[_tag(child)]} are not links")
    for edge in _children(graph, "edge"):
        if edge.get("sourceport") or edge.get("targetport"):
            raise ValueError(f"the edge {_ends(edge)} names a port, and ports are not links")


def _only_links(graph: Element, keys: dict[str, _Key], names: Collection[str]) -> None:
    """Refuse what would be lost: a latency of a node, or of the graph."""
    for key in keys.values():
        if key.name in names and key.about not in FOR_EDGES:
            raise ValueError(f"{key.name} is declared for {key.about}, and only edges have it")
    for owner in (graph, *_children(graph, "node")):
        who = f"the {_tag(owner)} {owner.get('id', '')}".strip()
        for name in _data(owner, keys, who, (_tag(owner), "all")):
            if name in names:
                raise ValueError(f"{who} has {name}, and only edges have it")


def _ends(edge: Element) -> str:
    return f"{edge.get('source')} - {edge.get('target')}"


def _nodes(graph: Element) -> list[str]:
    found: dict[str, None] = {}
    for node in _children(graph, "node"):
        id = node.get("id")
        if id is None or id in found:
            raise ValueError("a node has no id" if id is None else f"the node {id} is there twice")
        found[id] = None
    return list(found)


def _link(edge: Element, keys: dict[str, _Key], nodes: set[str]) -> Link:
    for end in ("source", "target"):
        if edge.get(end) not in nodes:
            raise ValueError(f"the edge {_ends(edge)} ends at a node that is not there")
    own = _data(edge, keys, f"the edge {_ends(edge)}", FOR_EDGES)
    given: dict[str, str] = {}
    for key in keys.values():
        if key.about not in FOR_EDGES or key.default is None or key.name in own:
            continue
        if given.setdefault(key.name, key.default) != key.default:
            raise ValueError(f"{key.name} has two defaults, {given[key.name]} and {key.default}")
    return edge.attrib["source"], edge.attrib["target"], {**given, **own}


def _data(element: Element, keys: dict[str, _Key], who: str, kinds: tuple[str, str]) -> dict[str, str]:
    """Return an element's own attributes by name."""
    found: dict[str, str] = {}
    for data in _children(element, "data"):
        key = keys.get(data.get("key", ""))
        if key is None:
            raise ValueError(f"{who} has data of the key {data.get('key')}, which is not declared")
        if key.about not in kinds:
            raise ValueError(f"{who} has {key.name}, which is declared for {key.about}")
        if key.name in found:
            raise ValueError(f"{who} has {key.name} twice")
        found[key.name] = _text(data)
    return found
