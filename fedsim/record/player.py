"""What the player in a report shows: the network as it was in simulated time, small enough for a page."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np

from fedsim.record.nodes import layout
from fedsim.record.rows import arrays, rows
from fedsim.record.schema import Place, Table
from fedsim.record.spans import paired
from fedsim.record.store import metrics, read
from fedsim.record.style import Array, human_time

MOST_NODES = 200
MOST_LINKS = 1500
MOST_SPANS = 8000
"""So many messages, and so many computations, are shown; of more, one in so many."""

TICKS = 1_000_000
"""Into how many parts the run's time is divided."""

MOVING = ("send", "deliver", "lost")
WORKING = ("compute", "done", "aborted")
BROKEN = {"crash": 0, "fail": 0, "recover": 1}
"""Faults that take a node away or bring it back."""

KEPT_APART = 0.02
"""How far from their site several nodes of it stand, where the network is 1 wide."""

Scene = dict[str, Any]


def scene(run: Path, known: dict[str, Any], end_us: int) -> Scene | None:
    """Return what happened in a run, for the player: times are in millionths of the run, places between 0 and 1.

    Args:
        run: the run's folder or its record.
        known: its facts; ``places`` says where nodes are.
        end_us: the end of the run, in microseconds of simulated time.

    Returns:
        Nodes [id, x, y, role], links [node, node] and sessions, messages and computations by their position in the list
        of nodes, rounds and accuracies; None if nothing has moved.
    """
    nodes, edges = read(run, "nodes"), read(run, "edges")
    presence = read(run, "presence")
    roles = dict(zip(nodes["node"].tolist(), nodes["role"].tolist(), strict=True))
    ids = sorted({*roles, *presence["node"].tolist(), *edges["a"].tolist(), *edges["b"].tolist()})
    shown = _some_nodes(ids, roles, edges)
    if not shown or end_us <= 0:
        return None
    place = {node: i for i, node in enumerate(shown)}
    links = [(a, b) for a, b in zip(edges["a"].tolist(), edges["b"].tolist()) if a in place and b in place]
    events = _events(run, (*MOVING, *WORKING), shown)
    moves, every_move = _thinned(_of(events, MOVING), end_us)
    works, every_work = _thinned(_of(events, WORKING), end_us)
    comings = [
        [_tick(time, end_us), place[node], online]
        for time, node, online in zip(*(presence[name].tolist() for name in ("time_us", "node", "online")))
        if node in place
    ]
    if not moves and not any(not online or time for time, _, online in comings):
        return None
    return {
        "nodes": [
            [node, x, y, roles.get(node, "router" if node in _routers(known) else "node")]
            for node, (x, y) in zip(shown, _places(shown, links, known))
        ],
        "all": len(ids),
        "links": [[place[a], place[b]] for a, b in links[:MOST_LINKS]],
        "presence": comings,
        "faults": _faults(run, place, end_us),
        "moves": [[begin, end, place[a], place[b], well] for begin, end, a, b, well in moves],
        "works": [[begin, end, place[a]] for begin, end, a, *_ in works],
        "every": [every_move, every_work],
        "rounds": _rounds(run, end_us),
        "end_s": end_us / 1e6,
        "length": human_time(end_us / 1e6),
    }


def _tick(time_us: int, end_us: int) -> int:
    return min(TICKS, round(time_us / end_us * TICKS))


def _some_nodes(ids: list[int], roles: dict[int, str], edges: Table) -> list[int]:
    """Return all nodes, or servers and hubs and, of the others, as many as can be seen, evenly over their ids."""
    if len(ids) <= MOST_NODES:
        return ids
    degrees = np.bincount(np.concatenate([edges["a"], edges["b"], [0]]))
    hubs = [node for node in ids if node < len(degrees) and degrees[node] >= len(ids) - 1]
    always = {*(node for node in ids if roles.get(node) == "server"), *hubs[:1]}
    rest = [node for node in ids if node not in always]
    picked = np.linspace(0, len(rest) - 1, MOST_NODES - len(always)).astype(int)
    return sorted({*always, *(rest[i] for i in picked.tolist())})


def _events(run: Path, kinds: tuple[str, ...], shown: list[int]) -> Table:
    """Return the events of some kinds that concern the nodes shown alone."""
    marks, some = ", ".join("?" * len(kinds)), ", ".join(map(str, shown))
    where = f"kind IN ({marks}) AND node IN ({some}) AND peer IN (-1, {some})"
    return arrays(run, "events", where, kinds)


def _of(events: Table, kinds: tuple[str, ...]) -> Table:
    chosen = np.isin(events["kind"], kinds)
    return {name: column[chosen] for name, column in events.items()}


def _thinned(events: Table, end_us: int) -> tuple[list[list[int]], int]:
    """Return what began and ended, [begin, end, node, peer, whether well], every so many-th, and how many that is."""
    found = paired(events, end_us)
    ticks = (np.minimum(TICKS, np.rint(times / end_us * TICKS)) for times in (found.begin, found.end))
    spans = np.stack([*ticks, found.node, found.peer, found.well], axis=1).astype(np.int64)
    every = -(-len(spans) // MOST_SPANS) or 1
    return spans[::every].tolist(), every


def _routers(known: dict[str, Any]) -> set[int]:
    return {place["node"] for place in known.get("places") or [] if place.get("router")}


def _places(
    shown: list[int], links: list[tuple[int, int]], known: dict[str, Any]
) -> list[tuple[float, float]]:
    """Return where the nodes are drawn: at their sites, or else as in the figure of the topology; y points down."""
    at = {one.node: one for one in map(Place.model_validate, known.get("places") or [])}
    if at and all(node in at for node in shown):
        north = np.array([at[node].latitude for node in shown])
        shrink = max(float(np.cos(np.radians(north.mean()))), 0.2)
        xy = np.stack([[at[node].longitude * shrink for node in shown], -north], axis=1)
        return _apart(_boxed(xy))
    graph: nx.Graph[int] = nx.Graph(links)
    graph.add_nodes_from(shown)
    where = layout(graph)
    return _apart(_boxed(np.array([where[node] for node in shown]) * [1.0, -1.0]))


def _boxed(xy: Array) -> Array:
    """Return places between 0 and 1, with one scale for both directions."""
    low, high = xy.min(0), xy.max(0)
    boxed: Array = 0.5 + (xy - (low + high) / 2) / max(float((high - low).max()), 1e-9)
    return boxed


def _apart(xy: Array) -> list[tuple[float, float]]:
    """Put several nodes of one site around it."""
    _, site, count = np.unique(xy.round(6), axis=0, return_inverse=True, return_counts=True)
    seen: dict[int, int] = defaultdict(int)
    placed = []
    for (x, y), where in zip(xy.tolist(), site.reshape(-1).tolist(), strict=True):
        if count[where] > 1:
            angle = 2 * np.pi * seen[where] / count[where]
            x, y = x + KEPT_APART * np.cos(angle), y + KEPT_APART * np.sin(angle)
            seen[where] += 1
        placed.append((round(float(x), 4), round(float(y), 4)))
    return placed


def _faults(run: Path, place: dict[int, int], end_us: int) -> list[list[int]]:
    marks = ", ".join("?" * len(BROKEN))
    found = rows(run, "events", f"kind IN ({marks})", tuple(BROKEN))
    return [
        [_tick(time, end_us), place[node], BROKEN[kind]] for time, kind, node, *_ in found if node in place
    ]


def _rounds(run: Path, end_us: int) -> list[list[Any]]:
    """Return when rounds ended, their numbers, and the accuracy then, or None."""
    table, ended = metrics(run), read(run, "rounds")
    scores = dict(zip(table["round"].tolist(), table["accuracy"].tolist())) if "accuracy" in table else {}
    return [
        [_tick(time, end_us), round, None if scores.get(round) is None else _finite(scores[round])]
        for time, round in zip(ended["time_us"].tolist(), ended["round"].tolist())
    ]


def _finite(value: float) -> float | None:
    return float(f"{value:.4g}") if np.isfinite(value) else None
