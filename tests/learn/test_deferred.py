"""Deferred values: when they are computed, with what, how often, and what they keep alive."""

from __future__ import annotations

import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.errors import ValueNeeded
from fedsim.learn.deferred import Deferred, combine, compute, mean


class Add:
    """Adds a number to the sum of its inputs, and logs who was computed together."""

    def __init__(self, log, name="", batch=None, plus=0):
        self.log, self.name, self.batch, self.plus = log, name, batch, plus

    def run(self, calls, inputs):
        self.log.append([call.name for call in calls])
        return [call.plus + sum(given.values()) for call, given in zip(calls, inputs)]


def node(log, name, *sources, batch=None, plus=0):
    return Deferred(Add(log, name, batch, plus), {str(i): source for i, source in enumerate(sources)})


def vector(*numbers, dtype=torch.float64):
    return Deferred.known(torch.tensor(numbers, dtype=dtype))


def test_nothing_is_computed_before_it_is_needed():
    log = []
    value = node(log, "b", node(log, "a", Deferred.known(1)), plus=10)
    assert not value.done
    assert not value.is_phantom
    assert log == []
    assert value.value() == 11
    assert value.done
    assert log == [["a"], ["b"]]


def test_each_value_is_computed_once():
    log = []
    root = node(log, "root", Deferred.known(1))
    left, right = node(log, "left", root), node(log, "right", root, plus=1)
    assert node(log, "both", left, right, root).value() == 1 + 2 + 1
    assert (left.value(), right.value(), root.value()) == (1, 2, 1)
    assert sorted(log) == [["both"], ["left"], ["right"], ["root"]]


def test_one_value_may_be_read_under_two_names():
    assert Deferred(Add([]), {"a": (x := node([], "x", plus=4)), "b": x}).value() == 8


def test_what_nobody_needs_is_not_computed():
    log = []
    shared = node(log, "shared", plus=1)
    wanted = node(log, "wanted", shared, batch="train")
    unwanted = node(log, "unwanted", shared, batch="train")
    assert wanted.value() == 1
    assert log == [["shared"], ["wanted"]]
    assert not unwanted.done
    assert unwanted.value() == 1
    assert log == [["shared"], ["wanted"], ["unwanted"]]


def test_ready_calls_of_one_key_run_together():
    log = []
    trained = [node(log, f"t{i}", Deferred.known(i), batch="train") for i in range(4)]
    scored = [node(log, f"e{i}", Deferred.known(i), batch="evaluate") for i in range(3)]
    compute([*trained, *scored])
    assert sorted(map(sorted, log)) == [["e0", "e1", "e2"], ["t0", "t1", "t2", "t3"]]
    assert [value.value() for value in trained] == [0, 1, 2, 3]


@pytest.mark.parametrize("order", [1, -1])
def test_batches_wait_for_all_that_is_cheap(order):
    log = []
    early = node(log, "early", Deferred.known(0), batch="train")
    cheap = Deferred.known(1)
    for step in range(5):
        cheap = node(log, f"c{step}", cheap)
    late = node(log, "late", cheap, batch="train")
    compute([early, late][::order])
    assert log[:5] == [[f"c{step}"] for step in range(5)]
    assert sorted(log[5]) == ["early", "late"]
    assert len(log) == 6


@pytest.mark.parametrize("scored", [False, True])
def test_waves_on_a_ring_run_wave_by_wave(scored):
    nodes, rounds, log = 6, 5, []
    models = [vector(float(i)) for i in range(nodes)]
    wanted = []
    for round in range(rounds):
        trained = [node(log, f"t{round}.{i}", model, batch="train", plus=1) for i, model in enumerate(models)]
        models = [
            combine([trained[i - 1], trained[i], trained[(i + 1) % nodes]], [1 / 3] * 3) for i in range(nodes)
        ]
        wanted += [node(log, f"e{round}.{i}", model, batch="evaluate") for i, model in enumerate(models)]
    compute(wanted if scored else models)
    waves = [sorted(names) for names in log if names[0].startswith("t")]
    assert waves == [[f"t{round}.{i}" for i in range(nodes)] for round in range(rounds)]
    if scored:
        scores = [len(names) for names in log if names[0].startswith("e")]
        assert sum(scores) == nodes * rounds
        assert min(scores) >= nodes
    # Mixing keeps the mean, and each of the rounds adds 1 to every model.
    total = sum(float(model.value()) for model in models)
    assert total == pytest.approx(nodes * (2.5 + rounds), abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_any_graph_gives_what_eager_evaluation_gives(data):
    size = data.draw(st.integers(1, 12))
    log, values, eager, needed = [], [], [], []
    for i in range(size):
        sources = data.draw(st.lists(st.integers(0, i - 1), max_size=4)) if i else []
        key = data.draw(st.sampled_from([None, "a", "b"]))
        values.append(node(log, i, *(values[j] for j in sources), batch=key, plus=1))
        eager.append(1 + sum(eager[j] for j in sources))
        needed.append({i}.union(*(needed[j] for j in sources)))
    wanted = data.draw(st.lists(st.integers(0, size - 1), max_size=4))
    compute(values[i] for i in wanted)
    computed = [name for names in log for name in names]
    assert sorted(computed) == sorted(set().union(*(needed[i] for i in wanted)))
    assert [i for i in range(size) if values[i].done] == sorted(computed)
    assert [values[i].value() for i in range(size)] == eager


def test_a_deep_chain_does_not_recurse():
    log, depth = [], 20_000
    value = start = node(log, "start", plus=0, batch="train")
    one = Deferred.known(1)
    for i in range(depth):
        value = node(log, i, value, one, batch="train" if i % 2 else None)
    assert value.value() == depth
    assert [names[0] for names in log] == ["start", *range(depth)]
    assert start.done


def test_a_deep_chain_of_vectors_and_one_that_is_thrown_away():
    depth = 20_000
    value, step = vector(0.0), vector(1.0)
    for _ in range(depth):
        value = value + step
    thrown_away = value
    for _ in range(depth):
        thrown_away = thrown_away - step
    del thrown_away
    assert value.value().tolist() == [depth]


def test_inputs_are_let_go():
    tensor = torch.ones(3)
    watch = weakref.ref(tensor)
    doubled = Deferred.known(tensor) * 2.0
    del tensor
    assert watch() is not None
    assert doubled.value().tolist() == [2.0, 2.0, 2.0]
    assert watch() is None


class Thing:
    """Something that counts how many of its kind are alive."""

    alive = most = 0

    def __init__(self):
        Thing.alive += 1
        Thing.most = max(Thing.most, Thing.alive)

    def __del__(self):
        Thing.alive -= 1


class Make:
    def __init__(self, batch):
        self.batch = batch

    def run(self, calls, inputs):
        return [Thing() for _ in calls]


@pytest.mark.parametrize("batch", [None, "train"])
def test_a_long_chain_keeps_only_what_is_still_read(batch):
    Thing.alive = Thing.most = 0
    values = [Deferred(Make(batch), {}) for _ in range(3)]
    for _ in range(200):
        values = [Deferred(Make(batch), {"own": value, "next": values[0]}) for value in values]
    compute(values)
    assert Thing.alive == 3
    assert Thing.most <= 4 * 3


def test_a_failure_leaves_the_value_open():
    class Fragile(Add):
        def run(self, calls, inputs):
            if len(self.log) == 1:
                self.log.append("broken")
                raise OSError("no more")
            return super().run(calls, inputs)

    log = []
    before = node(log, "before", plus=2)
    value = Deferred(Fragile(log, "value", "train", 1), {"0": before})
    with pytest.raises(OSError, match="no more"):
        value.value()
    assert before.done
    assert not value.done
    assert value.value() == 3
    assert log == [["before"], "broken", ["value"]]


def test_phantoms_are_told_apart_as_values_are():
    """A strategy may group receivers by the vector that they know: every sum is a vector of its own, here as there."""
    for one, other in ((vector(1.0), vector(2.0)), (Deferred.phantom(), Deferred.phantom())):
        made = [one + other, one - other, one * 2.0, one / 2, one.pick("x"), mean([one, other]), one + other]
        assert len({*made, one, other}) == len(made) + 2


def test_phantoms_spread():
    log = []
    phantom, known = Deferred.phantom(), vector(1.0)
    dependent = node(log, "x", node(log, "y", phantom, known), batch="train")
    for value in (phantom, dependent, known + phantom, phantom * 2.0, phantom / 2, phantom.pick("loss")):
        assert value.is_phantom
        assert not value.done
        with pytest.raises(ValueNeeded, match="timing-only run"):
            value.value()
    assert not known.is_phantom
    with pytest.raises(ValueNeeded):
        compute([node(log, "z"), phantom])
    assert log == []


def test_arithmetic():
    x, y = vector(1.0, 2.0), vector(10.0, -4.0)
    assert (x + y).value().tolist() == [11.0, -2.0]
    assert (x - y).value().tolist() == [-9.0, 6.0]
    assert (x * 3.0).value().tolist() == (3.0 * x).value().tolist() == [3.0, 6.0]
    assert (y / 4).value().tolist() == [2.5, -1.0]
    assert (x - 0.5 * (x + y) / 2).value().tolist() == [1.0 - 2.75, 2.5]
    assert x.value().tolist() == [1.0, 2.0]
    assert y.value().tolist() == [10.0, -4.0]


def test_pick():
    scores = Deferred.known({"loss": 0.5, "accuracy": 0.25})
    assert scores.pick("loss").value() == 0.5
    with pytest.raises(KeyError, match="auc"):
        scores.pick("auc").value()


def test_sums_go_in_the_order_given():
    big, one = vector(1e8, dtype=torch.float32), vector(1.0, dtype=torch.float32)
    # In float32, 1e8 + 1 is 1e8 again.
    assert combine([big, one, big], [1.0, 1.0, -1.0]).value().tolist() == [0.0]
    assert combine([big, big, one], [1.0, -1.0, 1.0]).value().tolist() == [1.0]
    assert combine([one, one], [2.0, 0.25]).value().tolist() == [2.25]


def test_combine_copies():
    x = vector(1.0, 2.0)
    combine([x, x], [1.0, 2.0]).value().zero_()
    combine([x], [1.0]).value().zero_()
    assert x.value().tolist() == [1.0, 2.0]


@pytest.mark.parametrize(("vectors", "factors"), [([], []), ([vector(1.0)], []), ([vector(1.0)], [1.0, 2.0])])
def test_combine_refuses_what_does_not_match(vectors, factors):
    with pytest.raises(ValueError, match=f"{len(vectors)} vectors and {len(factors)} factors"):
        combine(vectors, factors)


def test_mean():
    assert mean([vector(1.0), vector(2.0), vector(6.0)]).value().tolist() == [3.0]
    with pytest.raises(ValueError, match="0 vectors"):
        mean([])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(-1e3, 1e3), st.floats(-10, 10)), min_size=1, max_size=8))
def test_combine_is_a_linear_combination(terms):
    found = combine([vector(x, 1.0) for x, _ in terms], [factor for _, factor in terms]).value()
    assert found.tolist() == pytest.approx(
        [sum(x * factor for x, factor in terms), sum(factor for _, factor in terms)], abs=1e-9
    )


def test_a_call_must_answer_for_all():
    class Short(Add):
        def run(self, calls, inputs):
            return [1]

    values = [Deferred(Short([], batch="train"), {}) for _ in range(2)]
    with pytest.raises(ValueError, match="zip"):
        compute(values)
