"""Pacing and the plan of a visit: the paper's numbers, and what must hold for all of them."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.errors import ConfigError
from fedsim.learn.curriculum.pacing import (
    budget,
    growth,
    in_round,
    pace,
    pass_sizes,
    plan,
    plan_counts,
    share,
)
from fedsim.learn.local import LocalSGD
from fedsim.learn.sampling import local_batches, local_samples, pace_of, steps_taken
from fedsim.rng import stream
from fedsim.spec.experiment import Local
from fedsim.spec.local import Curriculum

TIMES = (0, 1, 51, 102, 204, 306, 407, 408, 510)
GOLDEN = {
    "linear": (100, 100, 150, 200, 300, 400, 499, 500, 500),
    "quad": (100, 100, 106, 125, 200, 325, 498, 500, 500),
    "root": (100, 119, 241, 300, 382, 446, 499, 500, 500),
    "step": (100, 100, 100, 100, 100, 100, 100, 500, 500),
    "exp": (100, 100, 100, 100, 102, 132, 490, 500, 500),
    "log": (100, 260, 416, 444, 472, 488, 499, 500, 500),
}
families = st.sampled_from(sorted(GOLDEN))
shares = st.floats(0.01, 1.0)
quick = settings(max_examples=50, deadline=None)
ONCE = Curriculum(order="random", pacing="step", a=1.0, b=1.0)
"""The paper's own vanilla: random, and all samples from the start."""


def training(samples: int, batch: int, epochs: int, **more) -> tuple[list[int], int, int]:
    """Return pass sizes, steps and samples of a visit with the paper's budget."""
    local = Local(batch_size=batch, epochs=epochs, curriculum=Curriculum(**more))
    sizes = [size for _, size in pace_of(local, samples)]
    return sizes, steps_taken(local, samples), local_samples(local, samples)


@pytest.mark.parametrize("family", GOLDEN)
def test_curriculum_property_01_pacing_has_the_golden_values(family):
    assert tuple(pace(t, 510, 500, family, 0.8, 0.2) for t in TIMES) == GOLDEN[family]


@given(families, st.integers(1, 300), st.integers(1, 2000), st.floats(0, 1.5), shares)
@quick
def test_curriculum_property_01_pacing_starts_at_b_and_ends_with_all(family, total, steps, a, b):
    start = pace(0, steps, total, family, a, b)
    assert start == (total if a == 0 else max(1, math.floor(b * total + 1e-9)))
    for t in (math.ceil(a * steps), math.ceil(a * steps) + 7):
        assert pace(t, steps, total, family, a, b) == total
    assert type(start) is int


@given(families, st.integers(1, 500), st.integers(1, 500), st.integers(0, 500), st.floats(0.05, 2), shares)
@quick
def test_curriculum_property_02_pacing_is_monotone(family, total, steps, t, a, b):
    here = pace(t, steps, total, family, a, b)
    assert 1 <= here <= total
    assert here <= pace(t + 1, steps, total, family, a, b)
    assert here >= pace(t, steps, total, family, 1.3 * a, b)
    assert here <= pace(t, steps, total, family, a, min(1.0, 1.3 * b))
    assert pace(t, steps, total, family, a, 1.0) == total


@given(st.integers(1, 500), st.floats(1.01, 3), shares)
@quick
def test_curriculum_property_03_a_above_one_never_reaches_the_whole(total, a, b):
    wanted = min(max(1, math.floor(total * (b + (1 - b) / a) + 1e-9)), total)
    assert pace(100, 100, total, "linear", a, b) == wanted
    assert pace(100, 100, total, "step", a, b) == max(1, math.floor(b * total + 1e-9))


@given(st.floats(0.01, 0.99))
@quick
def test_families_are_ordered(u):
    values = [growth(family, u, 1.0, 0.2) for family in ("log", "root", "linear", "quad", "exp", "step")]
    assert all(a >= b - 1e-12 for a, b in itertools.pairwise(values))


def test_the_papers_name_of_root_is_known():
    assert growth("sqrt", 0.3, 0.8, 0.2) == growth("root", 0.3, 0.8, 0.2)
    assert share(Curriculum(pacing="sqrt"), 0.4) == share(Curriculum(pacing="root"), 0.4)


def test_curriculum_property_09_passes_have_the_golden_sizes():
    local = Local(batch_size=10, epochs=10, curriculum=Curriculum())
    assert pace_of(local, 500)[:6] == [(0, 100), (10, 109), (21, 120), (33, 132), (47, 146), (62, 160)]
    local = Local(batch_size=10, epochs=5, curriculum=Curriculum())
    clock = [0, 5, 11, 19, 28, 39, 52, 67, 85, 107]
    sizes = [50, 59, 71, 86, 103, 125, 150, 178, 213, 250]
    assert pace_of(local, 250) == list(zip(clock, sizes))


@pytest.mark.parametrize(
    ("samples", "epochs", "total", "paced", "once"),
    [
        (500, 10, 510, (19, 510, 5032), (11, 550, 5500)),
        (505, 10, 510, (19, 530, 5196), (10, 510, 5050)),
        (125, 10, 130, (18, 133, 1247), (10, 130, 1250)),
        (250, 5, 130, (10, 132, 1285), (6, 150, 1500)),
    ],
)
def test_curriculum_property_09_counts_are_those_of_the_table(samples, epochs, total, paced, once):
    assert budget(samples, 10, epochs) == total
    sizes, steps, used = training(samples, 10, epochs)
    assert (len(sizes), steps, used) == paced
    sizes, steps, used = training(samples, 10, epochs, order="random", pacing="step", a=1.0, b=1.0)
    assert (len(sizes), steps, used) == once


def test_curriculum_property_09_one_epoch_never_sees_all():
    assert training(500, 10, 1) == ([100, 198, 394], 70, 692)
    assert training(125, 10, 10)[0][:3] == [32, 32, 32]


@given(st.integers(1, 200), st.integers(1, 40), st.integers(1, 60), families, shares, st.booleans())
@quick
def test_curriculum_property_10_passes_hold_each_of_the_first_ranks_once(
    samples, batch, steps, family, b, exact
):
    batch = min(batch, samples)
    paced = Curriculum(pacing=family, b=b)
    rows = plan(paced, samples, batch, steps, exact, stream(0, "test"))
    sizes, at = pass_sizes(paced, samples, batch, steps), 0
    assert sizes == sorted(sizes)  # so prefixes are nested
    for size in sizes:
        count = -(-size // batch)
        block = rows[at : at + count]
        at += count
        if len(block) == count:
            assert sorted(block[block >= 0].tolist()) == list(range(size))
            assert size == min(samples, max(size, 32))
            assert (block[:-1] >= 0).all()  # only the last batch of a pass is short
    assert plan_counts(paced, samples, batch, steps, exact) == (len(rows), int((rows >= 0).sum()))


def test_curriculum_property_11_visits_have_equal_plans_but_for_the_shuffle():
    update = LocalSGD(Local(batch_size=10, epochs=5, curriculum=Curriculum()))
    one, two = (update.batches(250, stream(0, "batches", 3, round)) for round in (1, 2))
    assert one.shape == two.shape == (132, 10)
    assert not np.array_equal(one, two)
    assert [set(a[a >= 0]) == set(b[b >= 0]) for a, b in ((one[:5], two[:5]), (one[5:11], two[5:11]))] == [
        True
    ] * 2


@given(st.integers(1, 300), st.integers(1, 50), st.integers(1, 4), families, shares)
@quick
def test_curriculum_property_13_steps_stay_near_the_budget(samples, batch, epochs, family, b):
    paced = Curriculum(pacing=family, b=b)
    total = budget(samples, batch, epochs)
    width = min(batch, samples)
    steps, _ = plan_counts(paced, samples, width, total, False)
    assert total <= steps <= total + -(-samples // width) - 1
    assert plan_counts(paced, samples, width, total, True)[0] == total


@given(st.integers(1, 120), st.integers(1, 40), st.integers(1, 3), st.booleans())
@quick
def test_vanilla_plans_are_those_without_a_curriculum(samples, batch, number, by_steps):
    length = {"steps": 5 * number} if by_steps else {"epochs": number}
    plain = Local(batch_size=batch, **length)
    vanilla = Local(batch_size=batch, curriculum=Curriculum(order="vanilla"), **length)
    rows = [local_batches(local, samples, stream(1, "test")) for local in (plain, vanilla)]
    assert np.array_equal(*rows)
    assert local_samples(plain, samples) == local_samples(vanilla, samples) == (rows[0] >= 0).sum()
    assert steps_taken(plain, samples) == steps_taken(vanilla, samples) == len(rows[0])


def test_given_steps_are_kept_exactly():
    local = Local(batch_size=10, steps=23, curriculum=Curriculum())
    rows = local_batches(local, 500, stream(0, "test"))
    assert len(rows) == steps_taken(local, 500) == 23
    assert local_samples(local, 500) == (rows >= 0).sum()


def test_random_draws_another_order_in_every_visit():
    local = Local(batch_size=10, epochs=1, curriculum=Curriculum(order="random", floor=1))
    first = [
        set(local_batches(local, 500, stream(0, "test", round=round))[:10].ravel()) for round in range(20)
    ]
    assert all(len(one) == 100 for one in first)
    assert first[0] != first[1]
    assert len(set.union(*first)) > 450  # 500 (1 - 0.8^20) = 494 are expected


def test_a_clock_over_rounds_stands_still_in_a_visit():
    paced = Curriculum(rounds=10, a=1.0, b=0.5, floor=1)
    local = Local(batch_size=10, epochs=2, curriculum=in_round(paced, 6))
    rows = local_batches(local, 100, stream(0, "test"))
    assert (
        len(rows) == 22
    )  # (100 // 10 + 1) * 2, kept exactly: the number of steps does not depend on the round
    assert rows.max() == 74  # 0.5 + 0.5 * 5 / 10
    assert share(in_round(paced, 11), 0.0) == share(in_round(paced, 50), 1.0) == 1.0
    assert share(in_round(paced, -1), 0.7) == 0.5
    assert pace_of(Local(batch_size=10, curriculum=paced), 100) == [(r, 45 + 5 * r) for r in range(1, 11)]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"b": 0.0}, "b: 0.0: must be greater than 0"),
        ({"a": -1.0}, "a: -1.0: must be at least 0"),
        ({"pacing": "liner"}, "pacing: liner"),
        ({"score": "expert", "measure": "error"}, "the expert scores by its loss alone"),
        ({"ordr": "anti"}, "did you mean order?"),
    ],
)
def test_mistakes_in_the_block_are_refused(change, words):
    from fedsim.spec.experiment import load

    local = {"curriculum": change}
    file = {"data": {"clients": 2}, "strategy": {"name": "fedavg", "local": local}, "stop": {"rounds": 1}}
    with pytest.raises(ConfigError) as caught:
        load(file)
    assert words in str(caught.value)
