"""D-PSGD over the easiest neighbours: pools by hand, the weights that are left, and what scoring costs."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peer_lab import HEADER, drive, experiment, initial, spread, step

import fedsim
from fedsim import api
from fedsim.errors import ConfigError
from fedsim.learn.curriculum.pacing import pace
from fedsim.learn.deferred import Deferred
from fedsim.rng import stream
from fedsim.spec.experiment import Local
from strategies.peer.dpsgd_curriculum import LOSS_BYTES, DPSGDCurriculum
from topologies.mixing import neighbour_weights

REGULAR = {"name": "random_regular", "degree": 4}


def made(graph, **params):
    strategy = DPSGDCurriculum(local=Local(), **{"rounds": 10, **params})
    strategy.setup(graph)
    return strategy


def weights_of(strategy, node, losses, size, n):
    """Return how much every node's model weighs in the average of a node, from what it makes of unit vectors."""
    unit = torch.eye(n, dtype=torch.float64)
    heard = {
        sender: (Deferred.known(unit[sender]), Deferred.known(torch.tensor(loss, dtype=torch.float64)))
        for sender, loss in losses.items()
    }
    return strategy.mix_pool(node, Deferred.known(unit[node]), heard, 1, size).value().numpy()


def losses_of(setup, models):
    """Return every client's mean loss 0.5 (a w - b)^2 under its model, by plain arithmetic."""
    data, found = setup.learner.engine.data, []
    for own, w in zip(setup.owned, models, strict=True):
        a, b = data.x[own].numpy(), data.y[own].numpy().reshape(-1)
        found.append(float(np.mean(0.5 * (a @ w - b) ** 2)))
    return found


def digits(strategy, **blocks):
    local = {"epochs": 1, "batch_size": 20, "lr": 0.1}
    return {
        "data": {
            "clients": 8,
            "partition": {"name": "dirichlet", "alpha": 0.5, "minimum": 5},
            "test_share": 0.8,
        },
        "model": "softmax",
        "strategy": {"local": local, "timeout_s": 30.0, **strategy},
        "topology": REGULAR,
        "network": {"latency_ms": {"distribution": "uniform", "low": 5, "high": 80}, "up_mbps": 1},
        "devices": {"seconds_per_sample": {"distribution": "lognormal", "median": 0.01, "sigma": 0.5}},
        "churn": {"name": "exponential", "online_s": 20, "offline_s": 5},
        "stop": {"rounds": 4},
        "record": {"report": False},
        **blocks,
    }


@pytest.mark.parametrize(
    ("order", "size", "pool"),
    [
        ("curriculum", 1, [2]),  # 2 and 4 are equally easy: the smaller id
        ("curriculum", 2, [2, 4]),
        ("curriculum", 3, [2, 3, 4]),
        ("anti", 1, [1]),
        ("anti", 2, [1, 3]),
        ("anti", 3, [1, 3, 4]),  # the lower of two equal losses is that of 2
        ("curriculum", 4, [1, 2, 3, 4]),
        ("anti", 9, [1, 2, 3, 4]),
    ],
)
def test_one_round_of_the_hub_of_a_star_by_hand(order, size, pool):
    strategy = made(nx.star_graph(4), order=order)
    found = weights_of(strategy, 0, {1: 0.9, 2: 0.1, 3: 0.5, 4: 0.1}, size, 5)
    wanted = [1 - len(pool) / 5] + [
        0.2 if node in pool else 0.0 for node in (1, 2, 3, 4)
    ]  # 1 / (1 + degree 4)
    assert found == pytest.approx(wanted, abs=1e-15)


@settings(max_examples=50, deadline=None)
@given(
    n=st.integers(3, 9),
    seed=st.integers(0, 10**6),
    order=st.sampled_from(["curriculum", "anti"]),
    data=st.data(),
)
def test_weights_sum_to_one_and_go_to_the_first_neighbours_and_the_node_itself(n, seed, order, data):
    graph = nx.gnp_random_graph(n, 0.6, seed=seed)
    nx.add_path(graph, range(n))
    strategy, plain, node = made(graph, order=order), neighbour_weights(graph), seed % n
    heard = sorted(data.draw(st.sets(st.sampled_from(sorted(graph[node])), min_size=1)))
    loss = st.integers(0, 3).map(float)
    losses = {sender: data.draw(loss) for sender in heard}
    size = data.draw(st.integers(1, len(graph[node])))
    found = weights_of(strategy, node, losses, size, n)
    assert found.sum() == pytest.approx(1)
    assert found.min() >= 0
    assert found[node] >= plain[node][node] - 1e-12
    pool = [sender for sender in heard if found[sender]]
    assert len(pool) == min(size, len(heard))
    assert all(found[sender] == pytest.approx(plain[node][sender]) for sender in pool)
    left, sign = [losses[sender] for sender in set(heard) - set(pool)], 1 if order == "curriculum" else -1
    assert all(sign * losses[sender] <= sign * other for sender in pool for other in left)


def test_the_weights_of_all_nodes_are_not_doubly_stochastic():
    """On a path of three, the ends choose the middle, which chooses one of them."""
    strategy = made(nx.path_graph(3))
    loss = {0: 0.1, 1: 0.5, 2: 0.9}
    rows = [
        weights_of(strategy, i, {j: loss[j] for j in strategy.graph[i]}, strategy.size(1, 1), 3)
        for i in range(3)
    ]
    wanted = np.array([[2, 1, 0], [1, 2, 0], [0, 1, 2]]) / 3
    assert np.abs(np.array(rows) - wanted).max() < 1e-12
    assert wanted.sum(axis=0).tolist() == pytest.approx([1, 4 / 3, 2 / 3])


def test_a_node_that_hears_nobody_keeps_its_model():
    for order in ("curriculum", "anti", "random", "vanilla"):
        assert weights_of(made(nx.path_graph(3), order=order), 1, {}, 2, 3).tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("a", "b", "sizes"), [(0.8, 0.25, [1, 1, 1, 2, 2, 2, 3, 3, 4, 4]), (0.0, 0.25, [4] * 10)]
)
def test_the_pool_grows_with_the_rounds(a, b, sizes):
    found = [made(nx.empty_graph(1), a=a, b=b).size(4, round) for round in range(1, 11)]
    assert found == sizes


def test_vanilla_is_all_of_them_and_nobody_has_more_than_there_are():
    assert [made(nx.empty_graph(1), order="vanilla").size(4, round) for round in (1, 5)] == [4, 4]
    assert made(nx.empty_graph(1)).size(0, 1) == 0
    assert made(nx.empty_graph(1), b=1e-9).size(4, 1) == 1


@pytest.mark.parametrize("order", ["curriculum", "anti"])
def test_rounds_are_steps_and_averages_over_pools(order, tmp_path):
    params = {"rounds": 5, "order": order, "b": 0.3}
    done = drive(experiment("dpsgd_curriculum", 8, REGULAR, rounds=4, params=params), tmp_path, spread(8))
    models, graph = spread(8), done.setup.graph
    for round in range(1, 5):
        losses, trained = losses_of(done.setup, models), step(done.setup, models)
        size, models = pace(round - 1, 5, 4, "linear", 0.8, 0.3), trained.copy()
        for node in range(8):
            ranked = sorted(graph[node], key=lambda i: losses[i], reverse=order == "anti")
            for other in ranked[:size]:
                models[node] += (trained[other] - trained[node]) / 5  # every node has four neighbours
    assert np.abs(done.models - models).max() < 1e-9


def test_chance_draws_a_pool_of_the_same_size(tmp_path):
    params = {"rounds": 5, "order": "random", "b": 0.5}
    done = drive(
        experiment("dpsgd_curriculum", 8, REGULAR, rounds=1, params=params), tmp_path, spread(8), stay=True
    )
    wanted = spread(8)
    for node in range(8):
        drawn = stream(0, "neighbours", node, 1).permutation(sorted(done.setup.graph[node]))[:2]
        wanted[node] += sum(spread(8)[other] - spread(8)[node] for other in drawn) / 5
    assert np.abs(done.models - wanted).max() < 1e-12


def test_vanilla_is_dpsgd_bit_for_bit(tmp_path):
    vanilla = {"name": "dpsgd_curriculum", "rounds": 4, "order": "vanilla"}
    ours, plain = (fedsim.run(digits(one), out=tmp_path).summary for one in (vanilla, {"name": "dpsgd"}))
    for key in ("event_hash", "weights_hash", "bytes_up", "work_samples", "accuracy"):
        assert ours[key] == plain[key], key


def test_with_all_neighbours_from_the_start_the_models_are_those_of_dpsgd(tmp_path):
    whole = {"name": "dpsgd_curriculum", "rounds": 4, "a": 0.0}
    ours, plain = (
        fedsim.run(digits(one, churn="always"), out=tmp_path).summary for one in (whole, {"name": "dpsgd"})
    )
    assert ours["weights_hash"] == plain["weights_hash"]
    assert ours["sim_time_s"] > plain["sim_time_s"]  # scoring takes time


@pytest.mark.parametrize(
    ("order", "extra"), [("curriculum", LOSS_BYTES), ("anti", LOSS_BYTES), ("random", 0)]
)
def test_bytes_by_formula(order, extra, tmp_path):
    params = {"rounds": 3, "order": order}
    done = drive(experiment("dpsgd_curriculum", 6, "ring", rounds=3, params=params), tmp_path)
    assert done.sent == [3 * 2 * (2 * 8 + extra + HEADER)] * 6


@pytest.mark.parametrize(("order", "gradients"), [("curriculum", 4 + 2), ("anti", 4 + 2), ("random", 4)])
def test_scoring_takes_a_third_of_a_gradient_for_each_sample(order, gradients, tmp_path):
    """A client has 4 samples, of 0.5 s each: 4 gradients to train, and 4 forward passes, which are 2 gradients."""
    params, devices = {"rounds": 3, "order": order}, {"seconds_per_sample": 0.5}
    given = experiment("dpsgd_curriculum", 6, "ring", rounds=3, params=params, devices=devices)
    done = drive(given, tmp_path)
    assert done.run.world.clock.now_s == pytest.approx(3 * (0.5 * gradients + 0.01))
    assert done.run.world.totals()["work"] == 3 * 6 * gradients


def test_a_neighbour_that_has_crashed_is_in_no_pool(tmp_path):
    faults = [{"name": "crash", "at_s": 0.0, "nodes": [0]}]
    params = {"rounds": 9, "b": 0.5, "timeout_s": 5.0}
    given = experiment("dpsgd_curriculum", 3, "complete", params=params, faults=faults)
    done = drive(given, tmp_path, spread(3), stay=True)
    middle = spread(3)
    for node, other in ((1, 2), (2, 1)):  # each has one neighbour left, and a pool of one
        assert np.abs(done.models[node] - (2 * middle[node] + middle[other]) / 3).max() < 1e-12


def test_a_node_that_sends_its_loss_with_another_sign_is_everybodys_easiest(tmp_path):
    faults = [{"name": "corrupt", "kind": "sign_flip", "nodes": [3]}]
    params = {"rounds": 9, "b": 0.3}
    given = experiment("dpsgd_curriculum", 4, "complete", params=params, faults=faults)
    done, starts = drive(given, tmp_path, spread(4), stay=True), spread(4)
    for node in (0, 1, 2):
        assert np.abs(done.models[node] - (3 * starts[node] - starts[3]) / 4).max() < 1e-12


def test_a_curriculum_inside_the_nodes_goes_with_it(tmp_path):
    strategy = {"name": "dpsgd_curriculum", "rounds": 4}
    given = digits(strategy)
    given["strategy"]["local"] |= {"curriculum": {"floor": 4}}
    full, dry = (fedsim.run(given, out=tmp_path, timing_only=dry).summary for dry in (False, True))
    assert full["event_hash"] == dry["event_hash"]
    assert full["weights_hash"] != fedsim.run(digits(strategy), out=tmp_path).summary["weights_hash"]


def test_the_initial_model_of_all_is_the_start(tmp_path):
    done = drive(experiment("dpsgd_curriculum", 4, "ring", params={"rounds": 9}), tmp_path, stay=True)
    assert np.abs(done.models - initial(done.setup)).max() < 1e-12


@pytest.mark.parametrize(
    ("params", "key"),
    [
        ({"rounds": 0}, "rounds"),
        ({}, "rounds"),
        ({"rounds": 3, "order": "easy"}, "order"),
        ({"rounds": 3, "b": 0.0}, "b"),
        ({"rounds": 3, "a": -1.0}, "a"),
        ({"rounds": 3, "pacing": "cubic"}, "pacing"),
    ],
)
def test_bad_parameters(params, key):
    with pytest.raises(ConfigError) as caught:
        api.check(experiment("dpsgd_curriculum", 5, params=params))
    assert str(caught.value).startswith(f"strategy.{key}: ")
