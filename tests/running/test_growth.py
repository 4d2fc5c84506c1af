"""Endurance: once a run is warm, it holds no more objects after many rounds than after few."""

from __future__ import annotations

import gc
import os
import sys
from collections import Counter
from pathlib import Path

import pytest

import fedsim
from fedsim.learn.deferred import DEEP, Deferred, compute
from fedsim.running.observer import PENDING
from fedsim.running.progress import Progress
from fedsim.world.clock import EMPTY

sys.path.insert(0, str(Path(__file__).parents[1] / "conformance"))

from conformance_rows import ROWS, Row, experiment

SLACK = 3 * EMPTY + 600
"""Objects that come and go: moments that were called off, and what nodes happen to be at."""


def held(row: Row, out: Path, rounds: int, timing_only: bool, **changes) -> list[Counter[str]]:
    """Return how many objects of each kind there are after a third of the rounds, and at the end.

    In a world with churn, in which one node is gone for good, and where nobody evaluates but at the start and the end.
    """
    found: list[Counter[str]] = []

    def note(progress: Progress) -> None:
        if progress.round in (rounds // 3, rounds):
            gc.collect()
            # what the interpreter and libraries remember of types and weak references is not the run's
            kinds = (type(one).__name__ for one in gc.get_objects())
            found.append(Counter(kind for kind in kinds if kind != "ReferenceType"))

    faults = [{"name": "crash", "at_s": 20.0, "count": 1}]
    given = experiment(
        row, stop={"rounds": rounds}, evaluate={"every": 10**6}, faults=faults, model="softmax", **changes
    )
    if row.name == "dpsgd_curriculum":
        given["strategy"]["rounds"] = rounds
    fedsim.run(given, out=out, timing_only=timing_only, progress=note)
    return found


def check(row: Row, found: list[Counter[str]], rounds: int) -> None:
    warm, late = found
    grown = sum(late.values()) - sum(warm.values())
    assert grown < min(SLACK, rounds), (row.name, grown, (late - warm).most_common(6))


FEW = {"fedavg", "fedasync", "dpsgd", "choco", "gossip"}
few = pytest.mark.parametrize("row", [row for row in ROWS if row.name in FEW], ids=lambda row: row.name)
every = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
soak = pytest.mark.skipif("FEDSIM_SOAK" not in os.environ, reason="takes a quarter of an hour; make soak")


@few
def test_a_long_run_that_keeps_time_does_not_grow(row: Row, tmp_path: Path) -> None:
    check(row, held(row, tmp_path, 600, timing_only=True), 600)


@pytest.mark.slow
@few
def test_two_thousand_rounds_of_a_few_do_not_grow(row: Row, tmp_path: Path) -> None:
    check(row, held(row, tmp_path, 2000, timing_only=True), 2000)


@pytest.mark.slow
@soak
@every
def test_two_thousand_rounds_do_not_grow(row: Row, tmp_path: Path) -> None:
    check(row, held(row, tmp_path, 2000, timing_only=True), 2000)


@pytest.mark.slow
@soak
@every
def test_a_long_run_that_trains_does_not_grow(row: Row, tmp_path: Path) -> None:
    """Nobody evaluates in between: what waits to be computed must not pile up."""
    local = {**row.local, "batch_size": None, "lr": 0.01}
    strategy = {"name": row.name, "local": local, **row.params}
    check(row, held(row, tmp_path, 300, timing_only=False, strategy=strategy), 300)


def test_models_that_nobody_evaluates_are_computed_now_and_then(tmp_path: Path) -> None:
    """A round of D-PSGD leaves some values waiting at each of its nodes: those of so many rounds, and no more."""
    counts: list[int] = []

    def count(progress: Progress) -> None:
        gc.collect()
        counts.append(sum(type(one) is Deferred and not one.done for one in gc.get_objects()))

    given = {
        "data": {"clients": 4},
        "model": "softmax",
        "strategy": {"name": "dpsgd", "local": {"steps": 1, "batch_size": 4, "lr": 0.1}},
        "topology": "ring",
        "stop": {"rounds": 90},
        "evaluate": {"every": 10**6},
        "record": {"report": False},
    }
    fedsim.run(given, out=tmp_path, progress=count)
    in_a_round = counts[11] - counts[10]
    assert in_a_round >= 4
    assert max(counts) <= (PENDING + 1) * in_a_round


class Add:
    batch = None

    def run(self, calls, inputs):
        return [sum(given.values()) for given in inputs]


def test_a_chain_that_nobody_reads_is_computed_in_the_end() -> None:
    """Such as the copy that a node keeps of what a neighbour knows who is gone for good."""
    value = Deferred.known(0)
    deepest = 0
    for step in range(3 * DEEP):
        value = Deferred(Add(), {"last": value, "one": Deferred.known(1)})
        deepest = max(deepest, value._depth)
        if step < DEEP:
            assert not value.done
    assert deepest <= DEEP
    compute([value])
    assert value.value() == 3 * DEEP
