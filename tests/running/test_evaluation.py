"""What is evaluated in a run of peers, and what it is called."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import load_file

from fedsim import api
from fedsim.errors import ConfigError
from fedsim.record.store import facts, read
from tests.learn.test_buffers import SENT
from tests.learn.test_buffers import experiment as buffered


def experiment(clients=12, **evaluate):
    return {
        "data": {"clients": clients, "partition": {"name": "dirichlet", "alpha": 0.3}},
        "model": "softmax",
        "strategy": {"name": "dpsgd", "local": {"steps": 2, "batch_size": 10, "lr": 0.1}},
        "topology": "ring",
        "stop": {"rounds": 3},
        "evaluate": evaluate,
        "record": {"report": False},
    }


def by_node(result, name, round):
    table = read(result.path, "metrics")
    chosen = (table["round"] == round) & (table["name"] == name) & (table["node"] >= 0)
    return dict(zip(table["node"][chosen].tolist(), table["value"][chosen].tolist(), strict=True))


def test_mean_extremes_and_worst_decile_are_those_of_the_nodes(tmp_path):
    result = api.run(experiment(), out=tmp_path)
    columns = result.metrics()
    for name, worst in (("accuracy", sorted), ("loss", lambda values: sorted(values, reverse=True))):
        values = list(by_node(result, name, 3).values())
        assert len(values) == 12
        assert columns[name][-1] == pytest.approx(np.mean(values))
        assert columns[f"{name}_min"][-1] == min(values)
        assert columns[f"{name}_max"][-1] == max(values)
        assert columns[f"{name}_worst_decile"][-1] == pytest.approx(np.mean(worst(values)[:2]))  # 2 of 12
    assert columns["nodes_evaluated"].tolist() == [12.0] * 4


def test_a_share_of_the_nodes_is_drawn_anew_for_every_evaluation(tmp_path):
    whole, some = (api.run(experiment(nodes=share), out=tmp_path) for share in (1.0, 0.25))
    drawn = []
    for round in range(4):
        values, everybody = by_node(some, "accuracy", round), by_node(whole, "accuracy", round)
        assert len(values) == 3
        assert values.items() <= everybody.items()
        drawn.append(tuple(values))
    assert len(set(drawn)) > 1
    assert some.metrics()["nodes_evaluated"].tolist() == [3.0] * 4
    for name in ("accuracy_of_average", "loss_of_average", "consensus_distance"):  # those are of all nodes
        assert some.metrics()[name].tolist() == whole.metrics()[name].tolist()
    assert some.summary["weights_hash"] == whole.summary["weights_hash"]


def test_the_distance_from_the_average_is_one_of_weights(tmp_path):
    """Peers with more samples have counted more batches, which says nothing of their models."""
    given = buffered("dpsgd", local={"epochs": 5}, topology="tree")
    given["data"]["partition"] = {"name": "quantity", "sigma": 1.0}
    result = api.run(given, out=tmp_path)
    models = load_file(result.path / "weights.safetensors")["peers/weights"]
    weights, counted = models[:, :SENT], models[:, -1]
    apart = np.linalg.norm(weights - weights.mean(0), axis=1)
    assert result.metrics()["consensus_distance"][-1] == pytest.approx(np.sqrt(np.mean(apart**2)))
    assert counted.std() > 0.1


def test_at_least_one_node_is_evaluated(tmp_path):
    result = api.run(experiment(nodes=0.01), out=tmp_path)
    assert result.metrics()["nodes_evaluated"].tolist() == [1.0] * 4


def test_the_topologys_mixing_is_a_fact_of_the_run(tmp_path):
    known = facts(api.run(experiment(clients=4), out=tmp_path).path)
    assert (known["spectral_gap"], known["mixing_rounds"]) == (0.666667, 5)


@pytest.mark.parametrize("share", [0, -0.5, 1.5])
def test_a_share_that_cannot_be(share):
    with pytest.raises(ConfigError, match=r"evaluate.nodes: "):
        api.check(experiment(nodes=share))
