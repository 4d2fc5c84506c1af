"""Several servers: each averages over its own clients, and they average among themselves."""

from __future__ import annotations

import numpy as np
import pytest
from peer_lab import LR, drive, experiment, gradient

import fedsim
from fedsim.errors import BadValue, ConfigError
from fedsim.record.servers import servers
from fedsim.record.store import facts, read
from fedsim.running.build import prepare
from fedsim.spec.experiment import load

LOCAL = {"steps": 3, "batch_size": 4}
DIGITS = {
    "data": {"name": "digits", "clients": 6, "partition": {"name": "dirichlet", "alpha": 0.5}},
    "model": "softmax",
    "strategy": {"name": "multi_server", "participants": 3, "local": LOCAL},
    "topology": "stars",
    "network": {"servers": 2},
    "stop": {"rounds": 3},
    "record": {"report": False},
}


def digits(**more):
    given = {**DIGITS, **{key: one for key, one in more.items() if key in DIGITS}}
    own = {key: one for key, one in more.items() if key not in DIGITS}
    return {**given, "strategy": {**given["strategy"], **own}}


def lab(clients, out, network, rounds=1, **params):
    """Run on least squares, on the topology stars: client i is linked to server i mod servers."""
    given = experiment("multi_server", clients, "stars", rounds, params, network=network)
    return drive(given, out)


def trained(made, clients, model):
    """Return the mean of clients' models after one step from a server's, as all have 4 samples."""
    return np.mean([model - LR * gradient(made.setup, client, model) for client in clients], axis=0)


def test_one_server_is_fedavg_to_the_bit(tmp_path):
    one = digits(network={}, topology="star")
    plain = {**one, "strategy": {**one["strategy"], "name": "strategies.server.fedavg:FedAvg"}}
    mine, theirs = (fedsim.run(given, out=tmp_path).weights() for given in (one, plain))
    assert {name: value.tobytes() for name, value in mine.items()} == {
        name: value.tobytes() for name, value in theirs.items()
    }


def test_times_and_bytes_are_those_of_the_links(tmp_path):
    # A model of 2 numbers of 8 bytes. Down 16 + 64 = 80 bytes, up 24 + 64 = 88, between servers 32 + 64 = 96.
    # Server 4 has 1 Mbit/s each way, server 5 has 0.5: its two messages of 80 bytes take 160 * 8 / 0.5 = 2560 us, and
    # 1280 at server 4; after 10 ms they are there, 4 gradients of 1 ms later they are answered. Both answers of 88
    # bytes share the way down: 176 * 8 = 1408 us at 1 Mbit/s, 2816 us at 0.5; another 10 ms.
    first, second = 1280 + 10_000 + 4000 + 1408 + 10_000, 2560 + 10_000 + 4000 + 2816 + 10_000
    rates = [{"up_mbps": 1.0, "down_mbps": 1.0}, {"up_mbps": 0.5, "down_mbps": 0.5}]
    made = lab(4, tmp_path, {"latency_ms": 10, "servers": rates}, exchange_every=2)
    clock = made.run.world.clock
    assert clock.now == second
    # After two rounds both send 96 bytes: from the slow one and to it, that takes 96 * 8 / 0.5 = 1536 us and 10 ms.
    made = lab(4, tmp_path / "two", {"latency_ms": 10, "servers": rates}, rounds=2, exchange_every=2)
    assert made.run.world.clock.now == 2 * second + 1536 + 10_000
    sent = {name: {} for name in ("bytes_with_clients", "bytes_among_servers")}
    for name, value, node in made.setup.strategy.metrics(2):
        sent[name][node] = value
    own = 2 * 2 * (16 + 24)  # two rounds of two clients
    assert sent == {
        "bytes_with_clients": {-1: 2 * own, 4: own, 5: own},
        "bytes_among_servers": {-1: 2 * 32, 4: 2 * 32, 5: 2 * 32},
    }
    assert first < second
    assert sum(made.sent) == 2 * own + 2 * 32 + 64 * (2 * 8 + 2)


def test_what_is_for_a_server_that_is_down_costs_nothing(tmp_path):
    down = [{"name": "server_crash", "at_s": 0.0, "server": 1, "down_s": 1e6}]
    given = experiment("multi_server", 4, "stars", 3, {"timeout_s": 5.0}, network={"servers": 2}, faults=down)
    made = drive(given, tmp_path)
    found = {(name, node): value for name, value, node in made.setup.strategy.metrics(3)}
    assert found["bytes_with_clients", -1] == found["bytes_with_clients", 4] == 3 * 2 * (16 + 24)
    assert found["bytes_among_servers", -1] == 0  # what server 4 would send to 5
    assert sum(made.sent) == 3 * 2 * (16 + 24) + 64 * (3 * 4 + 3)  # the headers of those three messages, too


def test_weights_by_hand(tmp_path):
    made = lab(4, tmp_path, {"servers": 2}, rounds=2, exchange_every=2)
    zero = made.setup.learner.initial.value().numpy()
    one, two = zero, zero
    for _ in range(2):
        one, two = trained(made, [0, 2], one), trained(made, [1, 3], two)
    assert np.allclose(made.models, [(one + two) / 2] * 2, atol=1e-14)
    apart = lab(4, tmp_path / "apart", {"servers": 2}, rounds=2, exchange_every=3)
    assert np.allclose(apart.models, [one, two], atol=1e-14)
    assert abs(one - two).max() > 1e-3


def test_servers_count_by_the_samples_of_their_clients(tmp_path):
    network = {"servers": 2, "assign": [0, 0, 0, 1]}
    made = lab(4, tmp_path, network)
    zero = made.setup.learner.initial.value().numpy()
    one, two = trained(made, [0, 1, 2], zero), trained(made, [3], zero)
    assert np.allclose(made.models, [0.75 * one + 0.25 * two] * 2, atol=1e-14)


def test_linked_servers_mix_with_their_neighbours_alone(tmp_path):
    # On the ring of servers 5 6 7 8 with 2, 1, 1, 1 clients of 4 samples, each exchanges with two: n / 3 is 8/3 at the
    # first, 4/3 at the others. The first takes (4/3) / 8 = 1/6 of each neighbour, those take (4/3) / 4 = 1/3 of theirs.
    given = experiment(
        "multi_server",
        5,
        {"name": "stars", "links": "ring", "homes": [0, 0, 1, 2, 3]},
        1,
        {"exchange": "linked"},
        network={"servers": 4},
    )
    made = drive(given, tmp_path)
    zero = made.setup.learner.initial.value().numpy()
    a, b, c, d = (trained(made, own, zero) for own in ([0, 1], [2], [3], [4]))
    third = (2 * a / 3 + (b + d) / 6, (a + b + c) / 3, (b + c + d) / 3, (c + d + a) / 3)
    assert np.allclose(made.models, third, atol=1e-14)
    counts = np.array([8, 4, 4, 4]) / 20
    assert np.allclose(counts @ made.models, counts @ np.array([a, b, c, d]), atol=1e-14)


def test_pairs_agree_and_the_odd_one_stays(tmp_path):
    made = lab(3, tmp_path, {"servers": 3}, exchange="pairs")
    zero = made.setup.learner.initial.value().numpy()
    alone = [trained(made, [client], zero) for client in range(3)]
    same = [made.models[a].tobytes() == made.models[b].tobytes() for a, b in ((0, 1), (0, 2), (1, 2))]
    assert sum(same) == 1
    a, b = ((0, 1), (0, 2), (1, 2))[same.index(True)]
    odd = 3 - a - b
    assert np.allclose(made.models[a], (alone[a] + alone[b]) / 2, atol=1e-14)
    assert np.allclose(made.models[odd], alone[odd], atol=1e-14)


HOMES = [
    ({"servers": 2}, "stars", [4, 5, 4, 5]),
    ({"servers": 2}, {"name": "stars", "homes": [1, 1, 0, 1]}, [5, 5, 4, 5]),
    ({"servers": 2, "assign": [1, 0, 0, 1]}, "complete", [5, 4, 4, 5]),
    ({"servers": 2}, "complete", [4, 5, 4, 5]),  # equally near: to the one with fewer clients
    ({"servers": [{"latency_ms": 9}, {}], "assign": [1, 0, 1, 1]}, "complete", [5, 4, 5, 5]),
]


@pytest.mark.parametrize(("network", "topology", "homes"), HOMES)
def test_whose_client_is_whose(network, topology, homes):
    given = experiment("multi_server", 4, topology, network=network)
    assert prepare(load(given)).world.homes == homes


def test_random_servers_have_as_many_clients_each():
    made = [
        prepare(
            load(
                experiment("multi_server", 7, "stars", network={"servers": 3, "assign": "random"}, seed=seed)
            )
        )
        for seed in (0, 1)
    ]
    assert [sorted(one.world.homes.count(id) for id in (7, 8, 9)) for one in made] == [[2, 2, 3]] * 2
    assert made[0].world.homes != made[1].world.homes


def test_servers_stand_at_their_sites(tmp_path):
    # Rows 0 and 3 are the servers' sites; clients 0 1 2 stand at 0 1 2, and 2 is nearer to 3.
    (tmp_path / "m.csv").write_text("0,5,9,9\n5,0,9,9\n9,9,0,2\n9,9,2,0\n")
    sites = [{"site": 0}, {"site": 3}]
    network = {
        "latency_matrix": str(tmp_path / "m.csv"),
        "latency_unit": "one_way",
        "overlay": True,
        "servers": sites,
    }
    world = prepare(load(experiment("multi_server", 3, "complete", network=network))).world
    assert world.homes == [3, 3, 4]
    assert [world.network.route(a, b).latency_us for a, b in ((3, 1), (2, 4), (3, 4))] == [5000, 2000, 9000]


def test_servers_at_a_backbone(tmp_path):
    pytest.importorskip("topohub")
    topology = {"name": "topohub", "key": "topozoo/Abilene", "server": ["Seattle", "Atlanta"]}
    world = prepare(load(experiment("multi_server", 11, topology, network={"servers": 2}))).world
    graph, far = world.network.graph, []
    for client, home in enumerate(world.homes):
        ways = [world.network.route(server, client).latency_us for server in (11, 12)]
        assert ways[home - 11] == min(ways)
        far.append(ways)
    assert min(min(ways) for ways in far) == 0  # a client is at the server's own site
    assert len(graph) == 13 + 11


MISTAKES = [
    (digits(network={"servers": 0}), r"network.servers: 0: must be at least 1"),
    (digits(network={"servers": []}), r"network.servers: \[\]: must name at least one server"),
    (
        digits(network={"servers": [{}, {}], "server": {"up_mbps": 3}}),
        r"network.server: is for all servers, and network.servers says it of each",
    ),
    (
        digits(network={"assign": [0] * 6}),
        r"network.assign: .*says which server a client has, and there is one",
    ),
    (
        digits(network={"servers": 2, "assign": [0, 1]}),
        r"network.assign: .*names 2 clients' servers, and there are 6",
    ),
    (digits(network={"servers": 2, "assign": [0, 1, 2, 0, 1, 0]}), r"network.assign: 2: servers are 0 to 1"),
    (digits(network={"servers": 2, "assign": [0] * 6}), r"leaves server 1 \(node 7\) without clients$"),
    (
        digits(topology="star"),
        r"network.assign: nearest: leaves server 0 \(node 6\) without clients: others are nearer to all",
    ),
    (
        digits(network={"servers": 2, "server": {"site": 3}}),
        r"network.server.site: 3: puts all 2 servers at one site",
    ),
    (
        digits(network={"servers": [{"site": 3}, {}]}),
        r"network.servers.0.site: 3: names a row of .*there is none",
    ),
    (digits(name="fedavg"), r"network.servers: 2: fedavg has one server; take multi_server"),
    (digits(participants=7), r"strategy.participants: 7: at most 6, the number of clients"),
    (
        digits(select="uniform"),
        r"strategy.select: is for strategies with one server, and multi_server can have",
    ),
    (
        digits(exchange="linked", topology="empty", network={"servers": 2, "overlay": True}),
        r"strategy.exchange: linked: and the topology links server 0 \(node 6\) to no other server",
    ),
    (
        digits(topology={"name": "stars", "homes": [0, 1]}),
        r"topology.homes: .*must have one of the servers 0 to 1 for each of the 6 clients",
    ),
]


@pytest.mark.parametrize(("given", "says"), MISTAKES)
def test_mistakes_are_one_line(given, says):
    with pytest.raises(ConfigError, match=says):
        prepare(load(given))


def test_peers_have_no_servers():
    given = {**DIGITS, "strategy": {"name": "dpsgd", "local": LOCAL}, "topology": "ring"}
    with pytest.raises(ConfigError, match=r"network.servers: 2: dpsgd has only peers"):
        prepare(load(given))
    given |= {"network": {}, "topology": "stars"}
    with pytest.raises(ConfigError, match=r"topology: stars: is for strategies with servers"):
        prepare(load(given))


def test_a_server_that_is_down_for_a_while_is_waited_for(tmp_path):
    fault = {"name": "server_crash", "at_s": 0.0, "down_s": 50.0, "server": 1}
    result = fedsim.run({**DIGITS, "faults": [fault]}, out=tmp_path)
    assert result.summary["rounds"] == 3
    assert result.summary["sim_time_s"] > 50
    failed = read(result.path, "events")
    assert failed["node"][failed["kind"] == "fail"].tolist() == [7]
    with pytest.raises(ConfigError, match=r"faults.0.server: 2: servers are 0 to 1"):
        prepare(load({**DIGITS, "faults": [{**fault, "server": 2}]}))


def test_the_record_has_models_numbers_and_homes(tmp_path):
    data = {**DIGITS["data"], "partition": "iid", "client_test_share": 0.2}
    result = fedsim.run({**digits(exchange_every=2), "data": data}, out=tmp_path)
    assert facts(result.path)["homes"] == [6, 7, 6, 7, 6, 7]
    metrics = read(result.path, "metrics")
    last = metrics["round"] == 3
    assert sorted(metrics["node"][last & (metrics["name"] == "accuracy")]) == [-1, 6, 7]
    own = last & (metrics["name"] == "client_accuracy")
    assert sorted(metrics["node"][own]) == [-1, 0, 1, 2, 3, 4, 5]
    nodes = read(result.path, "nodes")
    assert nodes["role"].tolist() == ["client"] * 6 + ["server"] * 2
    assert result.summary["metrics"]["nodes_evaluated"] == 2


@pytest.mark.slow
def test_the_report_draws_each_server(tmp_path):
    result = fedsim.run({**digits(exchange_every=2), "record": {"report": True}}, out=tmp_path)
    assert (result.path / "figures" / "servers.svg").is_file()
    metrics, rounds = read(result.path, "metrics"), read(result.path, "rounds")
    score, clients, among = servers(metrics, rounds).axes
    assert [line.get_label() for line in score.lines] == ["server 6", "server 7"]
    assert [ax.get_ylabel() for ax in (clients, among)] == ["kB with clients", "kB with other servers"]
    # A model of 650 numbers of 4 bytes; each server has asked all 3 of its clients, and met the other one in round 2.
    assert clients.lines[0].get_ydata()[-1] == 3 * 3 * (2600 + 2608) / 1000
    assert among.lines[1].get_ydata().tolist() == [0, 2 * 2616 / 1000, 2 * 2616 / 1000]
    alone = {name: column[metrics["node"] < 0] for name, column in metrics.items()}
    with pytest.raises(BadValue, match="no servers to draw"):
        servers(alone, rounds)
