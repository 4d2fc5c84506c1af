"""In what two runs differ: their files, what happened, and the first local update that is not the same."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

from fedsim.errors import BadValue, FedsimError, short
from fedsim.learn.deferred import Deferred
from fedsim.learn.learner import Train
from fedsim.learn.unlike import unlike
from fedsim.record.events import enough, told_of
from fedsim.record.rows import rows
from fedsim.record.store import facts
from fedsim.running.redo import Job, jobs
from fedsim.running.replay import Found, Plan, planned
from fedsim.running.run import ORIGIN
from fedsim.spec.yamlfile import flat, read

OWN_KEYS = ("name", "beside")
"""What says nothing of what is done."""

MOST = 20
"""So many differences of one kind are told."""


def differences(one: Path, two: Path) -> Iterator[str]:
    """Yield in what two runs differ, in lines; either may have been stopped.

    Nothing is trained: of a local update that differs, both runs are repeated up to there to see what it is made of.

    Args:
        one, two: the folders of the runs.

    Raises:
        BadValue: if one of them holds no run.
    """
    for run in (one, two):
        if not (run / "experiment.yaml").is_file():
            raise BadValue("run", str(run), "holds no run: there is no experiment.yaml in it")
    yield from _titled("keys", list(_keys(one, two)), "the files say the same")
    yield from _titled("events", list(_events(one, two)), "")
    yield from _titled("local updates", list(_updates(one, two)), "")


def _titled(title: str, lines: Sequence[str], otherwise: str) -> Iterator[str]:
    """Yield a title and lines below it; a single one stands beside it."""
    if len(lines) < 2:
        yield f"{title}: {lines[0] if lines else otherwise}"
        return
    yield f"{title}:"
    for line in lines[:MOST]:
        yield f"  {line}"
    if len(lines) > MOST:
        yield f"  and {len(lines) - MOST} more"


def _keys(one: Path, two: Path) -> Iterator[str]:
    versions = [_origin(run).get("version") for run in (one, two)]
    if versions[0] != versions[1]:
        yield f"fedsim: {versions[0]} | {versions[1]}"
    first, second = (dict(flat(read(run / "experiment.yaml").data)) for run in (one, two))
    for key in {**first, **second}:
        if key not in OWN_KEYS and first.get(key, ()) != second.get(key, ()):
            said = [short(given[key]) if key in given else "(missing)" for given in (first, second)]
            yield f"{key}: {said[0]} | {said[1]}"


def _origin(run: Path) -> Mapping[str, Any]:
    """Return how a run began, as far as it says so."""
    found = facts(run).get(ORIGIN)
    return found if isinstance(found, dict) else {}


def _events(one: Path, two: Path) -> Iterator[str]:
    first, second = (rows(run, "events") for run in (one, two))
    if not first or not second:
        yield "one of the runs, or both, has recorded none"
        return
    for place, (a, b) in enumerate(zip_longest(first, second), 1):
        if a == b:
            continue
        if a is None or b is None:
            yield _further("events", len(first), len(second))
            return
        yield f"the first that differs is the {place:,}. one"
        yield f"first run:  {_event(a)}"
        yield f"second run: {_event(b)}"
        return
    yield f"all {len(first):,} are the same"


def _event(row: tuple[Any, ...]) -> str:
    time_us, kind, node, peer, size, round = row
    at = f"round {round}, " if round >= 0 and kind != "round" else ""
    return f"{time_us / 1e6:.6f} s, {at}{told_of(kind, node, peer, size, round)}"


def _further(what: str, one: int, two: int) -> str:
    """Say which run has more of something, of which it has all that the other one has."""
    which, other = ("first", "second") if one > two else ("second", "first")
    return f"the {which} run has {max(one, two):,} {what}, and the {other} one the first {min(one, two):,} of them"


def _updates(one: Path, two: Path) -> Iterator[str]:
    first, second = jobs(one), jobs(two)
    if not first or not second:
        yield "one of the runs, or both, has trained nothing"
        return
    new = [_first_new(own, other) for own, other in ((first, second), (second, first))]
    if new == [None, None]:
        order = (
            ""
            if [job.identity for job in first] == [job.identity for job in second]
            else ", in another order"
        )
        yield f"all {len(first):,} are the same{order}"
        return
    if None in new and [j.identity for j in first[: len(second)]] == [
        j.identity for j in second[: len(first)]
    ]:
        yield _further("local updates", len(first), len(second))
        return
    places = [len(first) + len(second) if place is None else place for place in new]
    own, other = (first, second) if places[0] <= places[1] else (second, first)
    job = own[min(places)]
    twin = next((o for o in other if _place(o) == _place(job)), None)
    digits = enough([j.identity for j in (*first, *second)])
    where = f"node {job.node} in round {job.round}" + (f", visit {job.visit}" if job.visit > 1 else "")
    if twin is None:
        which = "first" if own is first else "second"
        yield f"the first that differs is that of {where}: only the {which} run has it ({job.identity[:digits]})"
        return
    a, b = (job, twin) if own is first else (twin, job)
    yield f"the first that differs is that of {where}: {a.identity[:digits]} | {b.identity[:digits]}"
    yield from _why(one, a, two, b)


def _first_new(own: Sequence[Job], other: Sequence[Job]) -> int | None:
    """Return the place of the first local update that the other run has not."""
    known = {job.identity for job in other}
    return next((place for place, job in enumerate(own) if job.identity not in known), None)


def _place(job: Job) -> tuple[int, int, int]:
    return job.node, job.round, job.visit


def _why(one: Path, a: Job, two: Path, b: Job) -> Iterator[str]:
    """Say which of its inputs makes a local update another one."""
    found = []
    for run, job in ((one, a), (two, b)):
        try:
            found.append(planned(run, bytes.fromhex(job.identity)))
        except FedsimError as error:
            yield f"why cannot be told: {error}"
            return
    lines = list(_inputs(*found))
    yield from lines or ["what makes it so has no name that could be compared"]


def _inputs(one: Found, two: Found) -> Iterator[str]:
    first, second = one.call, two.call
    mine, its = first.learner, second.learner
    yield from unlike(mine.seed, its.seed, "seed")
    yield from unlike(_task(mine), _task(its), "model", depth=1)
    yield from unlike(mine.engine.kind, its.engine.kind, "engine")
    if mine.sizes != its.sizes:
        yield "data: the clients have other numbers of samples"
    elif mine.engine.kind is its.engine.kind:
        yield from unlike(mine.engine.arithmetic, its.engine.arithmetic, "engine", depth=1)
    if mine.names.client(first.client) != its.names.client(second.client):
        sizes = mine.sizes[first.client], its.sizes[second.client]
        same = "other ones, or in another order"
        yield "data: " + (same if sizes[0] == sizes[1] else f"{sizes[0]} samples | {sizes[1]} samples")
    if mine.names.judgement(first.client, first.update) != its.names.judgement(second.client, second.update):
        yield "data: the expert finds other samples hard"
    yield from _once(unlike(first.update, second.update, "update"))
    yield from unlike(first.said, second.said, "numbers")
    for name in {**one.inputs, **two.inputs}:
        a, b = one.inputs.get(name), two.inputs.get(name)
        if a is None or b is None:
            yield f"given: {name}: only the {'second' if a is None else 'first'} run gives it"
        elif a.identity != b.identity:
            yield f"given: {name}: {_made(one, a, two, b)}"


def _once(lines: Iterable[str]) -> list[str]:
    """Leave out what differs in a second place as well, such as in an update's sampling."""
    found: dict[tuple[str, str], str] = {}
    for line in lines:
        path, _, values = line.partition(": ")
        found.setdefault((path.rpartition(".")[2], values), line)
    return list(found.values())


def _task(learner: Any) -> dict[str, Any]:
    """Return what is learned, by the names that a reader knows."""
    task = learner.engine.task
    return {
        "initial weights": task.initial,
        "layers": task.module,
        "loss": task.criterion,
        "dtype": task.dtype,
        "buffers": (task.buffers, task.held, task.kept),
        "augmentation": task.augment,
    }


def _made(one: Found, a: Deferred, two: Found, b: Deferred) -> str:
    """Say where the ways part in which two vectors were made."""
    while True:
        calls = [_call(found, value) for found, value in ((one, a), (two, b))]
        (first, of_first), (second, of_second) = calls
        if first is None or second is None:
            start = a.done or b.done
            return "what the run begins with" if start else "made by code that does not say of what"
        if isinstance(first, Train) and isinstance(second, Train):
            return f"made of {_update(first)} | {_update(second)}"
        if type(first) is not type(second):
            return f"made by {type(first).__name__} | {type(second).__name__}"
        own = list(islice(unlike(first, second, type(first).__name__, depth=2), 1))
        if of_first.keys() != of_second.keys():
            return f"made of {len(of_first)} vectors | {len(of_second)}"
        parted = [name for name in of_first if of_first[name].identity != of_second[name].identity]
        if not parted:
            return f"made in another way: {own[0]}" if own else "made in another way"
        a, b = of_first[parted[0]], of_second[parted[0]]


def _call(found: Found, value: Deferred) -> tuple[Any, Mapping[str, Deferred]]:
    assert isinstance(found.book, Plan)
    return found.book.calls.get(value.identity, (None, {}))


def _update(call: Train) -> str:
    return f"node {call.place.node}'s update of round {call.place.round}"
