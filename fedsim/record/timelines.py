"""Timelines: who was online, what every node did in a round, and what one node did in the whole run."""

from __future__ import annotations

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from fedsim.errors import MISSING, BadValue
from fedsim.record.spans import LANES, Activity, clipped, count_open, gaps, length, merged, sessions
from fedsim.record.store import Table
from fedsim.record.style import (
    BLUE,
    FAULT,
    GREEN,
    GREY,
    ORANGE,
    SECONDS,
    STYLE,
    Array,
    colours,
    human_time,
    mark_faults,
    name_rows,
    scale,
    some,
)

HUE = dict(zip((*LANES, "waiting", "offline"), (BLUE, GREEN, ORANGE, GREY, GREY)))
# Messages come and go beside a computation, whose bar is narrow enough to let them show above and below.
PLACE = dict(zip((*LANES, "waiting"), ((-0.42, 0.0), (-0.17, 0.17), (0.0, 0.42), (-0.03, 0.03))))
MANY_SPANS = 1500


@rc_context(STYLE)
def availability(presence: Table, nodes: Table, end_us: int, faults: Table | None = None) -> Figure:
    """Draw who was online when, and above it how many were.

    Args:
        presence: the table ``presence``.
        nodes: the table ``nodes``, for the roles; it may be empty.
        end_us: the end of the run in microseconds of simulated time.
        faults: see :func:`fedsim.record.store.faults`; they are marked.

    Raises:
        BadValue: if there is no transition at all.
    """
    if not len(presence["node"]):
        raise BadValue("presence", MISSING, "nobody was ever online or offline")
    unit, size = scale(end_us / 1e6, SECONDS)
    ids = np.unique(presence["node"])
    bars = [sessions(presence, node, end_us) / (1e6 * size) for node in ids]
    rows = float(np.clip(0.16 * len(ids), 1.2, 5.5))
    figure = Figure(figsize=(10, 1.9 + rows), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[1.1, rows])
    moments, online = count_open(np.concatenate(bars), end_us / (1e6 * size))
    above.fill_between(moments, online, step="post", color=BLUE, alpha=0.25, linewidth=0)
    above.step(moments, online, where="post", color=BLUE, linewidth=1)
    above.set(ylabel="online", ylim=(0, len(ids) * 1.05))
    above.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    mark_faults(above, faults, size)
    # Gaps between hundreds of thin bars would only make a pattern of their own.
    half = 0.4 if len(ids) <= 60 else 0.5
    hues = np.array(colours(nodes, ids))
    for colour in dict.fromkeys(hues.tolist()):
        mine = np.flatnonzero(hues == colour)
        rows_of = np.repeat(mine, [len(bars[row]) for row in mine])
        _draw(below, np.concatenate([bars[row] for row in mine]), rows_of, (-half, half), colour)
    below.set(xlabel=f"simulated time ({unit})", xlim=(0, end_us / (1e6 * size)), ylim=(len(ids) - 0.4, -0.6))
    mark_faults(below, faults, size, named=False)
    name_rows(below, ids, "node")
    below.grid(visible=False, axis="y")
    return figure


def _draw(
    ax: Axes, spans: Array, rows: Array, place: tuple[float, float], colour: str, edge: float = 0.0
) -> None:
    """Draw each span as a bar in its row; the place is that of the bar's edges below and above the row."""
    (left, right), low, high = spans.T, rows + place[0], rows + place[1]
    boxes = np.stack([left, low, right, low, right, high, left, high], axis=1).reshape(-1, 4, 2)
    # As lines, thousands of bars would make a file larger and slower to show than the picture they make.
    dense = len(boxes) > MANY_SPANS
    bars = PolyCollection(
        list(boxes), facecolors=colour, edgecolors=colour, linewidths=edge, rasterized=dense
    )
    ax.add_collection(bars)


@rc_context(STYLE)
def round_timeline(
    did: Activity, rounds: Table, presence: Table, nodes: Table, round: int | None = None
) -> Figure:
    """Draw what every node did between the end of the previous round and the end of a round.

    A node has a row if it sent, received or computed in this time, and the rows are in the order in which
    the nodes had finished, servers first.

    Args:
        did: what the nodes did, see :func:`fedsim.record.spans.activity`.
        rounds: the table ``rounds``.
        presence: the table ``presence``; nodes that are not in it were always online.
        nodes: the table ``nodes``, for the roles; it may be empty.
        round: the round; by default the one of median duration, of those in which anybody did anything.

    Raises:
        BadValue: if the round has not ended, or nobody did anything in it.
    """
    chosen, start_us, end_us = _window(did, rounds, round)
    ids = _rows(did, nodes, start_us, end_us)
    if not len(ids):
        raise BadValue("round", chosen, "nobody sent, received or computed anything in it")
    unit, size = scale((end_us - start_us) / 1e6, SECONDS)
    height = float(np.clip(0.19 * len(ids), 1.4, 8.0))
    figure = Figure(figsize=(10, 0.9 + height), layout="constrained")
    ax = figure.subplots()
    second = 1e6 * size
    for lane in ("waiting", "receiving", "sending", "computing"):
        done = [
            _online(presence, n, end_us) if lane == "waiting" else _spans(did, lane, n) for n in ids.tolist()
        ]
        spans = [clipped(one, start_us, end_us) - start_us for one in done]
        rows = np.repeat(np.arange(len(ids)), [len(one) for one in spans])
        _draw(ax, np.concatenate(spans) / second, rows, PLACE[lane], HUE[lane])
    broken = [_between(did.broken.get(node), start_us, end_us) - start_us for node in ids.tolist()]
    rows = np.repeat(np.arange(len(ids)), [len(times) for times in broken])
    if len(rows):
        ax.plot(np.concatenate(broken) / second, rows, "x", color=FAULT, markersize=5, zorder=4)
    _name_nodes(ax, ids, nodes)
    _explain(ax, broken=len(rows) > 0)
    title = f"round {chosen}: {human_time((end_us - start_us) / 1e6)}, {len(ids)} nodes"
    ax.set(xlabel=f"time since the round before it ended ({unit})", title=title)
    ax.set(xlim=(0, (end_us - start_us) / second), ylim=(len(ids) - 0.4, -0.6))
    return figure


def _window(did: Activity, rounds: Table, round: int | None) -> tuple[int, int, int]:
    """Return the round, by default a typical one, its beginning and its end in microseconds."""
    order = np.argsort(rounds["time_us"], kind="stable")
    numbers, ended = rounds["round"][order], rounds["time_us"][order]
    began = np.append(0, ended[:-1])
    mine = np.flatnonzero(numbers > 0 if round is None else numbers == round)
    if not len(mine):
        raise BadValue("round", MISSING if round is None else round, "it has not ended")
    if round is None:
        mine = mine[_busy(did, began, ended)[mine]]
        if not len(mine):
            raise BadValue("round", MISSING, "nobody sent, received or computed anything in any of them")
    lasted = ended[mine] - began[mine]
    # Of several that took equally long, the middle one: the first and the last are seldom like the others.
    like = mine[lasted == np.percentile(lasted, 50, method="inverted_cdf")]
    at = like[len(like) // 2]
    return int(numbers[at]), int(began[at]), int(ended[at])


def _busy(did: Activity, began: Array, ended: Array) -> Array:
    """Tell in which of some times anybody did anything; a time without length has no room for it."""
    done = [spans for lane in did.lanes.values() for spans in lane.values()]
    spans = merged(clipped(np.concatenate([np.zeros((0, 2)), *done]), 0, np.inf))
    inside: Array = np.searchsorted(spans[:, 0], ended) > np.searchsorted(spans[:, 1], began, "right")
    return inside & (ended > began)


def _rows(did: Activity, nodes: Table, start_us: int, end_us: int) -> Array:
    """Return the nodes that did something in a time: servers, then the others as they finished."""
    servers = set(nodes["node"][nodes["role"] == "server"].tolist())
    order = []
    for node in did.nodes:
        done = [clipped(_spans(did, lane, node), start_us, end_us) for lane in LANES]
        ends = np.append(np.concatenate(done)[:, 1], _between(did.broken.get(node), start_us, end_us))
        if len(ends):
            order.append((node not in servers, ends.max(), node))
    return np.array([node for *_, node in sorted(order)], dtype=np.int64)


def _spans(did: Activity, lane: str, node: int) -> Array:
    return merged(did.lanes[lane].get(node, np.zeros((0, 2))))


def _online(presence: Table, node: int, end_us: int) -> Array:
    return sessions(presence, node, end_us) if node in presence["node"] else np.array([[0, end_us]])


def _between(times: Array | None, start_us: int, end_us: int) -> Array:
    times = np.zeros(0) if times is None else times
    kept: Array = np.unique(times[(times > start_us) & (times <= end_us)])
    return kept


def _name_nodes(ax: Axes, ids: Array, nodes: Table) -> None:
    names = [f"server {node}" if hue == ORANGE else str(node) for node, hue in zip(ids, colours(nodes, ids))]
    # Up to here a name fits beside every row; of more rows, each is too thin to be told from the next.
    shown = list(range(len(ids))) if len(ids) <= 60 else some(ids)[0]
    ax.set_yticks(shown, [names[row] for row in shown], fontsize=8 if len(ids) <= 40 else 6)
    ax.set_ylabel("node")
    ax.tick_params(axis="y", length=0)
    ax.grid(visible=False, axis="y")


def _explain(ax: Axes, broken: bool) -> None:
    keys: list[Patch | Line2D] = [Patch(color=HUE[lane], label=lane) for lane in LANES]
    keys.append(Line2D([], [], color=HUE["waiting"], label="waiting"))
    if broken:
        keys.append(Line2D([], [], color=FAULT, marker="x", linestyle="", markersize=5, label="broken off"))
    ax.legend(
        handles=keys, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=len(keys), fontsize=8,
        borderaxespad=0.2, handlelength=1.2, columnspacing=1.2,
    )  # fmt: skip


@rc_context(STYLE)
def node_timeline(
    did: Activity,
    presence: Table,
    nodes: Table,
    end_us: int,
    node: int | None = None,
    faults: Table | None = None,
) -> Figure:
    """Draw what one node did in the whole run, and what share of the time that took.

    Args:
        did: what the nodes did, see :func:`fedsim.record.spans.activity`.
        presence: the table ``presence``; a node that is not in it was always online.
        nodes: the table ``nodes``, for the roles; it may be empty.
        end_us: the end of the run in microseconds of simulated time.
        node: the node; by default the client or peer that was busy for the longest time.
        faults: see :func:`fedsim.record.store.faults`; those of this node are marked.

    Raises:
        BadValue: if the node, or any, never sent, received or computed anything.
    """
    busiest = node is None
    chosen = busiest_node(did, nodes) if node is None else node
    if chosen not in did.nodes:
        raise BadValue(
            "node", MISSING if node is None else node, "it never sent, received or computed anything"
        )
    unit, size = scale(end_us / 1e6, SECONDS)
    figure = Figure(figsize=(10, 2.2), layout="constrained")
    ax = figure.subplots()
    names = []
    for row, lane in enumerate((*LANES, "offline")):
        away = gaps(_online(presence, chosen, end_us), end_us)
        spans = clipped(away if lane == "offline" else _spans(did, lane, chosen), 0, end_us)
        # The edge keeps a span visible that is shorter than a pixel.
        _draw(ax, spans / (1e6 * size), np.full(len(spans), row), (-0.35, 0.35), HUE[lane], edge=0.8)
        names.append(f"{lane}  {length(spans) / end_us:.1%}")
    ax.set(xlim=(0, end_us / (1e6 * size)), ylim=(3.6, -0.6), xlabel=f"simulated time ({unit})")
    ax.set_yticks(range(len(names)), names)
    ax.tick_params(axis="y", length=0)
    ax.grid(visible=False, axis="y")
    if faults is not None:
        mine = np.isin(faults["node"], (chosen, -1)) | (faults["peer"] == chosen)
        mark_faults(ax, {name: column[mine] for name, column in faults.items()}, size)
    role = "".join(nodes["role"][nodes["node"] == chosen][:1].tolist()) or "node"
    ax.set_title(f"{role} {chosen}" + (", the busiest" if busiest else ""))
    return figure


def busiest_node(did: Activity, nodes: Table) -> int:
    """Return the node, but no server, that sent, received or computed for the longest time; -1 if none did."""
    servers = set(nodes["node"][nodes["role"] == "server"].tolist())
    busy = {n: sum(length(_spans(did, lane, n)) for lane in LANES) for n in did.nodes if n not in servers}
    # A server that the record does not name yet gives itself away: it does not compute.
    work = {n: time for n, time in busy.items() if n in did.lanes["computing"]} or busy
    return max(work, key=lambda n: (work[n], -n), default=-1)
