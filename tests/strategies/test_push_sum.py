"""Stochastic gradient push: sums that stay, averages over one-way links, and what is lost with a message."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
from peer_lab import HEADER, drive, experiment, initial, spread, step

from fedsim import api
from fedsim.errors import ConfigError


def lopsided(n: int):
    """A directed ring with shortcuts from node 0 to everybody, so that degrees in and out differ."""
    graph = nx.DiGraph([(i, (i + 1) % n) for i in range(n)])
    graph.add_edges_from((0, j) for j in range(2, n))
    return graph


def pushed(graph, rounds, starts):
    """Return the ratio of pushed vectors and pushed weights by plain matrix powers."""
    n = len(graph)
    matrix = np.zeros((n, n))
    for i in range(n):
        targets = [i, *graph.successors(i)]
        matrix[targets, i] = 1 / len(targets)
    power = np.linalg.matrix_power(matrix, rounds)
    return power @ starts / power.sum(1, keepdims=True)


LOPSIDED = {"name": f"{__name__}:lopsided"}


@pytest.mark.parametrize("rounds", [1, 2, 7])
def test_without_training_it_is_a_matrix_power(rounds, tmp_path):
    starts = spread(5)
    done = drive(experiment("push_sum", 5, LOPSIDED, rounds), tmp_path, starts, stay=True)
    assert np.abs(done.models - pushed(lopsided(5), rounds, starts)).max() < 1e-12


def test_unequal_degrees_still_lead_to_the_plain_mean(tmp_path):
    starts = spread(5)
    done = drive(experiment("push_sum", 5, LOPSIDED, rounds=60), tmp_path, starts, stay=True)
    assert np.abs(done.models - starts.mean(0)).max() < 1e-6
    assert (
        np.abs(
            drive(experiment("push_sum", 5, LOPSIDED), tmp_path / "1", starts, stay=True).models[0]
            - starts.mean(0)
        ).max()
        > 0.1
    )


def test_two_rounds_on_a_directed_ring_by_hand(tmp_path):
    done = drive(experiment("push_sum", 3, "directed_ring", rounds=2), tmp_path)
    models = initial(done.setup)
    for _ in range(2):  # every weight stays 1: half of a node's own, half of the one before it
        models = step(done.setup, models)
        models = (models + np.roll(models, 1, 0)) / 2
    assert np.abs(done.models - models).max() < 1e-12


def test_weights_change_what_a_gradient_adds(tmp_path):
    """With unequal weights the change is added to x, and not to z."""
    done = drive(experiment("push_sum", 4, LOPSIDED, rounds=3), tmp_path)
    graph, z = lopsided(4), initial(done.setup)
    x, w = z.copy(), np.ones((4, 1))
    matrix = np.zeros((4, 4))
    for i in range(4):
        targets = [i, *graph.successors(i)]
        matrix[targets, i] = 1 / len(targets)
    for _ in range(3):
        x = matrix @ (x + step(done.setup, z) - z)
        w = matrix @ w
        z = x / w
    assert np.abs(w - 1).max() > 0.1
    assert np.abs(done.models - z).max() < 1e-12


@pytest.mark.parametrize("n", [4, 8])
def test_one_peer_exponential_averages_exactly(n, tmp_path):
    starts, rounds = spread(n), n.bit_length() - 1
    done = drive(experiment("push_sum", n, "one_peer_exponential", rounds), tmp_path, starts, stay=True)
    assert np.abs(done.models - starts.mean(0)).max() < 1e-12


def test_a_message_is_a_vector_and_a_weight(tmp_path):
    done = drive(experiment("push_sum", 5, LOPSIDED, rounds=3), tmp_path)
    size = 2 * 8 + 8 + HEADER
    assert done.sent == [3 * 4 * size, *[3 * size] * 4]


def test_an_undirected_graph_works_both_ways(tmp_path):
    starts = spread(6)
    done = drive(experiment("push_sum", 6, "ring", 2), tmp_path, starts, stay=True)
    third = np.zeros((6, 6))
    for i in range(6):
        third[[i, i - 1, (i + 1) % 6], i] = 1 / 3
    assert np.abs(done.models - third @ third @ starts).max() < 1e-12


def test_what_is_lost_takes_its_weight_with_it(tmp_path, caplog):
    """Nodes that all hold the same go on holding it, whatever is lost."""
    starts = np.tile([3.0, -1.0], (4, 1))
    faults = [{"name": "crash", "at_s": 0.025, "nodes": [2]}]
    given = experiment("push_sum", 4, "directed_exponential", 6, {"timeout_s": 1.0}, faults=faults)
    done = drive(given, tmp_path, starts, stay=True)
    assert done.lost > 0
    assert np.abs(done.models - starts).max() < 1e-12
    assert caplog.text.count("push_sum diverges if they are lost") == 1


def test_nobody_is_warned_where_everything_arrives(tmp_path, caplog):
    drive(experiment("push_sum", 4, "directed_exponential", 6, {"timeout_s": 1.0}), tmp_path, stay=True)
    assert "push_sum" not in caplog.text


@pytest.mark.parametrize(
    "name", ["dpsgd", "one_peer", "gossip", "epidemic", "adpsgd", "gradient_tracking", "choco"]
)
def test_methods_that_need_links_both_ways_say_so(name):
    with pytest.raises(ConfigError, match=f"is directed, and {name} needs links that work both ways"):
        api.check(experiment(name, 5, "directed_ring"))


def test_a_directed_graph_without_a_way_back_is_refused():
    with pytest.raises(ConfigError, match="let every node reach every other one; this one has 4 strong"):
        api.check(experiment("push_sum", 4, {"name": f"{__name__}:one_way"}))


def one_way(n: int):
    return nx.path_graph(n, create_using=nx.DiGraph)
