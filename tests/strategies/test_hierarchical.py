"""Clients, edge servers and a cloud."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import fedsim
from fedsim.errors import ConfigError
from fedsim.learn import build as learning
from fedsim.record.store import read
from fedsim.running.build import prepare
from fedsim.spec.experiment import load
from topologies import ring, tree

BASE = {
    "data": {"name": "digits", "clients": 7},
    "model": "softmax",
    "strategy": {
        "name": "hierarchical",
        "edges": 2,
        "cloud_every": 2,
        "local": {"steps": 2, "batch_size": None},
    },
    "topology": {"name": "tree", "branching": 2},
    "compute": {"dtype": "float64"},
    "stop": {"rounds": 4},
    "record": {"report": False},
}


def strategy(graph, **given):
    made = prepare(load({**BASE, "strategy": {**BASE["strategy"], **given}})).strategy
    made.setup(graph)
    return made


def by_node(result):
    """Return the weights of the nodes that are left, by id."""
    tensors = load_file(result.path / "weights.safetensors")
    return dict(zip(tensors["peers/ids"].tolist(), tensors["peers/weights"], strict=True))


def agree(weights, nodes):
    return all(np.array_equal(weights[nodes[0]], weights[node]) for node in nodes)


def test_a_tree_has_its_servers_where_they_belong():
    made = strategy(tree(7))
    # The root 6 is the cloud, 4 and 5 are its children; of both equally near, the root belongs to the first.
    assert made.cloud == 6
    assert made.clients == {4: [4, 0, 1, 6], 5: [5, 2, 3]}


def test_of_equally_near_servers_the_one_with_fewer_clients():
    made = strategy(ring(6), edges=2)
    # On the ring 0-1-2-3-4-5, servers 3 and 4, cloud 5: 2 is next to 3 and 5 to 4, 0 and 1 two links from 4 and 3.
    assert made.clients == {3: [3, 1, 2], 4: [4, 0, 5]}


def test_too_many_servers_are_refused():
    with pytest.raises(ConfigError, match=r"strategy.edges: 7: must be less than 7, the number of peers"):
        prepare(load({**BASE, "strategy": {"name": "hierarchical", "edges": 7}}))


def test_after_an_edge_period_clients_of_one_server_agree_and_after_a_cloud_period_all(tmp_path):
    one = by_node(fedsim.run(BASE, out=tmp_path, stop__rounds=1))
    assert agree(one, [0, 1, 4, 6])
    assert agree(one, [2, 3, 5])
    assert not agree(one, [0, 2])
    two = by_node(fedsim.run(BASE, out=tmp_path, stop__rounds=2))
    assert agree(two, range(7))


def test_with_the_cloud_in_every_round_it_is_federated_averaging(tmp_path):
    flat = {**BASE["strategy"], "cloud_every": 1}
    tiers = fedsim.run({**BASE, "strategy": flat}, out=tmp_path)
    local = BASE["strategy"]["local"]
    plain = {
        **BASE,
        "topology": "star",
        "strategy": {"name": "strategies.server.fedavg:FedAvg", "participants": 7},
    }
    plain["strategy"]["local"] = local
    once = fedsim.run(plain, out=tmp_path)
    mine, theirs = tiers.weights(), once.weights()
    assert all(np.abs(mine[name] - theirs[name]).max() < 1e-10 for name in theirs)


def tiers(result):
    metrics = read(result.path, "metrics")
    last = metrics["round"] == 4
    names = ("edge_bytes", "cloud_bytes")
    return {name: float(metrics["value"][last & (metrics["name"] == name)][0]) for name in names}


def test_bytes_by_tier_are_those_of_the_messages(tmp_path):
    result = fedsim.run(BASE, out=tmp_path, network__header_bytes=0)
    found = tiers(result)
    # 650 weights of 8 bytes and a count. Five clients are not their own server: up and down in 4 rounds. The cloud is
    # asked twice by both servers, and answers.
    size = 650 * 8 + 8
    assert found == {"edge_bytes": 4 * 2 * 5 * size, "cloud_bytes": 2 * 2 * 2 * size}
    assert result.summary["bytes_up"] == sum(found.values())


def test_a_server_that_crashes_leaves_its_clients_to_themselves(tmp_path):
    given = {**BASE, "strategy": {**BASE["strategy"], "timeout_s": 5.0}, "network": {"header_bytes": 0}}
    result = fedsim.run(given, out=tmp_path, faults=[{"name": "crash", "at_s": 0.0, "nodes": [5]}])
    # What is for it is never sent: three clients, up and down in 4 rounds, and one server that asks the cloud twice.
    size = 650 * 8 + 8
    assert tiers(result) == {"edge_bytes": 4 * 2 * 3 * size, "cloud_bytes": 2 * 2 * size}
    assert result.summary["bytes_up"] == sum(tiers(result).values())
    assert result.summary["rounds"] == 4
    weights = by_node(result)
    assert sorted(weights) == [0, 1, 2, 3, 4, 6]
    assert agree(weights, [0, 1, 4, 6])
    assert not agree(weights, [2, 3])


SECOND = {
    **BASE,
    "strategy": {**BASE["strategy"], "timeout_s": 5.0, "local": {"steps": 2, "batch_size": 10}},
    "devices": {"seconds_per_sample": 0.05},
}
"""A training takes a second."""


def test_servers_that_are_clients_train_in_every_round_however_far_the_others_are(tmp_path):
    """Node 0 needs four seconds; so edge server 5 asks the cloud for round 3 when the other one is in its first."""
    slow = tmp_path / "slow.csv"
    pace = [0.2, *[0.05] * 6]
    slow.write_text("\n".join(["node,seconds_per_sample", *(f"{i},{s}" for i, s in enumerate(pace))]))
    given = {**SECOND, "strategy": {**SECOND["strategy"], "cloud_every": 3, "timeout_s": None}}
    result = fedsim.run(
        given, out=tmp_path, devices={"trace": str(slow)}, stop__rounds=6, record__events=True
    )
    assert (read(result.path, "rounds")["time_us"] / 1e6).tolist() == [4.0 * round for round in range(7)]
    events = read(result.path, "events")
    trained = np.bincount(events["node"][events["kind"] == "done"], minlength=7)
    assert trained.tolist() == [6] * 7
    assert "late" not in events["kind"].tolist()
    assert agree(by_node(result), range(7))


@pytest.mark.parametrize("away", [5, 6])
def test_a_server_that_was_away_finds_its_clients_again(away, tmp_path):
    """They have gone on alone meanwhile, one round after the other; it goes on with the round in which they are."""
    fault = {"name": "crash_recover", "at_s": 1.5, "nodes": [away], "down_s": 12.0}
    weights = by_node(fedsim.run(SECOND, out=tmp_path, faults=[fault], stop__rounds=40))
    assert agree(weights, [0, 1, 4, 6])
    assert agree(weights, [2, 3, 5])


def test_servers_whose_clients_are_always_too_late_wait_for_the_next_round(tmp_path):
    given = {**SECOND, "devices": {"seconds_per_sample": 0.3}}  # six seconds, and servers wait for five
    assert agree(by_node(fedsim.run(given, out=tmp_path, stop__rounds=40)), range(7))


def test_edge_servers_without_data_make_the_same_averages_as_several_servers(tmp_path):
    """HierFAVG written out: one full step of each client, its edge's average, and in every second round that of all."""
    given = {
        **BASE,
        "data": {"name": "digits", "clients": 6, "partition": {"name": "quantity", "sigma": 0.5}},
    }
    given |= {"topology": "stars", "network": {"servers": 2, "assign": [0, 0, 0, 1, 1, 1]}}
    given["strategy"] = {"name": "multi_server", "exchange": "all", "exchange_every": 2}
    given["strategy"]["local"] = {"steps": 1, "batch_size": None, "lr": 0.1}
    learner, data, owned = learning.build(load(given))
    x, counts = data.x.double().flatten(1), [len(own) for own in owned]
    models = [learner.initial.value()] * 2

    def stepped(model, own):
        model = model.clone().requires_grad_()
        outputs = x[own] @ model[:640].view(10, 64).T + model[640:]
        (slope,) = torch.autograd.grad(torch.nn.functional.cross_entropy(outputs, data.y[own]), model)
        return (model - 0.1 * slope).detach()

    for round in range(1, 5):
        for edge, clients in enumerate(((0, 1, 2), (3, 4, 5))):
            moved = [counts[client] * stepped(models[edge], owned[client]) for client in clients]
            models[edge] = sum(moved) / sum(counts[client] for client in clients)
        if round % 2 == 0:
            models = [(sum(counts[:3]) * models[0] + sum(counts[3:]) * models[1]) / sum(counts)] * 2
    weights = fedsim.run(given, out=tmp_path).weights()
    found = np.concatenate([weights["1.weight"].reshape(-1), weights["1.bias"]])
    np.testing.assert_allclose(found, models[0].numpy(), rtol=0, atol=1e-14)
