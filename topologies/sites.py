"""Clients at the sites of a backbone: routers carry what goes over them, and hold no data.

The graph has the nodes 0 to n-1, clients or peers and then a server if there is one, and after them a router for each
site. Everybody is linked to the router of its site; so models share the links of the backbone. Peers talk to those at
their own site and at the neighbouring ones; sites without peers are passed through.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import networkx as nx
import numpy as np
from scipy.sparse.csgraph import dijkstra

from fedsim.errors import BadValue, did_you_mean
from fedsim.machine import LINK_BYTES, require_room
from fedsim.parts import Count
from fedsim.ranges import Whole
from fedsim.rng import stream
from fedsim.world.graph import TALK, Graph

Spread = Literal["even", "random", "links", "population"]
Sites = str | int | list[str | int]
"""The site of the server, or of each server where there are several: names or numbers, or best."""

PerSite = Count | list[Whole] | dict[str, Whole]
"""How many clients are at each site: as many at all of them, so many in the order of sites, or by their names."""

EARTH_KM = 6371.0088
"""The mean radius of the Earth."""


def distance_km(a: tuple[float, float], b: tuple[float, float]) -> float:
    """Return the length of the shortest way over the Earth between two places, given as longitude and latitude.

    >>> round(distance_km((0.0, 0.0), (90.0, 0.0)))
    10008
    """
    (east, north), (east2, north2) = (tuple(map(math.radians, place)) for place in (a, b))
    half = math.sin((north2 - north) / 2) ** 2
    half += math.cos(north) * math.cos(north2) * math.sin((east2 - east) / 2) ** 2
    return 2 * EARTH_KM * math.asin(math.sqrt(min(1.0, half)))


def check_places(name: str, places: Mapping[str, tuple[float, float]], key: str = "key") -> None:
    """Refuse a network whose coordinates are none on Earth: its kilometres would be of nowhere.

    Args:
        name: the network's, or its file's.
        places: longitude and latitude of each site.
        key: what gives the name.

    Raises:
        BadValue: naming the first such site.
    """
    for label, (east, north) in places.items():
        if not (abs(north) <= 90 and abs(east) <= 360):
            rule = f"puts {label} at latitude {north:g}, longitude {east:g}, which is nowhere on Earth"
            raise BadValue(key, name, rule, "its coordinates are those of a picture; take another network")


def attach(
    sites: Graph,
    n: int,
    *,
    servers: int,
    spread: Spread = "even",
    server: Sites = "best",
    access_ms: float = 0.0,
    clients_per_site: PerSite | None = None,
    seed: int,
) -> Graph:
    """Put clients or peers, and servers, at the sites of a backbone.

    Args:
        sites: the backbone over the nodes 0 … s-1, connected; links have ``latency_ms``, nodes may have ``name``,
            ``longitude``, ``latitude`` and ``population``.
        n: how many clients or peers there are, and servers after them.
        servers: how many of them are servers.
        spread: how clients are divided among the sites: even, one after the other to each site; random, each at a
            site of its own drawing; links, in proportion to the links that a site has; population, in proportion to
            that.
        server: the name or the number of the server's site, or a list with one for each of several servers; best is
            the site from which the mean latency to the clients is the least, and for several servers, one after the
            other, the site that most lowers the mean latency of the clients to the nearest of them.
        access_ms: latency of the link between anybody and the router of its site.
        clients_per_site: how many are at each site, in place of a spread: as many everywhere, so many in the order of
            sites, or by the sites' names, where those that are not named have none.
        seed: where clients are drawn from.

    Returns:
        The graph with its routers.

    Raises:
        BadValue: if there is no such site, not every site has a population, or clients do not add up.

    >>> line = nx.path_graph(3)
    >>> nx.set_edge_attributes(line, 10.0, "latency_ms")
    >>> graph = attach(line, 4, servers=1, seed=0)
    >>> [next(iter(graph[node])) - 4 for node in range(4)]
    [0, 1, 2, 1]
    """
    members = n - servers
    if clients_per_site is None:
        homes = _homes(sites, members, spread, stream(seed, "sites"))
    else:
        homes = _placed(sites, members, clients_per_site)
    homes += _servers(sites, homes, server, servers)
    graph = Graph()
    graph.add_nodes_from((node, dict(sites.nodes[home])) for node, home in enumerate(homes))
    graph.add_nodes_from((n + site, {**data, "router": True}) for site, data in sites.nodes(data=True))
    graph.add_edges_from((node, n + home, {"latency_ms": access_ms}) for node, home in enumerate(homes))
    graph.add_edges_from((n + a, n + b, data) for a, b, data in sites.edges(data=True))
    graph.graph[TALK] = _served(members, n) if servers else _talk(sites, homes)
    return graph


def _served(members: int, n: int) -> Graph:
    """Return who talks to whom where there are servers: they, to everybody."""
    talk = Graph()
    talk.add_nodes_from(range(n))
    talk.add_edges_from((node, server) for server in range(members, n) for node in range(server))
    return talk


def _homes(sites: Graph, members: int, spread: Spread, rng: np.random.Generator) -> list[int]:
    """Return the site of each client."""
    count = len(sites)
    if spread == "even":
        return [node % count for node in range(members)]
    if spread == "random":
        return [int(site) for site in rng.integers(count, size=members)]
    weights = [float(sites.degree(site)) for site in range(count)]
    if spread == "population":
        known: dict[int, Any] = {site: data.get("population") for site, data in sites.nodes(data=True)}
        gone = next((site for site in range(count) if known[site] is None), None)
        if gone is not None:
            name = sites.nodes[gone].get("name", gone)
            raise BadValue(
                "spread", spread, f"the site {name} has no population", "take even, random or links"
            )
        weights = [float(known[site]) for site in range(count)]
    # Rounded so that all are placed: whoever is furthest below its share is served next.
    exact = np.array(weights, dtype=float) / sum(weights) * members
    placed = np.floor(exact).astype(int)
    for site in np.argsort(placed - exact, kind="stable")[: members - placed.sum()]:
        placed[site] += 1
    return [int(site) for site in np.repeat(np.arange(count), placed)]


def _placed(sites: Graph, members: int, per_site: PerSite) -> list[int]:
    """Return the site of each client, where it is said how many each site has."""
    count = len(sites)
    if isinstance(per_site, dict):
        found = [0] * count
        for site, here in per_site.items():
            found[_named(sites, site, "clients_per_site")] = here
    else:
        found = [per_site] * count if isinstance(per_site, int) else per_site
    if len(found) != count:
        raise BadValue("clients_per_site", found, f"must have a number for each of the {count} sites")
    if sum(found) != members:
        rule = f"makes {sum(found)} clients or peers, and there are {members}"
        raise BadValue("clients_per_site", per_site, rule, f"say data.clients: {sum(found)}")
    return [site for site, here in enumerate(found) for _ in range(here)]


def _servers(sites: Graph, homes: list[int], server: Sites, count: int) -> list[int]:
    """Return the site of each server."""
    if server == "best":
        return _best(sites, homes, count)
    named = server if isinstance(server, list) else [server]
    if count and len(named) != count:
        raise BadValue("server", server, f"must name a site for each of the {count} servers, or be best")
    return [_number(sites, one) for one in named[:count]]


def _number(sites: Graph, server: str | int) -> int:
    if isinstance(server, int):
        if not 0 <= server < len(sites):
            raise BadValue("server", server, f"sites are 0 to {len(sites) - 1}")
        return server
    return _named(sites, server, "server")


def _best(sites: Graph, homes: list[int], count: int) -> list[int]:
    """Return the sites that, one after the other, most lower the clients' mean latency; of equal ones the first."""
    if not count:
        return []
    taken, counts = np.unique(homes, return_counts=True)
    # A row for each site with clients, all in one call: links of no latency are there, too, as tiny ones.
    lengths = nx.to_scipy_sparse_array(sites, range(len(sites)), weight="latency_ms", dtype=np.dtype(float))
    lengths.data = np.maximum(lengths.data, np.finfo(float).tiny)
    away = np.round(dijkstra(lengths, directed=sites.is_directed(), indices=taken), 9)
    nearest, found = np.full(len(taken), np.inf), list[int]()
    for _ in range(count):
        sums = [math.fsum(counts * np.minimum(nearest, column)) for column in away.T]
        found.append(min(range(len(sites)), key=lambda site: (sums[site], site)))
        nearest = np.minimum(nearest, away[:, found[-1]])
    return found


def _named(sites: Graph, name: str, key: str) -> int:
    """Return the number of the site with a name."""
    names = [str(sites.nodes[site].get("name", site)) for site in range(len(sites))]
    if names.count(name) == 1:
        return names.index(name)
    if name not in names:
        raise BadValue(key, name, "there is no such site", did_you_mean(name, names))
    places = [i for i, one in enumerate(names) if one == name]
    hint = f"give its number: {places}" if key == "server" else "give a list in the order of the sites"
    raise BadValue(key, name, "there are several sites of that name", hint)


def _talk(sites: Graph, homes: list[int]) -> Graph:
    """Return who talks to whom: those at one site, and at two sites with nobody between them."""
    at: dict[int, list[int]] = {}
    for node, home in enumerate(homes):
        at.setdefault(home, []).append(node)
    talk = Graph()
    talk.add_nodes_from(range(len(homes)))
    near = {home: _near(sites, home, at) for home in at}
    pairs = sum(len(at[a]) * (len(at[a]) - 1 + sum(len(at[b]) for b in near[a])) / 2 for a in at)
    require_room(
        "n", len(homes), LINK_BYTES * pairs, f"the links between {len(homes)} peers", "take more sites"
    )
    for home, own in at.items():
        talk.add_edges_from((a, b) for a in own for b in own if a < b)
        talk.add_edges_from((a, b) for other in near[home] if other > home for a in own for b in at[other])
    return talk


def _near(sites: Graph, home: int, at: dict[int, list[int]]) -> set[int]:
    """Return the sites with somebody that can be reached from one over sites with nobody."""
    found: set[int] = set()
    seen, open_ = {home}, [home]
    while open_:
        for site in sites[open_.pop()]:
            if site not in seen:
                seen.add(site)
                (found.add if site in at else open_.append)(site)
    return found
