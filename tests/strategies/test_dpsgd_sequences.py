"""D-PSGD beside its references: FedAvg on a complete graph, and topologies that change from round to round."""

from __future__ import annotations

import numpy as np
import pytest
from peer_lab import HEADER, drive, experiment, initial, spread, step

from fedsim import api
from topologies.mixing import metropolis_hastings
from topologies.sequences import base_graph, random_matchings


def flat(result):
    return np.concatenate([array.reshape(-1) for array in result.weights().values()])


def test_on_a_complete_graph_it_is_fedavg_with_everybody(tmp_path):
    """Clients with equally many samples, so that Flower's weights by size are equal, too."""
    file = {
        "data": {"name": "quadratic", "clients": 5, "samples": 6, "partition": "natural"},
        "model": "linear",
        "stop": {"rounds": 4},
        "compute": {"dtype": "float64"},
        "record": {"report": False},
    }
    local = {"steps": 3, "batch_size": 4, "lr": 0.05}
    fedavg = {"name": "fedavg", "local": local, "fraction_evaluate": 0.0}
    server = api.run({**file, "strategy": fedavg, "topology": "star"}, out=tmp_path)
    peers = api.run(
        {**file, "strategy": {"name": "dpsgd", "local": local}, "topology": "complete"}, out=tmp_path
    )
    assert np.abs(flat(server) - flat(peers)).max() < 1e-13
    assert peers.metrics()["consensus_distance"][-1] < 1e-13
    assert server.metrics()["loss"] == pytest.approx(peers.metrics()["loss"], rel=1e-12)


@pytest.mark.parametrize(("n", "degree"), [(6, 1), (7, 2), (12, 3)])
def test_a_base_graph_gives_exact_averages(n, degree, tmp_path):
    starts, rounds = spread(n), len(base_graph(n, degree=degree))
    given = experiment("dpsgd", n, {"name": "base_graph", "degree": degree}, rounds)
    done = drive(given, tmp_path, starts, stay=True)
    assert np.abs(done.models - starts.mean(0)).max() < 1e-12


def test_every_round_has_its_own_graph(tmp_path):
    given = experiment("dpsgd", 5, {"name": "random_matchings", "length": 6}, rounds=8)
    done = drive(given, tmp_path)
    models, graphs = initial(done.setup), random_matchings(5, length=6, seed=0)
    for round in range(8):
        models = metropolis_hastings(graphs[round % 6]) @ step(done.setup, models)
    assert np.abs(done.models - models).max() < 1e-12


def test_only_links_of_the_round_carry_messages(tmp_path):
    done = drive(experiment("dpsgd", 6, {"name": "base_graph"}, rounds=4), tmp_path)
    links = sum(graph.number_of_edges() for graph in base_graph(6))
    assert len(base_graph(6)) == 4
    assert sum(done.sent) == 2 * links * (2 * 8 + HEADER)
