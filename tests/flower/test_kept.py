"""What clients keep: in a simulation, and on a device."""

from __future__ import annotations

import gc
import weakref

import torch
from flwr.app import RecordDict

from fedsim.flower.deploy.client_state import keep_in, kept_in
from fedsim.learn.deferred import Deferred, apply
from fedsim.running import client_state as module
from fedsim.running.client_state import Kept
from fedsim.spec.experiment import Local
from strategies.server.feddyn import GRADIENT, Dynamic

UPDATE = Dynamic(Local(steps=1), 0.1)
ZEROS = Deferred.known(torch.zeros(3))


def after(before: Deferred, by: float = 1.0) -> Deferred:
    """Return the deferred result of a visit that adds to what was kept."""
    return apply(lambda v: {GRADIENT: v + by, "arrays": torch.full((3,), 9.0)}, before)


def test_zeros_at_first_and_then_what_came_out():
    kept = Kept(ZEROS)
    assert kept.of(4, UPDATE)[GRADIENT].value().tolist() == [0.0] * 3
    kept.put(4, UPDATE, after(kept.of(4, UPDATE)[GRADIENT]))
    assert kept.of(4, UPDATE)[GRADIENT].value().tolist() == [1.0] * 3
    assert kept.of(5, UPDATE)[GRADIENT].value().tolist() == [0.0] * 3


def test_nothing_is_computed_before_it_is_needed():
    kept = Kept(ZEROS)
    for _ in range(5):
        kept.put(1, UPDATE, after(kept.of(1, UPDATE)[GRADIENT]))
    assert not kept.of(1, UPDATE)[GRADIENT].done
    assert kept.of(1, UPDATE)[GRADIENT].value().tolist() == [5.0] * 3


def test_old_results_are_let_go():
    kept, seen = Kept(ZEROS), []
    for _ in range(20):
        result = after(kept.of(1, UPDATE)[GRADIENT])
        kept.put(1, UPDATE, result)
        seen.append(weakref.ref(result.value()["arrays"]))
        del result
    gc.collect()
    assert sum(ref() is not None for ref in seen) <= 1
    assert kept.of(1, UPDATE)[GRADIENT].value().tolist() == [20.0] * 3


def test_a_newer_visit_is_not_overwritten_by_an_older_one_that_is_done_first():
    kept = Kept(ZEROS)
    first = after(kept.of(1, UPDATE)[GRADIENT])
    kept.put(1, UPDATE, first)
    second = after(kept.of(1, UPDATE)[GRADIENT], 10.0)
    kept.put(1, UPDATE, second)
    first.value()
    kept.put(2, UPDATE, after(ZEROS))
    assert kept.of(1, UPDATE)[GRADIENT].value().tolist() == [11.0] * 3


def test_visits_whose_numbers_nobody_reads_do_not_pile_up():
    kept = Kept(ZEROS)
    results = []
    for _ in range(module.PENDING + 1):
        results.append(after(kept.of(1, UPDATE)[GRADIENT]))
        kept.put(1, UPDATE, results[-1])
    assert all(result.done for result in results)


def test_in_a_timing_only_run_there_is_nothing_to_keep():
    kept = Kept(Deferred.phantom())
    kept.put(1, UPDATE, Deferred.phantom())
    assert kept.of(1, UPDATE)[GRADIENT].is_phantom


def test_on_a_device_it_lives_in_the_context():
    state, like = RecordDict(), torch.zeros(6, dtype=torch.float64)
    assert kept_in(state, [GRADIENT], like)[GRADIENT].tolist() == [0.0] * 6
    new = torch.arange(6, dtype=torch.float64) / 3
    keep_in(state, {GRADIENT: new, "some": new[:2]}, [("weight", (2, 2)), ("bias", (2,))])
    assert [list(record) for record in state.values()] == [["weight", "bias"], ["own"]]
    assert torch.equal(kept_in(state, ["some"], like)["some"], new[:2])
    assert torch.equal(kept_in(state, [GRADIENT], like)[GRADIENT], new)
    assert kept_in(state, [GRADIENT], like.float())[GRADIENT].dtype == torch.float32
