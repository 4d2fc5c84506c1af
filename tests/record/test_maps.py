"""The map of sites."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.collections import LineCollection

from fedsim.errors import BadValue
from fedsim.record.maps import network_map
from fedsim.record.schema import TABLES, Place

# Clients 0 to 2 and the server 3; routers 4 (Rome), 5 (Oslo), 6 (Bern, where nobody is).
SITES = {"Rome": (12.5, 41.9), "Oslo": (10.7, 59.9), "Bern": (7.4, 46.9)}
AT = {0: "Rome", 1: "Oslo", 2: "Oslo", 3: "Rome", 4: "Rome", 5: "Oslo", 6: "Bern"}
PLACES = [
    Place(node=node, name=name, longitude=SITES[name][0], latitude=SITES[name][1], router=node > 3)
    for node, name in AT.items()
]
EDGES = {"a": np.array([0, 1, 2, 3, 4, 5]), "b": np.array([4, 5, 5, 4, 5, 6])}
LINKS = {"a": np.array([0, 4]), "b": np.array([4, 5]), "bytes": np.array([10, 300])}
NODES = {
    **{name: np.zeros(4) for name in TABLES["nodes"]},
    "node": np.arange(4),
    "role": np.array(["client"] * 3 + ["server"], dtype=object),
}


def drawn(links=LINKS):
    ax = network_map(PLACES, EDGES, links, NODES).axes[0]
    lines = next(c for c in ax.collections if isinstance(c, LineCollection))
    dots = next(c for c in ax.collections if not isinstance(c, LineCollection))
    return ax, lines, dots


def test_sites_are_where_they_are_and_as_large_as_they_are_full():
    ax, _, dots = drawn()
    at = [tuple(xy) for xy in dots.get_offsets().tolist()]
    assert sorted(at) == sorted(SITES.values())
    sizes = dict(zip(at, dots.get_sizes().tolist(), strict=True))
    # Rome has a client and the server, Oslo two clients, Bern nobody.
    assert sizes[SITES["Rome"]] == sizes[SITES["Oslo"]] == 172
    assert sizes[SITES["Bern"]] == 12
    colour = dict(zip(at, map(tuple, dots.get_facecolor()), strict=True))
    assert len(set(colour.values())) == 3
    assert {text.get_text() for text in ax.texts} == set(SITES)


def test_links_between_sites_are_as_wide_as_what_they_carried():
    ax, lines, _ = drawn()
    assert [np.round(line, 1).tolist() for line in lines.get_segments()] == [
        [list(SITES["Rome"]), list(SITES["Oslo"])],
        [list(SITES["Oslo"]), list(SITES["Bern"])],
    ]
    assert lines.get_linewidths() == pytest.approx([5.8, 0.8])
    assert ax.get_title(loc="left").startswith("3 sites, 2 links; the most that a link carried")


def test_before_the_end_of_a_run_nothing_has_been_carried():
    empty = {name: np.array([], dtype=np.int64) for name in ("a", "b", "bytes")}
    assert drawn(empty)[1].get_linewidths() == pytest.approx([0.8, 0.8])


def test_a_map_needs_a_place():
    with pytest.raises(BadValue, match="there is no place to draw"):
        network_map([], EDGES, LINKS, NODES)
