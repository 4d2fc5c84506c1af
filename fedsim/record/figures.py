"""The figures of a run: functions of its tables that return Matplotlib figures.

No figure touches Matplotlib's global state, so they can be drawn anywhere, and in any order.
Colours are those of Okabe and Ito and of Paul Tol, which the colour-blind can tell apart.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from fedsim.errors import MISSING, BadValue
from fedsim.record.store import Table, facts, read, wide
from fedsim.record.style import (
    BLUE,
    BYTES,
    GREY,
    HUES,
    ORANGE,
    SECONDS,
    STYLE,
    Array,
    costs,
    in_unit,
    scale,
    some,
    spread,
)

MANY_NODES = 300
MANY_CLIENTS = 30
WIDE_SPREAD = 30


@rc_context(STYLE)
def curves(metrics: Table, rounds: Table, target: float | None = None) -> Figure:
    """Draw test accuracy against rounds, simulated time and bytes sent; the loss if there is no accuracy.

    Args:
        metrics: the table ``metrics``; from its per-node rows (or the metrics ``accuracy_min`` and
            ``accuracy_max``) comes the band between the worst and the best node.
        rounds: the table ``rounds``.
        target: the value to reach, drawn as a line; where it is first reached is marked.

    Raises:
        BadValue: if there is neither an accuracy nor a loss of the whole system.
    """
    table = wide(metrics, rounds)
    name = _quality(table)
    if name is None:
        raise BadValue("metrics", MISSING, "there is neither accuracy nor loss to draw")
    low, high = _band(metrics, table, name)
    measured = np.isfinite(table[name])
    y = table[name][measured]
    figure = Figure(figsize=(10, 3.3), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    rising = name == "accuracy"
    goal = math.nan if target is None else target
    reached = next((i for i, v in enumerate(table[name]) if (v >= goal if rising else v <= goal)), None)
    for ax, (x, label, cost, write) in zip(panels, costs(table)):
        ax.fill_between(x, low, high, color=BLUE, alpha=0.15, linewidth=0, label="worst to best node")
        ax.plot(x[measured], y, color=BLUE, marker="o" if len(y) <= 30 else "", markersize=3)
        ax.set_xlabel(label)
        if target is not None:
            ax.axhline(target, color=ORANGE, linewidth=1, linestyle=(0, (4, 3)))
        if target is not None and reached is not None:
            note = f"{target:g} at {write(cost[reached])}"
            _draw_target(ax, target, x[reached], table[name][reached], note, rising)
    panels[0].set_ylabel(f"test {name}")
    panels[0].xaxis.set_major_locator(MaxNLocator(nbins="auto", integer=True))
    if np.isfinite(low).any():
        panels[0].legend(loc="best", fontsize=8)
    return figure


def _quality(table: Table) -> str | None:
    return next((n for n in ("accuracy", "loss") if n in table and np.isfinite(table[n]).any()), None)


def _band(metrics: Table, table: Table, name: str) -> tuple[Array, Array]:
    nothing = np.full(len(table["round"]), np.nan)
    low, high = table.get(f"{name}_min", nothing).copy(), table.get(f"{name}_max", nothing).copy()
    single = (metrics["node"] >= 0) & (metrics["name"] == name) & np.isin(metrics["round"], table["round"])
    at = np.searchsorted(table["round"], metrics["round"][single])
    np.fmin.at(low, at, metrics["value"][single])
    np.fmax.at(high, at, metrics["value"][single])
    return low, high


def _draw_target(ax: Axes, target: float, x: float, y: float, note: str, rising: bool) -> None:
    ax.plot([x], [y], "o", color=ORANGE, markersize=5)
    at, side = ((4, -4), "top") if rising else ((4, 4), "bottom")
    ax.annotate(note, (x, target), at, textcoords="offset points", va=side, color=ORANGE, fontsize=8)


@rc_context(STYLE)
def loss(metrics: Table, rounds: Table) -> Figure:
    """Draw every loss of the whole system but its extremes, on a logarithmic scale if it spans decades.

    Raises:
        BadValue: if no metric has "loss" in its name.
    """
    table = wide(metrics, rounds)
    names = [name for name in table if _is_loss(name) and np.isfinite(table[name]).any()]
    if not names:
        raise BadValue("metrics", MISSING, "there is no loss to draw")
    figure = Figure(figsize=(6, 3.3), layout="constrained")
    ax = figure.subplots()
    for name, colour in zip(names, (BLUE, ORANGE, *HUES)):
        measured = np.isfinite(table[name])
        ax.plot(table["round"][measured], table[name][measured], color=colour, label=name.replace("_", " "))
    if spread(np.concatenate([table[name] for name in names])) > WIDE_SPREAD:
        ax.set_yscale("log")
    ax.set(xlabel="round", ylabel="loss")
    ax.xaxis.set_major_locator(MaxNLocator(nbins="auto", integer=True))
    if len(names) > 1:
        ax.legend()
    return figure


def _is_loss(name: str) -> bool:
    return "loss" in name and not name.endswith(("_min", "_max"))


@rc_context(STYLE)
def progress(rounds: Table) -> Figure:
    """Draw rounds and bytes sent against simulated time: what a run without training has to show.

    Raises:
        BadValue: if no round has ended.
    """
    if not len(rounds["round"]):
        raise BadValue("rounds", MISSING, "no round has ended")
    time, label = in_unit(rounds["time_us"] / 1e6, SECONDS, "simulated time")
    sent, sent_label = in_unit(rounds["bytes_up"], BYTES, "sent by all nodes")
    figure = Figure(figsize=(8, 3.3), layout="constrained")
    left, right = figure.subplots(1, 2)
    for ax, y, name in ((left, rounds["round"], "round"), (right, sent, sent_label)):
        ax.plot(time, y, color=BLUE, marker="o" if len(y) <= 30 else "", markersize=3)
        ax.set(xlabel=label, ylabel=name, xlim=(0, None), ylim=(0, None))
    return figure


@rc_context(STYLE)
def availability(presence: Table, nodes: Table, end_us: int) -> Figure:
    """Draw who was online when, and above it how many were.

    Args:
        presence: the table ``presence``.
        nodes: the table ``nodes``, for the roles; it may be empty.
        end_us: the end of the run in microseconds of simulated time.

    Raises:
        BadValue: if there is no transition at all.
    """
    if not len(presence["node"]):
        raise BadValue("presence", MISSING, "nobody was ever online or offline")
    unit, size = scale(end_us / 1e6, SECONDS)
    ids = np.unique(presence["node"])
    bars = [_sessions(presence, node, end_us) / (1e6 * size) for node in ids]
    rows = float(np.clip(0.16 * len(ids), 1.2, 5.5))
    figure = Figure(figsize=(10, 1.9 + rows), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[1.1, rows])
    moments, online = _online(np.concatenate(bars), end_us / (1e6 * size))
    above.fill_between(moments, online, step="post", color=BLUE, alpha=0.25, linewidth=0)
    above.step(moments, online, where="post", color=BLUE, linewidth=1)
    above.set(ylabel="online", ylim=(0, len(ids) * 1.05))
    above.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    # Gaps between hundreds of thin bars would only make a pattern of their own.
    half = 0.4 if len(ids) <= 60 else 0.5
    for row, (spans, colour) in enumerate(zip(bars, _colours(nodes, ids))):
        low, high = row - half, row + half
        boxes = [[(a, low), (b, low), (b, high), (a, high)] for a, b in spans]
        below.add_collection(PolyCollection(boxes, facecolors=colour, linewidths=0))
    below.set(xlabel=f"simulated time ({unit})", xlim=(0, end_us / (1e6 * size)), ylim=(len(ids) - 0.4, -0.6))
    _name_rows(below, ids, "node")
    below.grid(visible=False, axis="y")
    return figure


def _sessions(presence: Table, node: int, end_us: int) -> Array:
    """Return the node's online intervals in microseconds, [sessions, 2]."""
    mine = np.flatnonzero(presence["node"] == node)
    mine = mine[np.argsort(presence["time_us"][mine], kind="stable")]
    change = np.diff(presence["online"][mine], prepend=0, append=0)
    times = np.append(presence["time_us"][mine], end_us).clip(max=end_us)
    return np.stack([times[change > 0], times[change < 0]], axis=1).astype(np.float64)


def _online(spans: Array, end: float) -> tuple[Array, Array]:
    """Return the moments at which the number of open spans changes, and the numbers, up to the end."""
    ends = spans[spans[:, 1] < end, 1]
    moments = np.concatenate(([0.0], spans[:, 0], ends))
    steps = np.concatenate(([0.0], np.ones(len(spans)), -np.ones(len(ends))))
    at, where = np.unique(moments, return_inverse=True)
    online = np.cumsum(np.bincount(where, weights=steps))
    return np.append(at, end), np.append(online, online[-1])


def _colours(nodes: Table, ids: Array) -> list[str]:
    servers = set(nodes["node"][nodes["role"] == "server"].tolist())
    return [ORANGE if node in servers else BLUE for node in ids.tolist()]


def _name_rows(ax: Axes, ids: Array, what: str) -> None:
    ax.set_yticks(*some(ids), fontsize=8)
    ax.set_ylabel(what)
    ax.tick_params(axis="y", length=0)


@rc_context(STYLE)
def traffic(nodes: Table) -> Figure:
    """Draw the bytes that each node sent and received, the busiest node first.

    The scale is logarithmic when one node carries more than thirty times what the typical one does.

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
        for name in sorted(set(role.tolist())):
            mine = np.flatnonzero(role == name)
            colour = ORANGE if name == "server" else BLUE
            ax.bar(mine, values[mine], width=0.8 if count <= 60 else 1.0, color=colour, label=name)
        if ax.get_yscale() == "log":
            ax.set_ylim(bottom=10 ** math.floor(math.log10(values[values > 0].min())))
        ax.set_ylabel(unit_label)
        ax.grid(visible=False, axis="x")
    panels[1].set_xlabel("node" if count <= 60 else f"{count} nodes, the busiest first")
    names = nodes["node"][order].tolist() if count <= 60 else []
    panels[1].set_xticks(range(len(names)), names, fontsize=8 if count <= 30 else 6)
    panels[1].set_xlim(-0.7, count - 0.3)
    if len(set(role.tolist())) > 1:
        panels[0].legend()
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
    place = _layout(graph)
    lines = [(place[a], place[b]) for a, b in graph.edges]
    faint = float(np.clip(12 / math.sqrt(len(lines)), 0.06, 0.8))
    ax.add_collection(LineCollection(lines, colors=GREY, linewidths=0.8, alpha=faint, zorder=1))
    ids = np.array(sorted(graph.nodes))
    xy = np.array([place[node] for node in ids.tolist()])
    colours = _colours(nodes, ids)
    sizes = np.clip(6000 / count, 30, 260) * np.where(np.array(colours) == ORANGE, 2.5, 1.0)
    ax.scatter(xy[:, 0], xy[:, 1], s=sizes, c=colours, edgecolors="white", linewidths=0.8)
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


def _layout(graph: nx.Graph[Any]) -> dict[Any, Any]:
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
    _name_rows(ax, kinds, "label")
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
    _name_rows(ax, clients, "client")
    ax.grid(visible=False, axis="y")
    ax.legend(title="label", loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
    return figure


@rc_context(STYLE)
def draw_all(run: str | Path) -> dict[str, Path]:
    """Draw every figure that the run has data for, as ``figures/<name>.png`` and ``figures/<name>.svg``.

    Args:
        run: the run's folder; its fact ``target_accuracy``, if there is one, is the line in the curves.

    Returns:
        The PNG files by the name of the figure.

    Raises:
        BadValue: if the folder holds no record.
    """
    folder = Path(run) / "figures"
    drawn: dict[str, Path] = {}
    for name, figure in _figures(Path(run)):
        folder.mkdir(exist_ok=True)
        drawn[name] = folder / f"{name}.png"
        figure.savefig(drawn[name], dpi=144)
        figure.savefig(drawn[name].with_suffix(".svg"), metadata={"Date": None})
    return drawn


def _figures(run: Path) -> Iterator[tuple[str, Figure]]:
    metrics, rounds, presence, nodes, edges, counts = (
        read(run, table) for table in ("metrics", "rounds", "presence", "nodes", "edges", "labels")
    )
    quality = _quality(wide(metrics, rounds))
    known = facts(run)
    target = known.get("target_accuracy") if quality == "accuracy" else None
    if quality:
        yield "curves", curves(metrics, rounds, target)
    if quality == "accuracy" and any(map(_is_loss, wide(metrics, rounds))):
        yield "loss", loss(metrics, rounds)
    if not quality and len(rounds["round"]):
        yield "progress", progress(rounds)
    if len(edges["a"]):
        yield "topology", topology(edges, nodes)
    if (presence["time_us"] > 0).any() or (presence["online"] == 0).any():
        ends = [int(table["time_us"].max(initial=1)) for table in (presence, rounds, metrics)]
        yield "availability", availability(presence, nodes, max(*ends, known.get("sim_time_us", 0)))
    if (nodes["bytes_up"] + nodes["bytes_down"]).any():
        yield "traffic", traffic(nodes)
    if len(counts["client"]):
        yield "labels", labels(counts)
