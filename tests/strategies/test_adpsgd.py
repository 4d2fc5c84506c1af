"""AD-PSGD: pairs that average, changes that are applied after it, and who asks whom."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peer_lab import HEADER, LR, drive, experiment, gradient, initial, spread, step

from fedsim.spec.experiment import Local
from strategies.peer.adpsgd import ADPSGD
from topologies.graphs import complete, erdos_renyi, ring


def divided(graph):
    made = ADPSGD(local=Local(), seed=0)
    made.setup(graph)
    return made


def test_an_even_ring_uses_all_of_its_links_and_an_odd_one_drops_one():
    even, odd = divided(ring(6)), divided(ring(5))
    assert even.active == {0, 2, 4}
    assert even.partners == {i: sorted(ring(6)[i]) for i in range(6)}
    assert odd.active == {0, 2, 3}
    assert odd.partners == {0: [1, 4], 1: [0, 2], 2: [1], 3: [4], 4: [0, 3]}  # 2 and 3 are as far from 0


@settings(max_examples=40, deadline=None)
@given(n=st.integers(2, 25), seed=st.integers(0, 5))
def test_active_nodes_only_meet_passive_ones_and_nobody_is_left_out(n, seed):
    graph = erdos_renyi(n, p=1.0 if n < 12 else 0.6, seed=seed)
    made = divided(graph)
    used = nx.Graph([(i, j) for i, others in made.partners.items() for j in others])
    assert nx.is_connected(used)
    assert len(used) == n
    assert all((i in made.active) != (j in made.active) for i, j in used.edges)


def test_two_nodes_by_hand(tmp_path):
    """Both compute a change from the same start; the active one's question finds the passive one's change applied."""
    done = drive(experiment("adpsgd", 2), tmp_path)
    w = initial(done.setup)[0]
    changes = [-LR * gradient(done.setup, i, w) for i in (0, 1)]
    passive = w + changes[1]  # at 4 ms; the question comes at 14 ms
    middle = (w + passive) / 2
    assert np.abs(done.models[0] - (middle + changes[0])).max() < 1e-14
    assert np.abs(done.models[1] - middle).max() < 1e-14


def test_a_passive_node_answers_while_it_trains(tmp_path):
    """A question in the middle of a training averages at once; the change comes on top of the average."""
    given = experiment("adpsgd", 2)
    given["faults"] = [{"name": "slow_down", "at_s": 0.0, "nodes": [1], "factor": 1000.0, "for_s": 1e4}]
    done = drive(given, tmp_path, spread(2))
    setup, starts = done.setup, spread(2)
    middle = starts.mean(0)
    assert np.abs(done.models[0] - (middle - LR * gradient(setup, 0, starts[0]))).max() < 1e-14
    assert np.abs(done.models[1] - (middle - LR * gradient(setup, 1, starts[1]))).max() < 1e-14


@pytest.mark.parametrize(("topology", "left"), [("ring", 1e-3), ("complete", 1e-3)])
def test_without_training_the_mean_stays_and_differences_go(topology, left, tmp_path):
    starts = spread(6)
    done = drive(experiment("adpsgd", 6, topology, rounds=80), tmp_path, starts, stay=True)
    assert np.abs(done.models - starts.mean(0)).max() < left
    assert np.abs(done.models.mean(0) - starts.mean(0)).max() < 1e-9


def test_an_exchange_is_two_models(tmp_path):
    done = drive(experiment("adpsgd", 6, "ring", rounds=4), tmp_path)
    questions = 3 * 4
    assert sum(done.sent) == 2 * questions * (2 * 8 + HEADER)
    assert [done.sent[i] for i in (0, 2, 4)] == [4 * (2 * 8 + HEADER)] * 3


def test_nobody_waits_for_a_slow_node(tmp_path):
    given = experiment("adpsgd", 4, "complete", rounds=20)
    given["faults"] = [{"name": "slow_down", "at_s": 0.0, "nodes": [3], "factor": 100.0, "for_s": 1e4}]
    done = drive(given, tmp_path)
    work = [node.work for node in done.run.world.nodes]
    assert work[0] == 20 * 4
    assert 0 < work[3] < work[0] / 3  # it jumps to the round that the others are in


def test_without_an_answer_a_node_goes_on_alone(tmp_path):
    faults = [{"name": "crash", "at_s": 0.0, "nodes": [1]}]
    done = drive(experiment("adpsgd", 2, params={"timeout_s": 2.0}, rounds=3, faults=faults), tmp_path)
    w = initial(done.setup)[0]
    for _ in range(3):
        w = w - LR * gradient(done.setup, 0, w)
    assert np.abs(done.models[0] - w).max() < 1e-14
    assert done.run.world.clock.now_s == pytest.approx(3 * 2.004)


@pytest.mark.parametrize(("n", "active"), [(1, {0}), (2, {0}), (3, {0}), (6, {0, 1, 2}), (7, {0, 1, 2})])
def test_half_of_a_complete_graph_is_active(n, active):
    assert divided(complete(n) if n > 1 else nx.empty_graph(1)).active == active


@settings(max_examples=30, deadline=None)
@given(n=st.integers(8, 40), seed=st.integers(0, 5))
def test_most_links_of_a_dense_graph_are_used(n, seed):
    graph = erdos_renyi(n, p=0.7, seed=seed)
    made = divided(graph)
    assert all(2 * len(made.partners[node]) >= len(graph[node]) for node in graph)


def test_where_the_better_division_would_cut_the_network_it_is_not_taken():
    """Node 6 has three neighbours of its kind (1, 2, 3) and two others; but its link to 5 alone leads to 4 and 5."""
    graph = nx.Graph([(0, i) for i in (1, 2, 3, 6)] + [(6, i) for i in (1, 2, 3, 5)] + [(4, 5)])
    made = divided(graph)
    assert made.active == {0, 5}
    assert made.partners[6] == [0, 5]


def test_nodes_without_links_train_alone(tmp_path):
    given = experiment("adpsgd", 3, "empty", rounds=2, network={"overlay": True})
    done = drive(given, tmp_path)
    assert sum(done.sent) == 0
    models = initial(done.setup)
    for _ in range(2):
        models = step(done.setup, models)
    assert np.abs(done.models - models).max() < 1e-14
