"""Real networks as backbones: those of the package topohub, and those in files."""

from __future__ import annotations

import importlib.resources
import json
from typing import Any

from fedsim.errors import MISSING, BadValue, did_you_mean
from fedsim.parts import NotNegative, Positive, needed
from topologies.files import Values, degrees, read, simple
from topologies.graphs import Graph, require_connected
from topologies.sites import PerSite, Sites, Spread, attach, check_places, distance_km

US_PER_KM = 5.0
"""Light in glass takes about 5 microseconds for a kilometre."""

PLANES = ("gabriel",)
"""Families of topohub's whose places are on a plane, in kilometres, and nowhere on Earth."""


def topohub(
    n: int,
    *,
    key: str,
    spread: Spread = "even",
    server: Sites = "best",
    us_per_km: NotNegative = US_PER_KM,
    mbps: Positive | None = None,
    access_ms: NotNegative = 0.0,
    clients_per_site: PerSite | None = None,
    servers: int,
    seed: int,
) -> Graph:
    """Return a real network from the package topohub with clients at its sites; needs topohub.

    Routers stand at the sites and pass on what clients and server, or peers, send; they hold no data. The latency of a
    link of the backbone comes from its length. Peers talk to those at their own site and at neighbouring sites.

    Args:
        n: how many clients or peers there are, and servers after them.
        key: family and name, such as topozoo/Abilene, sndlib/germany50, backbone/europe or gabriel/25/0.
        spread: how clients are divided among the sites: even, random, or links, in proportion to the links of a site.
        server: the name or number of the server's site, or a list for several servers; best is where the mean latency
            to the clients is the least, to the nearest server where there are several.
        us_per_km: microseconds per kilometre; fibres are longer than they would have to be: 7.5 allows for half more.
        mbps: capacity of each link of the backbone in Mbit/s; null is network.edge_mbps, or unlimited.
        access_ms: latency between anybody and the router of its site in milliseconds.
        clients_per_site: how many are at each site, in place of a spread: 3 everywhere, [3, 0, 2] in the order of the
            sites, or {Chicago: 3} by their names.
        servers: how many of the nodes are servers, the last ones.
        seed: where random clients are.

    Raises:
        BadValue: if there is no such network or site, or the network's coordinates are none on Earth.

    References:
        Jurkiewicz, TopoHub: a repository of reference Gabriel graph and real-world topologies for networking research,
        SoftwareX 2023.
    """
    found = _load(key)
    places = {str(node.get("name") or node["id"]): tuple(node["pos"]) for node in found["nodes"]}
    on_earth = not key.startswith(PLANES)
    if on_earth:
        check_places(key, places)
    number = {node["id"]: index for index, node in enumerate(found["nodes"])}
    sites = Graph()
    for node in found["nodes"]:
        where = {"longitude": float(node["pos"][0]), "latitude": float(node["pos"][1])} if on_earth else {}
        sites.add_node(number[node["id"]], name=str(node.get("name") or node["id"]), **where)
    for edge in found["edges"]:
        latency_ms = float(edge["dist"]) * us_per_km / 1000
        sites.add_edge(number[edge["source"]], number[edge["target"]], latency_ms=latency_ms, **_limit(mbps))
    how: dict[str, Any] = {"spread": spread, "server": server, "clients_per_site": clients_per_site}
    return attach(sites, n, servers=servers, access_ms=access_ms, seed=seed, **how)


def backbone(
    n: int,
    *,
    path: str,
    spread: Spread = "even",
    server: Sites = "best",
    values: Values | None = None,
    us_per_km: NotNegative = US_PER_KM,
    mbps: Positive | None = None,
    access_ms: NotNegative = 0.0,
    clients_per_site: PerSite | None = None,
    servers: int,
    seed: int,
) -> Graph:
    """Return the network in a file with clients at its sites: as topohub, for a network of one's own.

    Args:
        n: how many clients or peers there are, and servers after them.
        path: the file, of one of the formats in docs/networks.md. Where it gives links no latency, their lengths come
            from the places of their ends, in degrees.
        spread, server, access_ms, clients_per_site, servers, seed: as for topohub.
        values: what numbers are that a format does not name: latency_ms or mbps; null leaves them out.
        us_per_km: microseconds per kilometre, for links without a latency.
        mbps: capacity of links that the file gives none, in Mbit/s; null is network.edge_mbps, or unlimited.

    Raises:
        BadValue: as for file, and if a link has neither a latency nor places.
    """
    net = read(path)
    sites = require_connected(simple(path, net, values), "path", path, "add the missing links to the file")
    labels = [sites.nodes[site]["name"] for site in sites]
    places = degrees(net)
    for site, label in enumerate(labels):
        sites.nodes[site]["name"] = net.names.get(label, label)
    for a, b, data in sites.edges(data=True):
        if "latency_ms" not in data:
            if net.places and not places and net.geographic is not False:
                check_places(path, net.places, "path")
            data["latency_ms"] = _length(path, labels[a], labels[b], places) * us_per_km / 1000
        data.setdefault("mbps", mbps) if mbps is not None else None
    how: dict[str, Any] = {"spread": spread, "server": server, "clients_per_site": clients_per_site}
    return attach(sites, n, servers=servers, access_ms=access_ms, seed=seed, **how)


def _length(path: str, a: str, b: str, places: dict[str, tuple[float, float]]) -> float:
    if a not in places or b not in places:
        rule = f"link {a} - {b} has no latency, and its ends no latitude and longitude"
        raise BadValue("path", path, rule, "say values: latency_ms if the file's numbers are that")
    return distance_km(places[a], places[b])


def _limit(mbps: float | None) -> dict[str, float]:
    return {} if mbps is None else {"mbps": mbps}


def _load(key: str) -> dict[str, Any]:
    """Return a network of the package, as NetworkX's node-link dictionary."""
    try:
        # Its own topohub.get leaves files open, and takes as long.
        text = (importlib.resources.files("topohub") / "data" / f"{key}.json").read_text(encoding="utf-8")
    except ModuleNotFoundError as error:
        rule = "needs topohub, which is not installed"
        raise BadValue("name", MISSING, rule, needed("topohub")) from error
    except (OSError, ValueError) as error:
        raise BadValue("key", key, "topohub has no such network", did_you_mean(key, _keys(key))) from error
    found: dict[str, Any] = json.loads(text)
    return found


def _keys(key: str) -> list[str]:
    """Return the networks of a family, or the families where there is no such family."""
    folder = importlib.resources.files("topohub") / "data"
    family = key.partition("/")[0]
    names = [f"{family}/{one}" for one in _names(folder / family)] if (folder / family).is_dir() else []
    return names or sorted(one.name for one in folder.iterdir() if one.is_dir())


def _names(folder: Any) -> list[str]:
    found = []
    for one in folder.iterdir():
        inner = [f"{one.name}/{name}" for name in _names(one)] if one.is_dir() else []
        found += inner or ([one.name.removesuffix(".json")] if one.name.endswith(".json") else [])
    return found
