"""D-PSGD: averages checked against plain arithmetic, consensus against the spectral gap, absences by hand."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from fedsim import api
from fedsim.errors import ConfigError, StalledError
from fedsim.learn.deferred import Deferred
from fedsim.learn.learner import Place
from fedsim.learn.local import LocalSGD
from fedsim.record.store import Record
from fedsim.running.build import prepare
from fedsim.running.observer import Observer
from fedsim.running.peers import PeerRun
from fedsim.running.threads import limited
from fedsim.spec.experiment import Local, load
from strategies.peer.dpsgd import DPSGD
from topologies.graphs import ring, torus
from topologies.mixing import metropolis_hastings, spectral_gap

LOCAL = {"steps": 2, "batch_size": 10, "lr": 0.1}


@pytest.fixture(autouse=True)
def one_thread():
    """Small models are faster with one thread, as in a run."""
    with limited(1):
        yield


def experiment(topology="complete", clients=5, **more):
    strategy = {"name": "dpsgd", "local": LOCAL, **more.pop("params", {})}
    return {
        "data": {"clients": clients, "partition": {"name": "dirichlet", "alpha": 1.0}},
        "model": "softmax",
        "strategy": strategy,
        "topology": topology,
        "stop": {"rounds": 3},
        "compute": {"dtype": "float64"},
        "record": {"report": False},
        **more,
    }


def run(given, out, **more):
    return api.run(given, out=out, **more)


def peers(result):
    """Return the final weights of every node [n, P]."""
    return load_file(result.path / "weights.safetensors")["peers/weights"]


def trained(given, models, round):
    """Return every client's weights after one round of local training from its model [n, P]."""
    learner, update = prepare(load(given)).learner, LocalSGD(Local(**LOCAL))
    ends = []
    for client, model in enumerate(models):
        start = {"arrays": Deferred.known(torch.from_numpy(model))}
        ends.append(learner.train(update, client, start, Place(client, round, 0.0)).pick("arrays"))
    return np.stack([end.value().numpy() for end in ends])


def initial(given):
    count = given["data"]["clients"]
    return np.stack([prepare(load(given)).learner.initial.value().numpy()] * count)


# averages


def test_on_a_complete_graph_a_round_is_unweighted_fedavg(tmp_path):
    given = experiment()
    models = initial(given)
    for round in (1, 2, 3):
        models = np.stack([trained(given, models, round).mean(0)] * 5)
        found = peers(run(given, tmp_path, stop__rounds=round))
        assert np.abs(found - models).max() < 1e-12
    sizes = [len(own) for own in prepare(load(given)).owned]
    assert len(set(sizes)) > 1  # weighting by size would show


@pytest.mark.parametrize("topology", ["ring", {"name": "random_regular", "degree": 3}])
def test_on_any_graph_a_round_is_training_and_one_matrix_product(topology, tmp_path):
    given = experiment(topology, clients=6)
    setup = prepare(load(given))
    mixing, models = metropolis_hastings(setup.graph), initial(given)
    for round in (1, 2, 3):
        models = mixing @ trained(given, models, round)
    assert np.abs(peers(run(given, tmp_path)) - models).max() < 1e-12


def strategy(graph, **params):
    made = DPSGD(local=Local(**LOCAL), **params)
    made.setup(graph)
    return made


def vector(*numbers):
    return Deferred.known(torch.tensor(numbers, dtype=torch.float64))


def test_mixing_by_hand():
    """On a ring every weight is a third; on a path the ends keep two thirds."""
    mix = strategy(ring(4)).mix
    assert float(mix(0, vector(3.0), {1: vector(6.0), 3: vector(12.0)}).value()) == pytest.approx(7.0)
    mix = strategy(nx.path_graph(3)).mix
    assert float(mix(0, vector(3.0), {1: vector(6.0)}).value()) == pytest.approx(4.0)
    assert float(mix(1, vector(3.0), {0: vector(6.0), 2: vector(0.0)}).value()) == pytest.approx(3.0)


def test_a_missing_models_weight_goes_to_the_nodes_own():
    mix = strategy(ring(4)).mix
    assert float(mix(0, vector(3.0), {1: vector(6.0)}).value()) == pytest.approx((2 * 3.0 + 6.0) / 3)
    assert float(mix(0, vector(3.0), {}).value()) == 3.0


def test_mixing_computes_nothing_early():
    mixed = strategy(ring(4)).mix(0, vector(1.0), {1: vector(2.0)})
    assert not mixed.done
    assert strategy(ring(4)).mix(0, Deferred.phantom(), {1: Deferred.phantom()}).is_phantom


# consensus


class Consensus(DPSGD):
    """Trains in the first round only, far away from the others; then it only mixes."""

    def run(self, node):
        model = yield from node.train(self.update, node.initial_model, 1)
        for round in node.rounds():
            node.send_model(node.neighbours, model, round)
            received = yield from node.receive_models(node.neighbours, round, self.timeout_s)
            model = self.mix(node.id, model, received)
            node.finish(round, model)


def consensus(topology, clients, **more):
    return experiment(
        topology,
        clients,
        **more,
        network={"latency_ms": 10},
        strategy={"name": f"{__name__}:Consensus", "local": LOCAL},
    )


@pytest.mark.parametrize(
    ("topology", "graph"), [("ring", ring(7)), ({"name": "torus", "rows": 3}, torus(9, rows=3))]
)
def test_models_come_together_at_the_spectral_rate(topology, graph, tmp_path):
    clients = len(graph)
    given = consensus(topology, clients, stop={"rounds": 12})
    result, rate = run(given, tmp_path), 1 - spectral_gap(graph)
    start = trained(given, initial(given), 1)
    distance = np.sqrt(((start - start.mean(0)) ** 2).sum(1).mean())
    distances = np.array([distance, *result.metrics()["consensus_distance"][1:]])
    assert distances[0] > 0.01
    assert (distances[1:] <= rate * distances[:-1] * (1 + 1e-9)).all()
    assert distances[-1] > 0
    assert np.abs(peers(result).mean(0) - start.mean(0)).max() < 1e-13
    mixed = np.linalg.matrix_power(metropolis_hastings(graph), 12) @ start
    assert np.abs(peers(result) - mixed).max() < 1e-13


# absences


def away(world, rng, *, node: int, from_s: float, to_s: float | None = None):
    """A fault: one node is offline for a while."""
    yield world.clock.timeout(round(from_s * 1e6))
    world.nodes[node].set_online(False)
    if to_s is not None:
        yield world.clock.timeout(round((to_s - from_s) * 1e6))
        world.nodes[node].set_online(True)


def absent(node, from_s, to_s=None):
    return [{"name": f"{__name__}:away", "node": node, "from_s": from_s, "to_s": to_s}]


def test_the_others_go_on_without_a_node_that_is_away(tmp_path):
    given = consensus("complete", 3, stop={"rounds": 4}, faults=absent(2, 0.0))
    given["strategy"]["timeout_s"] = 5.0
    result = run(given, tmp_path)
    start = trained(given, initial(given), 1)
    start[2] = initial(given)[2]  # it never got to train
    pair = np.array([[2 / 3, 1 / 3, 0], [1 / 3, 2 / 3, 0], [0, 0, 1]])
    assert np.abs(peers(result) - np.linalg.matrix_power(pair, 4) @ start).max() < 1e-13
    assert np.abs(peers(result).mean(0) - start.mean(0)).max() < 1e-13
    assert result.summary["sim_time_s"] == pytest.approx(0.02 + 4 * 5.0)


def test_a_node_that_returns_takes_part_again(tmp_path):
    given = experiment(
        "complete", 3, params={"timeout_s": 1.0}, stop={"rounds": 12}, faults=absent(2, 0.005, 5.5)
    )
    result = run(given, tmp_path)
    assert result.summary["rounds"] == 12
    distance = result.metrics()["consensus_distance"]
    assert distance[3] > 1e-3  # apart while it was away
    assert distance[-1] < 1e-12  # a complete graph agrees after every round
    assert result.summary["wasted_samples"] == 5


def drive(given, made, out):
    """Run a strategy that was made in code."""
    setup = prepare(load(given))
    with Record(out) as record:
        PeerRun(
            setup.world, setup.learner, made, Observer(setup.experiment, setup.learner, setup.world, record)
        ).run()


def test_without_a_timeout_a_crashed_neighbour_stalls_the_run(tmp_path):
    given = experiment("ring", 4, faults=[{"name": "crash", "at_s": 0.01, "nodes": [0]}])
    with pytest.raises(StalledError) as caught:
        drive(given, DPSGD(local=Local(**LOCAL), timeout_s=None), tmp_path)
    text = str(caught.value)
    assert "node 1 (round 0 done) waits for model of round 1 from [0]" in text
    assert "node 2 (round 1 done) waits for model of round 2 from [1, 3]" in text
    assert "node 3 (round 0 done) waits for model of round 1 from [0]" in text
    assert "node 0" not in text
    assert caught.value.round == 1


def test_it_stalls_in_the_last_round_too(tmp_path):
    given = experiment("ring", 4, stop={"rounds": 1}, faults=[{"name": "crash", "at_s": 0.01, "nodes": [0]}])
    with pytest.raises(
        StalledError, match=r"node 1 .* from \[0\]; node 3 .* from \[0\]; gone for good: \[0\]$"
    ):
        drive(given, DPSGD(local=Local(**LOCAL), timeout_s=None), tmp_path)


def test_with_a_timeout_a_crashed_neighbour_costs_the_timeout(tmp_path):
    faults = [{"name": "crash", "at_s": 0.01, "nodes": [0]}]
    result = run(experiment("ring", 4, params={"timeout_s": 7.0}, faults=faults), tmp_path)
    assert result.summary["rounds"] == 3
    assert result.summary["sim_time_s"] == pytest.approx(3 * (0.02 + 7.0))
    assert len(peers(result)) == 3  # the crashed node's model is gone


# what decides the numbers, and what does not


def shuffled(n: int, *, order: int):
    """A ring whose nodes and links are made in some order."""
    rng = np.random.Generator(np.random.Philox(key=order))
    graph = nx.Graph()
    graph.add_nodes_from(int(node) for node in rng.permutation(n))
    links = [(i, (i + 1) % n) for i in range(n)]
    graph.add_edges_from(links[int(k)][:: int(rng.choice([1, -1]))] for k in rng.permutation(n))
    return graph


def test_the_order_in_which_a_graph_was_made_does_not_matter(tmp_path):
    network = {"latency_ms": {"distribution": "exponential", "mean": 30}}
    hashes = set()
    for order in (1, 2, 3):
        topology = {"name": f"{__name__}:shuffled", "order": order}
        hashes.add(run(experiment(topology, 6, network=network), tmp_path).summary["run_hash"])
    assert len(hashes) == 1


def test_times_do_not_depend_on_training_or_engine(tmp_path):
    given = experiment(
        "ring",
        6,
        params={"timeout_s": 0.1},
        churn={"name": "exponential", "online_s": 2, "offline_s": 0.5},
        network={"latency_ms": 5, "up_mbps": 1},
        devices={"seconds_per_sample": {"distribution": "lognormal", "median": 0.002, "sigma": 1.0}},
        stop={"rounds": 8},
    )
    one = run(given, tmp_path, compute__engine="sequential")
    two = run(given, tmp_path, compute__engine="stacked")
    dry = run(given, tmp_path, timing_only=True)
    assert one.summary["event_hash"] == two.summary["event_hash"] == dry.summary["event_hash"]
    assert one.summary["bytes_lost"] > 0
    assert np.abs(peers(one) - peers(two)).max() < 1e-10


def test_rounds_are_measured_with_their_own_models(tmp_path):
    """Fast nodes are ahead of slow ones; what is measured for a round must not depend on how far."""
    devices = {"seconds_per_sample": {"distribution": "uniform", "low": 0.001, "high": 0.1}}
    even, uneven = run(experiment("ring", 6), tmp_path), run(experiment("ring", 6, devices=devices), tmp_path)
    assert even.summary["sim_time_s"] < uneven.summary["sim_time_s"]
    for name in ("loss", "loss_min", "loss_max", "accuracy", "consensus_distance"):
        assert even.metrics()[name].tolist() == uneven.metrics()[name].tolist()


def test_bytes_and_work_by_hand(tmp_path):
    summary = run(experiment("ring", 6), tmp_path).summary
    assert summary["bytes_up"] == summary["bytes_down"] == 3 * 12 * (8 * 650 + 64)
    assert summary["work_samples"] == 3 * 6 * 20
    assert summary["sim_time_s"] == pytest.approx(3 * 0.02)


# ends


def test_it_ends_by_rounds_by_time_and_by_target(tmp_path):
    assert run(experiment(), tmp_path, stop={"rounds": 2}).summary["rounds"] == 2
    timed = run(experiment(), tmp_path, stop={"sim_time_s": 0.11}).summary
    assert (timed["rounds"], timed["sim_time_s"]) == (5, 0.11)
    reached = run(experiment(), tmp_path, stop={"rounds": 200, "target": {"accuracy": 0.5}}).summary
    assert reached["accuracy"] >= 0.5
    assert reached["rounds"] < 200
    assert reached["time_to_target_s"] == reached["sim_time_s"] == pytest.approx(0.02 * reached["rounds"])


def test_one_node_alone_just_trains(tmp_path):
    given = experiment("ring", 1)
    model = initial(given)
    for round in (1, 2, 3):
        model = trained(given, model, round)
    result = run(given, tmp_path)
    assert np.abs(peers(result) - model).max() < 1e-12
    assert result.summary["bytes_up"] == 0


@pytest.mark.parametrize(
    ("params", "line"),
    [
        ({"timeout_s": 0}, "strategy.timeout_s: 0: "),
        ({"timeout_s": -1.0}, "strategy.timeout_s: -1.0: "),
        ({"timeout": 1.0}, "strategy.timeout: unknown key; did you mean timeout_s?"),
    ],
)
def test_bad_parameters(params, line):
    with pytest.raises(ConfigError) as caught:
        api.check(experiment(params=params))
    assert str(caught.value).startswith(line)
