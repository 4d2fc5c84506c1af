"""The figures of a run: functions of its tables that return Matplotlib figures, and all of them as files.

No figure touches Matplotlib's global state, so they can be drawn anywhere, and in any order.
Colours are those of Okabe and Ito and of Paul Tol, which the colour-blind can tell apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from fedsim.errors import BadValue
from fedsim.record.curriculum import curriculum, pace
from fedsim.record.curves import curves, durations, is_loss, loss, progress, quality, views
from fedsim.record.files import own_folder, replaced
from fedsim.record.maps import network_map
from fedsim.record.nodes import hours, labels, topology, traffic, utilisation
from fedsim.record.numbers import changing, numbers
from fedsim.record.personal import TUNED, personal
from fedsim.record.schema import Place
from fedsim.record.servers import servers
from fedsim.record.spans import activity
from fedsim.record.store import Table, facts, faults, read, wide
from fedsim.record.style import STYLE
from fedsim.record.timelines import availability, node_timeline, round_timeline

__all__ = [
    "availability",
    "curriculum",
    "curves",
    "draw_all",
    "durations",
    "hours",
    "labels",
    "loss",
    "map",
    "node_timeline",
    "numbers",
    "pace",
    "personal",
    "progress",
    "round_timeline",
    "topology",
    "traffic",
    "utilisation",
    "views",
]


@rc_context(STYLE)
def draw_all(run: str | Path, out: str | Path | None = None) -> dict[str, Path]:
    """Draw every figure that the run has data for, as ``figures/<name>.png`` and ``figures/<name>.svg``.

    Args:
        run: the run's folder or its record; its fact ``target_accuracy``, if there is one, is the line in the curves.
        out: where the folder ``figures`` is, in the run's own folder if it is None.

    Returns:
        The PNG files by the name of the figure.

    Raises:
        BadValue: if the folder holds no record, or ``figures`` is no folder of its own.
        OSError: if a figure cannot be written.
    """
    folder = Path(run if out is None else out) / "figures"
    drawn: dict[str, Path] = {}
    for name, figure in _figures(Path(run)):
        own_folder(folder)
        drawn[name] = folder / f"{name}.png"
        with replaced(drawn[name], lasting=False) as part:
            figure.savefig(part, dpi=144)
        # The places of all parts have been found; to find them again would take as long as to draw them.
        figure.set_layout_engine("none")
        with replaced(drawn[name].with_suffix(".svg"), lasting=False) as part:
            figure.savefig(part, metadata={"Date": None})
    return drawn


def _figures(run: Path) -> Iterator[tuple[str, Figure]]:
    names = ("metrics", "rounds", "presence", "nodes", "edges", "labels")
    tables = {name: read(run, name) for name in names}
    metrics, rounds, presence, nodes, edges, counts = tables.values()
    known, broken = facts(run), faults(run)
    ends = [int(table["time_us"].max(initial=1)) for table in (presence, rounds, metrics, broken)]
    end_us = max(*ends, known.get("sim_time_us") or 0)
    table = wide(metrics, rounds)
    measured = quality(table)
    if measured:
        target = known.get("target_accuracy") if measured == "accuracy" else None
        yield "curves", curves(metrics, rounds, target, broken, nodes, evaluated_on(known))
    if measured == "accuracy" and any(map(is_loss, table)):
        yield "loss", loss(metrics, rounds)
    if not measured and len(rounds["round"]):
        yield "progress", progress(rounds, broken)
    if (rounds["round"] > 0).any():
        yield "durations", durations(rounds, broken)
    if len(edges["a"]):
        yield from _topology(run, edges, nodes, known.get("places"))
    if (presence["time_us"] > 0).any() or (presence["online"] == 0).any():
        yield "availability", availability(presence, nodes, end_us, broken)
    yield from _timelines(run, tables, broken, end_us)
    if (nodes["bytes_up"] + nodes["bytes_down"]).any():
        yield "traffic", traffic(nodes)
    if (nodes["busy_us"] + nodes["idle_us"] + nodes["offline_us"]).any():
        yield "hours", hours(nodes)
    if len(counts["client"]):
        yield "labels", labels(counts)
    if known.get("pace"):
        yield "pace", pace(known["pace"])
    yield from _of_strategies(tables, known, broken, end_us)
    if changing(table):
        yield "numbers", numbers(metrics, rounds)


def evaluated_on(known: dict[str, Any]) -> str:
    """Return what a run's models were evaluated on, as its facts say; an app alone knows what its own were.

    >>> held_out = {"origin": {"experiment": {"data": {"val_share": 0.2}}}}
    >>> evaluated_on(held_out), evaluated_on({}), evaluated_on({"app": "a"})
    ('validation', 'test', '')
    """
    if "app" in known:
        return ""
    data = ((known.get("origin") or {}).get("experiment") or {}).get("data") or {}
    return "validation" if data.get("val_share") else "test"


def _topology(run: Path, edges: Table, nodes: Table, places: Any) -> Iterator[tuple[str, Figure]]:
    yield "topology", topology(edges, nodes)
    if places:
        known = [Place.model_validate(place) for place in places]
        yield "map", network_map(known, edges, read(run, "links"), nodes)


def _of_strategies(
    tables: dict[str, Table], known: dict[str, Any], broken: Table, end_us: int
) -> Iterator[tuple[str, Figure]]:
    measured = set(tables["metrics"]["name"].tolist())
    if TUNED in measured:
        yield "personal", personal(tables["metrics"], tables["rounds"])
    if "pool" in measured:
        yield "curriculum", curriculum(tables["metrics"], known.get("difficulty_of_clients"))
    if (tables["metrics"]["node"][tables["metrics"]["name"] == "bytes_with_clients"] >= 0).any():
        yield "servers", servers(tables["metrics"], tables["rounds"], evaluated_on(known))
    if "view_mean" in measured:
        yield "views", views(tables["metrics"], tables["rounds"], tables["presence"], end_us, broken)


def _timelines(
    run: Path, tables: dict[str, Table], broken: Table, end_us: int
) -> Iterator[tuple[str, Figure]]:
    did = activity(read(run, "events"), end_us)
    rounds, presence, nodes = tables["rounds"], tables["presence"], tables["nodes"]
    if not did.nodes:
        return
    with suppress(BadValue):  # no round lasted, or nobody did anything in those that did
        yield "round", round_timeline(did, rounds, presence, nodes)
    yield "node", node_timeline(did, presence, nodes, end_us, faults=broken)
    if did.lanes["sending"]:
        yield "utilisation", utilisation(did, nodes, end_us)
