"""Epidemic learning: who sends to whom, averages by hand, and parameters that cannot be."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peer_lab import HEADER, drive, experiment, initial, spread, step

from fedsim import api
from fedsim.errors import ConfigError
from fedsim.spec.experiment import Local
from strategies.peer.epidemic import Epidemic


def made(n, receivers, variant, seed=0):
    strategy = Epidemic(local=Local(), seed=seed, receivers=receivers, variant=variant)
    strategy.check(n)
    strategy.setup(nx.empty_graph(n))
    return strategy


@settings(max_examples=40, deadline=None)
@given(data=st.data(), n=st.integers(3, 30), round=st.integers(1, 99))
def test_in_the_local_variant_everybody_sends_to_so_many_others(data, n, round):
    receivers = data.draw(st.integers(1, n - 1))
    plan = made(n, receivers, "local").plan(round)
    assert {degree for _, degree in plan.out_degree} == {receivers}
    assert nx.number_of_selfloops(plan) == 0
    assert len(plan) == n


@settings(max_examples=40, deadline=None)
@given(data=st.data(), n=st.integers(2, 15), round=st.integers(1, 99))
def test_in_the_oracle_variant_models_go_both_ways(data, n, round):
    receivers = data.draw(st.integers(1, 2 * n - 1))
    plan = made(2 * n, receivers, "oracle").plan(round)
    assert {degree for _, degree in plan.out_degree} == {receivers}
    assert all(plan.has_edge(b, a) for a, b in plan.edges)
    assert nx.number_of_selfloops(plan) == 0


@pytest.mark.parametrize("variant", ["local", "oracle"])
def test_every_round_and_seed_has_its_own_plan(variant):
    plans = [
        sorted(made(10, 3 if variant == "local" else 4, variant, seed).plan(round).edges)
        for seed in (0, 1)
        for round in (1, 2, 1)
    ]
    assert plans[0] == plans[2]
    assert plans[3] == plans[5]
    assert len({tuple(plan) for plan in plans}) == 4


def test_receivers_are_drawn_evenly():
    strategy, n, rounds = made(6, 2, "local"), 6, 600
    counts = np.zeros((n, n))
    for round in range(1, rounds + 1):
        for a, b in strategy.plan(round).edges:
            counts[a, b] += 1
    others = counts[~np.eye(n, dtype=bool)] / rounds
    assert abs(others.mean() - 2 / 5) < 1e-12
    assert np.abs(others - 2 / 5).max() < 0.1  # five standard deviations


@pytest.mark.parametrize("variant", ["local", "oracle"])
def test_rounds_are_steps_and_averages_over_the_plan(variant, tmp_path):
    given = experiment("epidemic", 6, rounds=4, params={"receivers": 2, "variant": variant})
    done = drive(given, tmp_path)
    models = initial(done.setup)
    for round in range(1, 5):
        models, plan = step(done.setup, models), done.setup.strategy.plan(round)
        models = np.stack([models[[i, *plan.predecessors(i)]].mean(0) for i in range(6)])
    assert np.abs(done.models - models).max() < 1e-12


def test_the_oracle_keeps_the_mean_and_sending_to_all_reaches_it_at_once(tmp_path):
    starts = spread(6)
    oracle = {"receivers": 3, "variant": "oracle"}
    done = drive(experiment("epidemic", 6, rounds=5, params=oracle), tmp_path / "a", starts, stay=True)
    assert np.abs(done.models.mean(0) - starts.mean(0)).max() < 1e-12
    everybody = {"receivers": 5}
    done = drive(experiment("epidemic", 6, params=everybody), tmp_path / "b", starts, stay=True)
    assert np.abs(done.models - starts.mean(0)).max() < 1e-12


def test_it_mixes_faster_than_a_fixed_graph_of_that_degree(tmp_path):
    starts = spread(16)
    params = {"receivers": 2, "variant": "oracle"}
    new = drive(experiment("epidemic", 16, rounds=12, params=params), tmp_path / "new", starts, stay=True)
    fixed = drive(experiment("dpsgd", 16, "ring", rounds=12), tmp_path / "fixed", starts, stay=True)
    assert new.models.std(0).max() < fixed.models.std(0).max() / 10


def test_bytes_by_formula(tmp_path):
    done = drive(experiment("epidemic", 7, rounds=4, params={"receivers": 3}), tmp_path)
    assert done.sent == [4 * 3 * (2 * 8 + HEADER)] * 7


def test_a_crash_costs_the_timeout(tmp_path):
    faults = [{"name": "crash", "at_s": 0.0, "nodes": [2]}]
    given = experiment("epidemic", 4, rounds=3, params={"receivers": 3, "timeout_s": 5.0}, faults=faults)
    done = drive(given, tmp_path)
    assert done.run.world.clock.now_s == pytest.approx(3 * 5.004)


@pytest.mark.parametrize(
    ("params", "text"),
    [
        ({"receivers": 5}, "strategy.receivers: 5: must be at most 4: 5 nodes have 4 others each"),
        ({"receivers": 3, "variant": "oracle"}, "strategy.receivers: 3: nodes x receivers must be even"),
        ({"receivers": 0}, "strategy.receivers: 0: "),
        ({"variant": "global"}, "strategy.variant: "),
    ],
)
def test_bad_parameters(params, text):
    with pytest.raises(ConfigError) as caught:
        api.check(experiment("epidemic", 5, params=params))
    assert str(caught.value).startswith(text)
