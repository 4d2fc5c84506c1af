"""FedPAGE, BVR-L-SGD, MIFA, FedVARP and MimeLite on hand-made quadratics."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from server_lab import OPTIMUM, C, H, local, quadratics, trained, walk

from fedsim import api
from fedsim.errors import BadValue, ConfigError
from fedsim.learn.deferred import Deferred
from fedsim.learn.engines import Sequential, Stacked, TrainJob
from fedsim.learn.schedules import schedule
from fedsim.rng import stream
from fedsim.spec.experiment import Local
from strategies.server.bvr_l_sgd import BVRLSGD
from strategies.server.bvr_l_sgd import Change as GradientChange
from strategies.server.fedpage import FULL, PARTIAL, CarryOn, FedPAGE
from strategies.server.fedvarp import FedVARP
from strategies.server.mifa import MIFA, REFRESH, Memory
from strategies.server.mimelite import MimeLite, Mimic

MEAN_H = sum(H) / 3
EVERYBODY = {0, 1, 2}


def slope(x, clients=(0, 1, 2)):
    """Return the mean gradient of some clients."""
    return sum(H[i] * (x - C[i]) for i in clients) / len(clients)


# FedPAGE


def test_fedpage_with_certainty_is_gradient_descent():
    strategy = FedPAGE(participants=1, local=local(2), p=1.0, server_lr=0.3)
    models, _ = walk(strategy, quadratics(), 4)
    x = 0.0
    for found in models[1:]:
        x -= 0.3 * slope(x)
        assert found == pytest.approx(x, abs=1e-12)


def test_fedpage_by_hand():
    """Round 1 is for all, round 2 for clients 0 and 2: K = 2 steps of SARAH, divided by two steps."""
    strategy = FedPAGE(participants=3, local=local(2), p=0.0, server_lr=0.2)
    models, _ = walk(strategy, quadratics(), 2, [EVERYBODY, {0, 2}])
    # the mean gradient at 0 is -7/3, so x1 = 7/15
    assert models[1] == pytest.approx(7 / 15, abs=1e-12)
    directions = []
    for h in (1.0, 4.0):
        first = -7 / 3 + h * 7 / 15  # the gradient changes by h (x1 - x0)
        second = first - 0.1 * h * first  # and by h (y1 - x1) = -0.1 h first
        directions.append((first + second) / 2)
    assert models[2] == pytest.approx(7 / 15 - 0.2 * sum(directions) / 2, abs=1e-12)


def test_the_default_server_step_leads_to_the_mean_of_the_clients_models():
    strategy = FedPAGE(participants=3, local=local(2), p=0.0)
    models, _ = walk(strategy, quadratics(), 2)
    x1 = 0.2 * 7 / 3
    assert models[1] == pytest.approx(x1, abs=1e-12)
    ends = []
    for h in H:
        g = -7 / 3 + h * x1
        y = x1 - 0.1 * g
        ends.append(y - 0.1 * (g + h * (y - x1)))
    assert models[2] == pytest.approx(sum(ends) / 3, abs=1e-12)


def test_with_one_step_and_everybody_fedpage_is_gradient_descent():
    models, _ = walk(FedPAGE(participants=3, local=local(1), p=0.0), quadratics(), 5)
    x = 0.0
    for found in models[1:]:
        x -= 0.1 * slope(x)
        assert found == pytest.approx(x, abs=1e-12)


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_a_coin_decides_for_a_whole_round(p):
    strategy = FedPAGE(participants=2, local=local(2), p=p, seed=3)
    strategy._direction = Deferred.phantom()
    full = [strategy.is_full(round) for round in range(1, 1001)]
    assert sum(full) == pytest.approx(1000 * p, abs=60)
    assert full == [strategy.is_full(round) for round in range(1, 1001)]
    assert {strategy.size(round) for round in range(1, 1001)} == (
        {2} if p == 0 else {None} if p == 1 else {2, None}
    )


def test_a_first_round_without_an_answer_is_repeated():
    strategy = FedPAGE(participants=3, local=local(1), p=0.0, server_lr=0.1)
    models, _ = walk(strategy, quadratics(start=1.0), 2, [{1}, EVERYBODY], crash=(0, 1))
    assert models[1] == 1.0
    assert models[2] == pytest.approx(1.0 - 0.1 * slope(1.0, (0, 2)), abs=1e-12)


def test_fedpage_settles_at_the_optimum_of_clients_that_disagree():
    strategy = FedPAGE(participants=1, local=local(3, 0.05), p=0.3)
    models, _ = walk(strategy, quadratics(), 120)
    assert models[-1] == pytest.approx(OPTIMUM, abs=1e-6)


@settings(max_examples=30)
@given(
    samples=some.integers(1, 40),
    width=some.integers(1, 12),
    steps=some.integers(1, 6),
    large=some.integers(1, 50),
)
def test_the_plan_of_fedpage_adds_up(samples, width, steps, large):
    update = CarryOn(Local(steps=steps, batch_size=width, lr=0.1), large)
    rows, numbers = update.batches(samples, stream(0, "x")), update.scalars(0, samples)
    assert 2 * int((rows >= 0).sum()) == update.work(samples)
    pieces = int(numbers["pieces"])
    first = rows[:pieces][rows[:pieces] >= 0]
    assert len(set(first.tolist())) == len(first) == numbers["large"] == min(large, samples)
    assert len(rows) == pieces + steps - 1


@pytest.mark.parametrize("engine", [Sequential, Stacked])
def test_a_large_batch_in_pieces_counts_as_one(engine):
    """Client 1 has two samples that differ: in pieces of one, the first step still follows their mean."""
    lab = quadratics(h=(1.0, 1.0), c=(0.0, 0.0), copies=(1, 2), engine=engine)
    lab.engine.data.y[:] = torch.tensor([0.0, 1.0, 5.0])  # gradients x - 1 and x - 5
    update = CarryOn(Local(steps=1, batch_size=1, lr=0.1), None)
    given = {
        name: torch.tensor([value], dtype=torch.float64)
        for name, value in {"arrays": 2.0, "before": 0.5, "direction": 7.0}.items()
    }
    [result] = lab.engine.train([TrainJob(update, 1, update.batches(2, stream(0, "x")), given)])
    assert float(result["arrays"]) == pytest.approx(7.0 + 1.5, abs=1e-12)
    assert float(result["train_loss"]) == pytest.approx((0.5 + 4.5) / 2, abs=1e-12)


# BVR-L-SGD


def test_bvr_l_sgd_by_hand():
    """One client of three is followed; the direction is the mean gradient of all, renewed in every round."""
    models, _ = walk(BVRLSGD(participants=3, local=local(2)), quadratics(), 6)
    for x, found in pairwise(models):
        v = slope(x)
        ends = [x - 0.1 * v - 0.1 * (v - 0.1 * h * v) for h in H]
        assert min(abs(found - end) for end in ends) < 1e-12


def test_everybody_is_followed_now_and_then():
    models, _ = walk(BVRLSGD(participants=3, local=local(2, 0.01)), quadratics(), 40)
    followed = set()
    for x, found in pairwise(models):
        v = slope(x)
        errors = [abs(found - (x - 0.01 * v * (2 - 0.01 * h))) for h in H]
        followed.add(int(np.argmin(errors)))
    assert followed == EVERYBODY


def test_between_full_gradients_the_direction_is_carried_on():
    """A stage of two rounds: in the second, v moves by the mean change of those that take part."""
    strategy = BVRLSGD(participants=3, local=local(1), inner=2)
    models, _ = walk(strategy, quadratics(), 3, [EVERYBODY, {2}, EVERYBODY])
    x1 = 0.1 * 7 / 3
    v = -7 / 3 + 4.0 * x1  # client 2's gradient has changed by h (x1 - 0)
    x2 = x1 - 0.1 * v
    x3 = x2 - 0.1 * slope(x2)
    assert models[1:] == pytest.approx([x1, x2, x3], abs=1e-12)


def test_bvr_l_sgd_reaches_the_optimum():
    models, _ = walk(BVRLSGD(participants=3, local=local(3, 0.05), inner=3), quadratics(), 80)
    assert models[-1] == pytest.approx(OPTIMUM, abs=1e-6)


def test_without_any_gradient_nobody_is_asked_to_walk():
    models, _ = walk(BVRLSGD(participants=3, local=local(1)), quadratics(start=1.0), 2, [{1}, {0}], (0, 1))
    assert models[1] == 1.0
    assert models[2] == pytest.approx(1.0, abs=1e-12)  # client 0 is at its own optimum


@settings(max_examples=30)
@given(samples=some.integers(1, 40), width=some.integers(1, 12), steps=some.integers(1, 6))
def test_the_change_of_gradients_costs_two_passes_over_k_b_samples(samples, width, steps):
    update = GradientChange(Local(steps=steps, batch_size=width, lr=0.1))
    rows = update.batches(samples, stream(0, "x"))
    used = rows[rows >= 0]
    assert len(set(used.tolist())) == len(used) == min(steps * min(width, samples), samples)
    assert update.work(samples) == 2 * len(used)


# MIFA and FedVARP


def test_mifa_lets_the_absent_go_on():
    models, _ = walk(MIFA(participants=3, local=local(2)), quadratics(), 3, [EVERYBODY, {0}, {2}])
    x, memory = 0.0, {}
    for found, here in zip(models[1:], (EVERYBODY, {0}, {2})):
        memory.update({i: x - trained(H[i], C[i], x) for i in here})
        x -= sum(memory.values()) / 3
        assert found == pytest.approx(x, abs=1e-12)


def test_mifa_remembers_gradients_and_no_steps_of_a_rate_that_is_over():
    """Algorithm 1: G_i ← (x - y_i) / η_t, x ← x - η_t/N Σ G_i, with the rate of the round in both places."""
    factors, script = [1.0, 0.5, 0.1], [EVERYBODY, {0}, {2}]
    given = local(2, schedule={"name": "list", "factors": factors})
    lab = replace(quadratics(), schedule=schedule(given))
    models, _ = walk(MIFA(participants=3, local=given), lab, 3, script)
    x, memory = 0.0, {}
    for found, here, factor in zip(models[1:], script, factors):
        lr = 0.1 * factor
        memory.update({i: (x - trained(H[i], C[i], x, lr=lr)) / lr for i in here})
        x -= lr * sum(memory.values()) / 3
        assert found == pytest.approx(x, abs=1e-12)


def test_mifa_moves_even_if_nobody_answers():
    script = [EVERYBODY, {1}]
    models, _ = walk(
        MIFA(participants=3, local=local(1), server_lr=2.0), quadratics(), 2, script, crash=(1, 1)
    )
    x1 = 2.0 * 0.1 * 7 / 3
    assert models[1:] == pytest.approx([x1, 2 * x1], abs=1e-12)


def test_clients_that_were_never_heard_count_as_zero():
    models, _ = walk(MIFA(participants=3, local=local(1)), quadratics(), 1, [{2}])
    assert models[1] == pytest.approx(0.8 / 3, abs=1e-12)
    models, _ = walk(FedVARP(participants=3, local=local(1)), quadratics(), 1, [{2}])
    assert models[1] == pytest.approx(0.8, abs=1e-12)  # mean of Δ - 0, plus a memory of zero


def test_fedvarp_by_hand():
    script = [EVERYBODY, {0, 2}, {1}]
    models, _ = walk(FedVARP(participants=3, local=local(2), server_lr=0.5), quadratics(), 3, script)
    x, memory = 0.0, dict.fromkeys(range(3), 0.0)
    for found, here in zip(models[1:], script):
        updates = {i: x - trained(H[i], C[i], x) for i in here}
        v = sum(updates[i] - memory[i] for i in here) / len(here) + sum(memory.values()) / 3
        x -= 0.5 * v
        memory.update(updates)
        assert found == pytest.approx(x, abs=1e-12)


@pytest.mark.parametrize("method", [MIFA, FedVARP])
def test_with_everybody_the_memory_is_averaging(method):
    models, _ = walk(method(participants=3, local=local(3)), quadratics(), 3)
    x = 0.0
    for found in models[1:]:
        x = sum(trained(h, c, x, 3) for h, c in zip(H, C)) / 3
        assert found == pytest.approx(x, abs=1e-12)


@settings(max_examples=20, deadline=None)
@given(
    some.lists(
        some.dictionaries(some.integers(0, 5), some.floats(-1e6, 1e6), min_size=1), min_size=1, max_size=8
    )
)
def test_the_running_sum_is_the_sum(changes):
    memory, plain = Memory(), {}
    for change in changes:
        plain.update(change)
        memory.store(
            {node: Deferred.known(torch.tensor([one], dtype=torch.float64)) for node, one in change.items()}
        )
    assert float(memory.sum.value()) == pytest.approx(sum(plain.values()), abs=1e-6)


def test_every_so_often_the_sum_is_added_up_afresh():
    """A number too large for the others leaves a rounding error behind, until the sum is exact again."""
    memory = Memory()

    def store(**values):
        memory.store(
            {int(k[1:]): Deferred.known(torch.tensor([v], dtype=torch.float64)) for k, v in values.items()}
        )
        return float(memory.sum.value())

    store(n0=1e17, n1=1.0)
    assert store(n0=0.0) == 0.0  # 1 is lost in 1e17
    for _ in range(REFRESH - 3):
        assert store(n0=0.0) == 0.0
    assert store(n0=0.0) == 1.0


# MimeLite


def test_mimelite_by_hand():
    """β = 0.5: gradients are halved at first; then the momentum joins, frozen while clients walk."""
    models, _ = walk(MimeLite(participants=3, local=local(2), momentum=0.5), quadratics(), 2)
    x, m = 0.0, 0.0
    for found in models[1:]:
        ends = []
        for h, c in zip(H, C):
            y = x
            for _ in range(2):
                y -= 0.1 * (0.5 * h * (y - c) + 0.5 * m)
            ends.append(y)
        m, x = 0.5 * slope(x) + 0.5 * m, sum(ends) / 3
        assert found == pytest.approx(x, abs=1e-12)


def test_without_momentum_mimelite_is_averaging():
    models, _ = walk(MimeLite(participants=3, local=local(3), momentum=0.0), quadratics(), 1)
    assert models[1] == pytest.approx(sum(trained(h, c, 0.0, 3) for h, c in zip(H, C)) / 3, abs=1e-12)


@pytest.mark.parametrize("engine", [Sequential, Stacked])
def test_the_gradient_sent_back_is_the_whole_one_at_the_weights_received(engine):
    lab = quadratics(copies=(1, 3, 5), start=1.0, engine=engine)
    update = Mimic(Local(epochs=1, batch_size=2, lr=0.1), 0.5)
    given = {"arrays": lab.engine.task.initial, "momentum": torch.ones(1, dtype=torch.float64)}
    jobs = [TrainJob(update, i, update.batches(n, stream(0, "x", i)), given) for i, n in enumerate((1, 3, 5))]
    found = [float(result["gradient"]) for result in lab.engine.train(jobs)]
    assert found == pytest.approx([h * (1.0 - c) for h, c in zip(H, C)], abs=1e-12)
    assert [update.work(n) for n in (1, 3, 5)] == [2, 6, 10]


# all of them


@pytest.mark.parametrize(
    ("params", "line"),
    [
        ({"name": "fedpage", "p": 1.5, "local": {"steps": 2}}, "strategy.p: 1.5: must be at most 1"),
        (
            {"name": "fedpage"},
            "strategy.local.steps: FedPAGE counts local steps, not epochs; give local.steps",
        ),
        (
            {"name": "fedpage", "local": {"steps": 2, "lr": [0.1] * 8}},
            "strategy.server_lr: must be given where every client has its own local.lr",
        ),
        (
            {"name": "fedpage", "local": {"steps": 2, "momentum": 0.5}},
            "strategy.local.momentum: 0.5: FedPAGE has neither momentum nor weight decay",
        ),
        ({"name": "bvr_l_sgd", "inner": 0, "local": {"steps": 2}}, "strategy.inner: 0: must be at least 1"),
        ({"name": "bvr_l_sgd"}, "strategy.local.steps: BVR-L-SGD counts local steps, not epochs"),
        ({"name": "mifa", "server_lr": 0.0}, "strategy.server_lr: 0.0: must be greater than 0"),
        (
            {"name": "fedvarp", "participants": 9},
            "strategy.participants: 9: at most 8, the number of clients",
        ),
        ({"name": "mimelite", "momentum": 1.0}, "strategy.momentum: 1.0: must be less than 1"),
        (
            {"name": "mimelite", "local": {"momentum": 0.5}},
            "strategy.local.momentum: 0.5: MimeLite has no local momentum; the server's is strategy.momentum",
        ),
        ({"name": "mifa", "serverlr": 1.0}, "strategy.serverlr: unknown key; did you mean server_lr?"),
    ],
)
def test_bad_parameters(params, line):
    with pytest.raises(ConfigError) as caught:
        api.check({"data": {"clients": 8}, "strategy": {"participants": 4, **params}, "stop": {"rounds": 1}})
    assert str(caught.value).startswith(line)


def test_steps_are_counted_in_code_too():
    with pytest.raises(BadValue, match="BVR-L-SGD counts local steps"):
        BVRLSGD(participants=1, local=Local(epochs=1))


def test_the_two_kinds_of_rounds_of_fedpage_cost_what_they_should():
    strategy = FedPAGE(participants=1, local=Local(steps=3, batch_size=4, lr=0.1), large_batch=10)
    assert strategy.updates[FULL].work(20) == 10
    assert strategy.updates[PARTIAL].work(20) == 2 * (10 + 2 * 4)
