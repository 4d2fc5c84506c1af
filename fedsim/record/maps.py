"""The map of a network whose sites are known: who is where, and what the links between sites carried."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from fedsim.errors import MISSING, BadValue
from fedsim.record.schema import Place, Table
from fedsim.record.style import BLUE, BYTES, GREY, ORANGE, STYLE, colours, in_unit

NAMED_SITES = 40
"""So many sites are named; of more, only those with somebody at them."""


@rc_context(STYLE)
def network_map(places: Sequence[Place], edges: Table, links: Table, nodes: Table) -> Figure:
    """Draw sites where they are, as large as there are clients or peers at them; wide links carried much.

    Args:
        places: where routers are, and everybody at their sites.
        edges: the table ``edges``.
        links: the table ``links``, with the bytes of each link; empty before the end of a run.
        nodes: the table ``nodes``, which says who is a server.

    Raises:
        BadValue: if nobody is anywhere.
    """
    at = {place.node: (place.longitude, place.latitude) for place in places}
    if not at:
        raise BadValue("places", MISSING, "there is no place to draw")
    carried = {
        (a, b): held
        for a, b, held in zip(*(links[name].tolist() for name in ("a", "b", "bytes")), strict=True)
    }
    pairs = [(a, b) for a, b in zip(edges["a"].tolist(), edges["b"].tolist()) if at.get(a) != at.get(b)]
    lines = [(at[a], at[b]) for a, b in pairs if a in at and b in at]
    amount = np.array([carried.get((a, b), 0) for a, b in pairs if a in at and b in at], dtype=float)
    figure = Figure(figsize=(10, 5), layout="constrained")
    ax = figure.subplots()
    widths = 0.8 + 5.0 * amount / max(amount.max(initial=0.0), 1.0)
    ax.add_collection(LineCollection(lines, colors=GREY, linewidths=widths, zorder=1))
    sites = sorted(set(at.values()))
    here = Counter(at[place.node] for place in places if not place.router)
    ids = np.array(sorted(at))
    hues = dict(zip(ids.tolist(), colours(nodes, ids), strict=True))
    servers = {at[node] for node, hue in hues.items() if hue == ORANGE}
    sizes = [12 + 160 * here[site] / max(here.values(), default=1) for site in sites]
    shown = [ORANGE if site in servers else BLUE if here[site] else GREY for site in sites]
    xy = np.array(sites)
    ax.scatter(xy[:, 0], xy[:, 1], s=sizes, c=shown, edgecolors="white", linewidths=0.8, zorder=2)
    names = {at[place.node]: place.name for place in places}
    for site in sites if len(sites) <= NAMED_SITES else sorted(here)[:NAMED_SITES]:
        ax.annotate(names[site], site, (4, 4), textcoords="offset points", fontsize=7)
    most, unit = in_unit(np.array([amount.max(initial=0.0)]), BYTES, "the most that a link carried")
    ax.set(xlabel="longitude", ylabel="latitude")
    ax.set_title(f"{len(sites)} sites, {len(lines)} links; {unit}: {most[0]:.3g}")
    # A degree of longitude is shorter than one of latitude, the more so the further north.
    ax.set_aspect(1 / max(np.cos(np.radians(np.mean([north for _, north in sites]))), 0.2))
    return figure
