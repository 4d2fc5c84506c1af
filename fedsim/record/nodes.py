"""Figures of the nodes: what they sent and received, how they are joined, and which labels they have."""

from __future__ import annotations

import math
from typing import Any

import networkx as nx
import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from fedsim.errors import MISSING, BadValue
from fedsim.record.spans import Activity, clipped, length
from fedsim.record.store import Table
from fedsim.record.style import (
    BLUE,
    BYTES,
    FAULT,
    GREY,
    HUES,
    ORANGE,
    STYLE,
    WIDE_SPREAD,
    Array,
    colours,
    in_unit,
    name_rows,
    some,
    spread,
)

MANY_NODES = 300
MANY_CLIENTS = 30
NAMED_NODES = 60


@rc_context(STYLE)
def traffic(nodes: Table) -> Figure:
    """Draw the bytes that each node sent and received, the busiest node first.

    The scale is logarithmic when one node carries more than thirty times what the typical one does. It then
    has dots and no bars, whose lengths would only say where the axis begins.

    Raises:
        BadValue: if there is no node.
    """
    if not len(nodes["node"]):
        raise BadValue("nodes", MISSING, "there is no node to draw")
    count = len(nodes["node"])
    order = np.argsort(-(nodes["bytes_up"] + nodes["bytes_down"]), kind="stable")
    role = nodes["role"][order]
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    panels = figure.subplots(2, 1, sharex=True)
    for ax, column, label in zip(panels, ("bytes_up", "bytes_down"), ("sent", "received")):
        values, unit_label = in_unit(nodes[column][order], BYTES, label)
        if spread(nodes[column]) > WIDE_SPREAD:
            values, unit_label = nodes[column][order], label
            ax.set_yscale("log")
            ax.yaxis.set_major_formatter(EngFormatter(unit="B"))
            ax.minorticks_off()
        for name in sorted(set(role.tolist())):
            mine = np.flatnonzero(role == name)
            colour = ORANGE if name == "server" else BLUE
            if ax.get_yscale() == "log":
                mine = mine[values[mine] > 0]
                ax.plot(mine, values[mine], "o", color=colour, label=name, markersize=_dot(count))
            else:
                columns(ax, mine, values[mine], np.zeros(len(mine)), colour, name, count)
        ax.set_ylabel(unit_label)
        ax.grid(visible=False, axis="x")
    _name_columns(panels[1], nodes["node"][order])
    if len(set(role.tolist())) > 1:
        panels[0].legend()
    return figure


def columns(ax: Axes, at: Array, heights: Array, bottom: Array, colour: str, label: str, count: int) -> None:
    """Draw bars; many of them, which touch each other, are one shape, for each alone would take a while.

    Args:
        ax: where.
        at: their places [n], whole numbers.
        heights: [n].
        bottom: where they begin [n].
        colour: of all.
        label: of all.
        count: how many bars there are in all.
    """
    if count <= NAMED_NODES:
        ax.bar(at, heights, bottom=bottom, width=0.8, color=colour, label=label)
        return
    low, high = np.stack([at - 0.5, at - 0.5, at + 0.5, at + 0.5]), bottom + heights
    boxes = np.stack([low, np.stack([bottom, high, high, bottom])], axis=2).transpose(1, 0, 2)
    ax.add_collection(PolyCollection(list(boxes), facecolors=colour, edgecolors="none", label=label))
    ax.autoscale_view()


def _dot(count: int) -> float:
    return 5.0 if count <= NAMED_NODES else 2.5


def _name_columns(ax: Axes, ids: Array) -> None:
    count = len(ids)
    ax.set_xlabel("node" if count <= NAMED_NODES else f"{count} nodes, the busiest first")
    names = ids.tolist() if count <= NAMED_NODES else []
    ax.set_xticks(range(len(names)), names, fontsize=8 if count <= 30 else 6)
    ax.set_xlim(-0.7, count - 0.3)


@rc_context(STYLE)
def utilisation(did: Activity, nodes: Table, end_us: int) -> Figure:
    """Draw for which share of the run at least one transfer was under way on each node's up- and downlink.

    Args:
        did: what the nodes did, see :func:`fedsim.record.spans.activity`.
        nodes: the table ``nodes``; if it is empty, the nodes are those that did anything.
        end_us: the end of the run in microseconds of simulated time.

    Raises:
        BadValue: if nothing was sent.
    """
    if not did.lanes["sending"]:
        raise BadValue("events", MISSING, "nothing was sent")
    ids = nodes["node"] if len(nodes["node"]) else np.array(did.nodes)
    up, down = (_busy(did.lanes[lane], ids, end_us) for lane in ("sending", "receiving"))
    order = np.argsort(-np.maximum(up, down), kind="stable")
    server = np.array(colours(nodes, ids[order])) == ORANGE
    figure = Figure(figsize=(10, 2.8), layout="constrained")
    ax = figure.subplots()
    size = _dot(len(ids))
    for share, mark, label in ((up, "^", "uplink"), (down, "v", "downlink")):
        for mine, colour, whose in ((~server, BLUE, ""), (server, ORANGE, " of the server")):
            fill = colour if mark == "^" else "none"
            if mine.any():
                ax.plot(
                    np.flatnonzero(mine), 100 * share[order][mine], mark, color=colour, markerfacecolor=fill,
                    markersize=size, label=label + whose,
                )  # fmt: skip
    ax.set(ylabel="busy (% of the run)", ylim=(0, None))
    ax.grid(visible=False, axis="x")
    _name_columns(ax, ids[order])
    ax.legend(fontsize=8)
    return figure


def _busy(lane: dict[int, Array], ids: Array, end_us: int) -> Array:
    nothing = np.zeros((0, 2))
    return np.array([length(clipped(lane.get(node, nothing), 0, end_us)) for node in ids.tolist()]) / end_us


@rc_context(STYLE)
def hours(nodes: Table) -> Figure:
    """Draw how each client or peer divided the run between work, wasted work and idling; the rest is absence.

    Raises:
        BadValue: if there is no client or peer.
    """
    mine = nodes["role"] != "server"
    if not mine.any():
        raise BadValue("nodes", MISSING, "there is no node to draw")
    busy, idle, offline, wasted = (
        nodes[name][mine] for name in ("busy_us", "idle_us", "offline_us", "wasted_us")
    )
    order = np.argsort(-busy, kind="stable")
    shown = {"computing": busy - wasted, "wasted": wasted, "idle": idle}
    percent = 100 / np.maximum(busy + idle + offline, 1)[order]
    figure = Figure(figsize=(10, 2.8), layout="constrained")
    ax = figure.subplots()
    bottom = np.zeros(len(order))
    for (label, spent), colour in zip(shown.items(), (BLUE, FAULT, GREY)):
        share = spent[order] * percent
        columns(ax, np.arange(len(order)), share, bottom, colour, label, len(order))
        bottom = bottom + share
    ax.set(ylabel="% of the run", ylim=(0, 100))
    ax.grid(visible=False, axis="x")
    _name_columns(ax, nodes["node"][mine][order])
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
    return figure


@rc_context(STYLE)
def topology(edges: Table, nodes: Table) -> Figure:
    """Draw the graph, the server highlighted; of a graph too large to see, how many links nodes have.

    Raises:
        BadValue: if there is no edge.
    """
    if not len(edges["a"]):
        raise BadValue("edges", MISSING, "there is no edge to draw")
    graph = nx.Graph(list(zip(edges["a"].tolist(), edges["b"].tolist())))
    count = graph.number_of_nodes()
    figure = Figure(figsize=(5.2, 5.2) if count <= MANY_NODES else (6, 3.3), layout="constrained")
    ax = figure.subplots()
    ax.set_title(f"{count} nodes, {graph.number_of_edges()} links{_latency(edges['latency_ms'])}")
    if count > MANY_NODES:
        degrees = np.bincount([degree for _, degree in graph.degree()])
        ax.bar(np.flatnonzero(degrees), degrees[degrees > 0], color=BLUE)
        ax.set(xlabel="links of a node", ylabel="nodes")
        ax.xaxis.set_major_locator(MaxNLocator(nbins="auto", integer=True))
        return figure
    place = layout(graph)
    lines = [(place[a], place[b]) for a, b in graph.edges]
    faint = float(np.clip(12 / math.sqrt(len(lines)), 0.06, 0.8))
    ax.add_collection(LineCollection(lines, colors=GREY, linewidths=0.8, alpha=faint, zorder=1))
    ids = np.array(sorted(graph.nodes))
    xy = np.array([place[node] for node in ids.tolist()])
    hues = colours(nodes, ids)
    sizes = np.clip(6000 / count, 30, 260) * np.where(np.array(hues) == ORANGE, 2.5, 1.0)
    ax.scatter(xy[:, 0], xy[:, 1], s=sizes, c=hues, edgecolors="white", linewidths=0.8)
    if count <= 60:
        for node, (x, y) in zip(ids, xy):
            small = 8 if count <= 30 else 6
            ax.text(x, y, str(node), ha="center", va="center", color="white", fontsize=small)
    ax.set_aspect("equal")
    ax.margins(0.06)
    ax.set_axis_off()
    return figure


def _latency(latency_ms: Array) -> str:
    low, high = latency_ms.min(), latency_ms.max()
    return f", {low:.3g} ms" if low == high else f", {low:.3g} to {high:.3g} ms"


def layout(graph: nx.Graph[Any]) -> dict[Any, Any]:
    """Return where the nodes of a graph are drawn, [x, y] by node: a hub in the middle, few links in a circle."""
    ids = sorted(graph.nodes)
    hub = [node for node, degree in graph.degree() if degree == len(ids) - 1]
    if len(ids) > 2 and len(hub) == 1:
        return dict(nx.shell_layout(graph, [hub, [node for node in ids if node != hub[0]]]))
    if max(dict(graph.degree()).values()) <= 2 or nx.density(graph) > 0.4 or len(ids) <= 12:
        return dict(nx.circular_layout(nx.empty_graph(ids)))
    if len(ids) <= 100 and nx.is_connected(graph):
        return dict(nx.kamada_kawai_layout(graph))
    return dict(nx.spring_layout(graph, seed=0))


@rc_context(STYLE)
def labels(labels: Table) -> Figure:
    """Draw how the labels are distributed over the clients: stacked bars, or a heat map if they are many.

    Raises:
        BadValue: if there is no label.
    """
    if not len(labels["client"]):
        raise BadValue("labels", MISSING, "there is no label to draw")
    clients, row = np.unique(labels["client"], return_inverse=True)
    kinds, column = np.unique(labels["label"], return_inverse=True)
    counts = np.zeros((len(clients), len(kinds)), dtype=np.int64)
    np.add.at(counts, (row, column), labels["count"])
    if len(clients) <= MANY_CLIENTS and len(kinds) <= len(HUES):
        return _label_bars(clients, kinds, counts)
    figure = Figure(figsize=(10, 1.2 + float(np.clip(0.22 * len(kinds), 1.0, 5.0))), layout="constrained")
    ax = figure.subplots()
    image = ax.imshow(counts.T, aspect="auto", cmap="Blues", vmin=0, interpolation="nearest")
    ax.set_xlabel("client")
    ax.set_xticks(*some(clients), fontsize=8)
    name_rows(ax, kinds, "label")
    ax.grid(visible=False)
    figure.colorbar(image, ax=ax, label="samples", pad=0.01).outline.set_visible(False)
    return figure


def _label_bars(clients: Array, kinds: Array, counts: Array) -> Figure:
    figure = Figure(figsize=(8, 1.1 + 0.24 * len(clients)), layout="constrained")
    ax = figure.subplots()
    left = np.cumsum(counts, axis=1) - counts
    for column, (kind, hue) in enumerate(zip(kinds, HUES)):
        ax.barh(range(len(clients)), counts[:, column], left=left[:, column], color=hue, label=str(kind))
    ax.set(xlabel="samples", ylim=(len(clients) - 0.4, -0.6))
    name_rows(ax, clients, "client")
    ax.grid(visible=False, axis="y")
    ax.legend(title="label", loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
    return figure
