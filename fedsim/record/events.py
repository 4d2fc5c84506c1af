"""What happened in a run, in lines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from fedsim.errors import BadValue
from fedsim.record.store import Table, read

UNITS = {
    "compute": "gradients",
    "done": "gradients",
    "aborted": "gradients",
    "slow": "thousandths",
    "delay": "us",
}

Told = tuple[int, int, tuple[int, int], str]
"""Time, round, the nodes that had to do with it, and what happened."""

LEAST_DIGITS = 8
"""No identity is written with fewer digits."""


def happened(
    run: str | Path,
    round: int | None = None,
    node: int | None = None,
    from_s: float | None = None,
    to_s: float | None = None,
) -> Iterator[str]:
    """Yield what happened in a run and what was measured, one line each, in the order of simulated time.

    A local update is called by the first digits of its identity, which tell it from all others of the run.

    Args:
        run: the run's folder; the run may still be going on.
        round: of this round alone; None is all.
        node: at this node or with it alone; None is all. What is measured of the whole system is left out, then.
        from_s: not before, in simulated seconds; None is the start.
        to_s: not after; None is the end.

    Raises:
        BadValue: if the folder holds no record, one without events, or nothing of what is asked for.
    """
    told = _told(run)
    chosen = [
        (time_us / 1e6, of, text)
        for time_us, of, nodes, text in told
        if round in (None, of)
        and (node is None or node in nodes)
        and (from_s is None or time_us / 1e6 >= from_s)
        and (to_s is None or time_us / 1e6 <= to_s)
    ]
    if not chosen:
        asked = {"round": round, "node": node, "from-s": from_s, "to-s": to_s}
        given = ", ".join(f"{name} {value}" for name, value in asked.items() if value is not None)
        raise BadValue("show", given, f"nothing has happened there: the run has {_extent(told)}")
    for time_s, of, text in chosen:
        yield f"{time_s:14.6f} s  {f'round {of}' if of >= 0 else '':<10}  {text}"


def _told(run: str | Path) -> list[Told]:
    """Return all that happened in a run and was measured, in the order of simulated time."""
    events, metrics, jobs = (read(run, table) for table in ("events", "metrics", "jobs"))
    if not len(events["time_us"]) and not len(jobs["time_us"]):
        raise BadValue("run", str(run), "has recorded no events", "set record.events to true")
    told: list[Told] = [
        (time_us, of, (own, peer), told_of(kind, own, peer, size, of))
        for time_us, kind, own, peer, size, of in _rows(events)
    ]
    for of, time_us, name, value, own in _rows(metrics):
        told.append((time_us, of, (own, own), f"{'' if own < 0 else f'node {own}: '}{name} = {value:.6g}"))
    digits = enough(jobs["identity"].tolist())
    for time_us, identity, own, of, _ in _rows(jobs):
        told.append((time_us, of, (own, own), f"node {own}: job {identity[:digits]}"))
    return sorted(told, key=lambda one: one[0])


def _extent(told: Sequence[Told]) -> str:
    """Return from when to when something happened, in words.

    >>> _extent([(0, 0, (-1, -1), ""), (1_500_000, 2, (3, 4), "")])
    'rounds 0 to 2 and nodes 3 to 4, from 0 s to 1.5 s'
    """
    rounds = [of for _, of, _, _ in told if of >= 0]
    nodes = [one for _, _, both, _ in told for one in both if one >= 0]
    spans = [
        f"{name} {min(one)} to {max(one)}" for name, one in (("rounds", rounds), ("nodes", nodes)) if one
    ]
    return f"{' and '.join(spans)}, from {told[0][0] / 1e6:.6g} s to {told[-1][0] / 1e6:.6g} s"


def _rows(table: Table) -> Iterator[tuple[Any, ...]]:
    return zip(*(column.tolist() for column in table.values()), strict=True)


def enough(identities: Sequence[str]) -> int:
    """Return how many digits tell identities from each other, and are no fewer than eight.

    >>> enough(["00000000", "ffffffff"]), enough(["0123456789a", "0123456789b"])
    (8, 11)
    """
    ranked, digits = sorted(set(identities)), LEAST_DIGITS
    for one, two in pairwise(ranked):
        while one[:digits] == two[:digits]:
            digits += 1
    return digits


def told_of(kind: str, node: int, peer: int, size: int, round: int) -> str:
    """Return an event in words.

    >>> told_of("deliver", 3, 5, 1000, 2)
    'node 3: deliver <- 5 1000 bytes'
    """
    if kind == "round":
        return f"round {round} has ended"
    way = ("<-" if kind == "deliver" else "->") if peer >= 0 else ""
    who = f"node {node}" if node >= 0 else "all"
    amount = f"{size} {UNITS.get(kind, 'bytes')}" if size else ""
    return " ".join(filter(None, (f"{who}:", kind, f"{way} {peer}" if way else "", amount)))
