"""Whole runs under faults: they go on, repeat, and say where they break; and the grid under faults, by hand.

The grid's world is one server and its clients, each with a line of 10 ms and 1 Mbit/s, 1 ms per sample and 64
bytes of header. An instruction has 625 bytes with its header and arrives after 5,000 + 10,000 µs, a reply has 626
bytes and takes 5,008 + 10,000 µs; 30 samples in between make 60,008 µs.
"""

from __future__ import annotations

import sqlite3

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

import fedsim
from fedsim import api, parts
from fedsim.errors import ConfigError, NotFiniteError, RunError, StalledError
from fedsim.flower import compat
from fedsim.flower.records import pack
from fedsim.flower.simulate.grid import SimGrid
from fedsim.learn.corrupt import corrupted
from fedsim.learn.deferred import Deferred
from fedsim.learn.learner import Place
from fedsim.running.exchange import TimeUp
from fedsim.running.threads import limited
from fedsim.spec.experiment import load
from fedsim.world import world as worlds
from topologies.graphs import star

ROUND_US = 60_008
DETECT_US = 2_000_000


@pytest.fixture(autouse=True)
def quick():
    """One thread, and an identity for messages outside of a run."""
    with limited(1), compat.session(0, 99, lambda _: None):
        yield


# the grid


class Clients:
    """Clients that send 100 ones back."""

    def __init__(self):
        self.seen = []

    def work(self, client, message):
        return 30

    def answer(self, client, message, sim_time_s):
        self.seen.append(client)
        arrays = pack(Deferred.known(torch.ones(100)), [("w", (100,))])
        return RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 5})})


def grid_of(clients, *faults, limit_s=None):
    experiment = load(
        {
            "data": {"clients": clients},
            "strategy": "fedavg",
            "stop": {"rounds": 1},
            "network": {"latency_ms": 10, "edge_mbps": 1, "header_bytes": 64},
            "devices": {"seconds_per_sample": 0.001},
            "faults": list(faults),
        }
    )
    world = worlds.build(experiment, star(clients + 1), True)
    events = []
    world.log.listen(lambda *event: events.append(event))
    worlds.start(world, experiment)
    return SimGrid(world, Clients(), DETECT_US / 1e6, limit_s), events


def instruction(node, round=1):
    arrays = ArrayRecord({"w": Array(np.zeros(100, dtype=np.float32))})
    return Message(
        RecordDict({"arrays": arrays, "config": ConfigRecord({"server-round": round})}), node, "train"
    )


def senders(replies):
    return [reply.metadata.src_node_id for reply in replies]


def times(events, kind):
    return [event[0] for event in events if event[1] == kind]


def test_a_second_copy_is_late_and_changes_nothing():
    grid, events = grid_of(1, {"name": "message_duplication", "probability": 1.0})
    (reply,) = grid.send_and_receive([instruction(0)])
    assert reply.has_content()
    # Both copies share the line: 10 ms for the instruction, 10,016 µs for the reply.
    assert grid.world.clock.now == 20_000 + 30_000 + 20_016
    grid.world.clock.run()
    assert [event[1:4] for event in events if event[1] == "late"] == [("late", 0, 1), ("late", 1, 0)]
    assert times(events, "compute") == [20_000]
    assert grid.clients.seen == [0]
    assert (grid.updates, grid.world.totals()["wasted"]) == (1, 0)
    assert grid.world.totals()["bytes_up"] == 2 * (625 + 626)


def test_two_copies_that_are_too_late_waste_the_work_once():
    grid, events = grid_of(1, {"name": "message_duplication", "probability": 1.0})
    assert grid.send_and_receive([instruction(0)], timeout=0.05) == []
    grid.world.clock.run()
    assert grid.world.nodes[0].wasted == 30
    assert len(times(events, "late")) == 3


def test_a_lost_message_is_an_error_that_says_so():
    grid, _ = grid_of(2, {"name": "message_loss", "probability": 1.0, "nodes": [1]})
    first, second = grid.send_and_receive([instruction(0), instruction(1)])
    assert first.has_content()
    assert (second.error.code, second.error.reason) == (5, "a message to or from client 1 was lost")
    assert grid.world.clock.now == 15_000 + DETECT_US


def test_a_lost_reply_wastes_its_work():
    grid, _ = grid_of(1, {"name": "message_loss", "probability": 1.0, "at_s": 0.02})
    (reply,) = grid.send_and_receive([instruction(0)])
    assert reply.has_error()
    assert grid.world.clock.now == ROUND_US + DETECT_US
    assert grid.world.nodes[0].wasted == 30


def test_the_server_is_down_while_clients_work():
    down = {"name": "server_crash", "at_s": 0.03, "down_s": 10.0}
    grid, events = grid_of(2, down)
    replies = grid.send_and_receive([instruction(0), instruction(1)])
    assert all(reply.has_error() for reply in replies)
    assert grid.world.clock.now == 10_030_000  # nothing goes on before it is back
    assert grid.world.totals()["bytes_lost"] == 2 * 64  # the replies found nobody
    assert grid.world.totals()["wasted"] == 60
    assert senders(grid.send_and_receive([instruction(0, 2)])) == [0]
    assert grid.world.clock.now == 10_030_000 + ROUND_US
    assert (times(events, "fail"), times(events, "recover")) == ([30_000], [10_030_000])


def test_a_server_that_is_down_sends_when_it_is_back():
    grid, _ = grid_of(1, {"name": "server_crash", "at_s": 0.0, "down_s": 3.0})
    assert grid.send_and_receive([instruction(0)])[0].has_content()
    assert grid.world.clock.now == 3_000_000 + ROUND_US


def test_the_servers_transfers_die_with_it():
    grid, _ = grid_of(1, {"name": "server_crash", "at_s": 0.002, "down_s": 1.0})
    (reply,) = grid.send_and_receive([instruction(0)])
    assert reply.has_error()
    assert grid.world.totals()["bytes_lost"] == 250  # 2 ms at 1 Mbit/s
    assert grid.world.clock.now == 2_000 + DETECT_US


def test_a_server_that_is_gone_for_good_still_stops_the_run():
    down = {"name": "server_crash", "at_s": 0.02, "down_s": 5.0}
    grid, _ = grid_of(1, down, {"name": "crash", "at_s": 1.0, "nodes": [1]})
    grid.send_and_receive([instruction(0)])
    with pytest.raises(RunError, match="the server has crashed"):
        grid.send_and_receive([instruction(0, 2)])


def test_a_server_that_nothing_brings_back_stalls():
    grid, _ = grid_of(1)
    grid.server.block()
    with pytest.raises(StalledError, match="nothing is left that could bring it back"):
        grid.send_and_receive([instruction(0)])


def test_time_can_be_up_while_the_server_is_down():
    grid, _ = grid_of(1, {"name": "server_crash", "at_s": 0.02, "down_s": 50.0}, limit_s=7.0)
    with pytest.raises(TimeUp):
        grid.send_and_receive([instruction(0)])
    assert grid.world.clock.now == 7_000_000


def test_what_corrupted_clients_send():
    grid, events = grid_of(
        3, {"name": "corrupt", "kind": "scale", "scale": -3.0, "for_s": 1.0, "nodes": [0, 2]}
    )
    values = []
    for round in (1, 2):
        replies = grid.send_and_receive([instruction(node, round) for node in range(3)])
        values.append({r.metadata.src_node_id: float(r.content["arrays"]["w"].numpy()[0]) for r in replies})
        grid.world.clock.run(until=round * 2_000_000)
    assert values == [{0: -3.0, 1: 1.0, 2: -3.0}, {0: 1.0, 1: 1.0, 2: 1.0}]
    assert times(events, "corrupt") == [0, 0]
    assert times(events, "honest") == [1_000_000] * 2


# corrupted vectors


def spoiled(kind, scale=1.0, node=3, round=1, name="model", seed=5):
    vector = Deferred.known(torch.arange(4000.0))
    return corrupted(vector, [(kind, scale, seed, True)], Place(node, round, 2.5), name)


@pytest.mark.parametrize(
    ("kind", "scale", "factor"), [("sign_flip", 1.0, -1), ("zeros", 1.0, 0), ("scale", 2.5, 2.5)]
)
def test_vectors_are_multiplied(kind, scale, factor):
    assert torch.equal(spoiled(kind, scale).value(), factor * torch.arange(4000.0))


def test_noise_has_its_scale_and_its_own_stream():
    noise = spoiled("noise", 2.0).value() - torch.arange(4000.0)
    # 4,000 normal numbers: the mean within 4 x 2 / sqrt(4,000), the deviation within 4 x 2 / sqrt(8,000).
    assert abs(float(noise.mean())) < 0.13
    assert float(noise.std()) == pytest.approx(2.0, abs=0.09)
    again = spoiled("noise", 2.0).value()
    assert torch.equal(again, spoiled("noise", 2.0).value())
    for other in ({"node": 4}, {"round": 2}, {"name": "update"}, {"seed": 6}):
        assert not torch.equal(again, spoiled("noise", 2.0, **other).value())


def test_corruptions_add_up_and_phantoms_stay():
    both = [("scale", 3.0, 0, True), ("sign_flip", 1.0, 0, True)]
    place = Place(0, 1, 0.0)
    assert corrupted(Deferred.known(torch.ones(2)), both, place).value().tolist() == [-3.0, -3.0]
    assert corrupted(Deferred.phantom(), both, place).is_phantom


def test_nan_stops_where_it_is_made_unless_it_is_wanted():
    with pytest.raises(NotFiniteError) as caught:
        spoiled("nan").value()
    error = caught.value
    assert (error.node, error.round, error.sim_time_s, error.phase) == (3, 1, 2.5, "corrupt")
    loose = corrupted(Deferred.known(torch.ones(2)), [("nan", 1.0, 0, False)], Place(0, 1, 0.0))
    assert bool(loose.value().isnan().all())


# whole runs

SOME = {"count": 2}
FAULTS = {
    "crash": {"at_s": 0.2, "count": 1, "every_s": 0.1, "times": 2},
    "crash_recover": {"at_s": 0.1, "down_s": 0.5, "every_s": 2.0, "times": 3, **SOME},
    "server_crash": {"at_s": 0.3, "down_s": 4.0},
    "flaky": {"mtbf_s": 1.0, "mttr_s": 0.3, **SOME},
    "slow_down": {"at_s": 0.1, "for_s": 2.0, "factor": 4.0, **SOME},
    "partition": {"at_s": 0.1, "for_s": 1.0, "fraction": 0.4},
    "link_down": {"at_s": 0.1, "for_s": 1.0, "count": 2},
    "message_loss": {"probability": 0.2},
    "message_delay": {"seconds": 0.2},
    "message_duplication": {"probability": 0.5},
    "corrupt": {"kind": "noise", "scale": 0.01, **SOME},
}


def experiment(strategy, *faults, clients=6, rounds=3, **more):
    """Digits and softmax; a round takes about 0.2 s."""
    params = {"min_available_nodes": 1, "min_train_nodes": 1} if strategy != "dpsgd" else {}
    local = {"steps": 4, "batch_size": 8, "lr": 0.1}
    return {
        "data": {"clients": clients, "partition": "iid"},
        "model": "softmax",
        "strategy": {"name": strategy, "local": local, "timeout_s": 3.0, **params},
        "topology": "ring" if strategy == "dpsgd" else "star",
        "network": {"latency_ms": 5, "edge_mbps": 1, "detect_s": 0.5},
        "devices": {"seconds_per_sample": 0.004},
        "stop": {"rounds": rounds},
        "faults": list(faults),
        "record": {"report": False},
        **more,
    }


def check_run(given, out):
    """A run under faults reaches its last round, and timing alone gives the same events."""
    full = api.run(given, out=out).summary
    assert full["rounds"] == given["stop"]["rounds"]
    assert np.isfinite(full["loss"])
    assert full["bytes_up"] == full["bytes_down"] + full["bytes_lost"]
    dry = api.run(given, out=out, timing_only=True).summary
    assert dry["event_hash"] == full["event_hash"]
    return full


@pytest.mark.parametrize("name", FAULTS)
def test_fedavg_goes_on_under_every_fault(name, tmp_path):
    full = check_run(experiment("fedavg", {"name": name, **FAULTS[name]}), tmp_path)
    plain = api.run(experiment("fedavg"), out=tmp_path, timing_only=True).summary
    assert full["event_hash"] != plain["event_hash"]


@pytest.mark.parametrize("name", [name for name in FAULTS if name != "server_crash"])
def test_dpsgd_goes_on_under_every_fault(name, tmp_path):
    full = check_run(experiment("dpsgd", {"name": name, **FAULTS[name]}), tmp_path)
    plain = api.run(experiment("dpsgd"), out=tmp_path, timing_only=True).summary
    assert full["event_hash"] != plain["event_hash"]


@pytest.mark.parametrize("strategy", ["fedavg", "dpsgd"])
def test_many_faults_and_churn_together(strategy, tmp_path):
    names = [name for name in FAULTS if name not in ("server_crash", "crash")]
    churn = {"name": "exponential", "online_s": 5.0, "offline_s": 1.0}
    given = experiment(strategy, *({"name": name, **FAULTS[name]} for name in names), churn=churn)
    assert check_run(given, tmp_path)["bytes_lost"] > 0


@pytest.mark.parametrize("strategy", ["fedavg", "dpsgd"])
def test_nan_stops_the_run_with_its_place(strategy, tmp_path):
    fault = {"name": "corrupt", "kind": "nan", "nodes": [2], "at_s": 0.2}
    with pytest.raises(NotFiniteError, match="a fault has corrupted") as caught:
        api.run(experiment(strategy, fault), out=tmp_path)
    error = caught.value
    assert (error.node, error.round, error.phase) == (2, 2, "corrupt")
    assert 0.2 < error.sim_time_s < 1.0
    assert api.run(experiment(strategy, fault), out=tmp_path, timing_only=True).summary["rounds"] == 3


def test_nan_that_nobody_checks_is_found_in_the_model(tmp_path):
    fault = {"name": "corrupt", "kind": "nan", "nodes": [2], "checked": False}
    with pytest.raises(NotFiniteError, match="the test loss is nan"):
        api.run(experiment("fedavg", fault), out=tmp_path)


def test_sign_flips_hurt_an_average_more_than_a_median(tmp_path):
    def accuracy(name, *faults):
        params = {"clients": 9, "rounds": 5}
        return api.run(
            experiment(f"flwr.serverapp.strategy:{name}", *faults, **params), out=tmp_path
        ).summary["loss"]

    flip = {"name": "corrupt", "kind": "sign_flip", "fraction": 1 / 3}
    lost = {name: accuracy(name, flip) - accuracy(name) for name in ("FedAvg", "FedMedian")}
    assert lost["FedAvg"] > lost["FedMedian"] + 0.05


def test_a_fault_at_the_very_start_is_recorded(tmp_path):
    experiment = {
        "data": {"clients": 4},
        "model": "softmax",
        "strategy": {"name": "fedavg", "fraction_evaluate": 0.0},
        "faults": [{"name": "crash", "at_s": 0, "nodes": [2]}],
        "stop": {"rounds": 1},
        "record": {"report": False, "events": False},
    }
    result = fedsim.run(experiment, out=tmp_path)
    with sqlite3.connect(result.path / "record.sqlite") as database:
        assert database.execute("SELECT time_us, kind, node FROM events").fetchall() == [(0, "crash", 2)]
        presence = database.execute("SELECT node FROM presence WHERE online = 0").fetchall()
    database.close()
    assert presence == [(2,)]


CHURN = {
    "always": {},
    "arrive": {"count": 3, "at_s": 1},
    "depart": {"count": 2, "at_s": 2},
    "diurnal": {"low": 0.5, "high": 1.0, "period_s": 60, "step_s": 1},
    "exponential": {"online_s": 20, "offline_s": 2},
    "weibull": {"online_s": 20, "offline_s": 2, "shape": 0.7},
    "trace": {},
}


def test_every_churn_has_a_row():
    assert CHURN.keys() == set(parts.names("churn"))


@pytest.mark.parametrize("name", CHURN)
@pytest.mark.parametrize("strategy", ["fedavg", "dpsgd"])
def test_every_churn_runs_in_an_experiment(name, strategy, tmp_path):
    params = dict(CHURN[name])
    if name == "trace":
        (tmp_path / "trace.csv").write_text(
            "# period_s: 30\n# nodes: 2\nnode,start_s,end_s\n0,0,30\n1,0,20\n"
        )
        params["path"] = str(tmp_path / "trace.csv")
    own = {"fraction_evaluate": 0.0} if strategy == "fedavg" else {}
    experiment = {
        "data": {"clients": 6},
        "model": "softmax",
        "strategy": {"name": strategy, "timeout_s": 5, **own},
        "topology": "star" if strategy == "fedavg" else "ring",
        "network": {"latency_ms": 10, "detect_s": 1},
        "churn": {"name": name, **params},
        "stop": {"rounds": 3, "sim_time_s": 200},
        "record": {"report": False},
    }
    full = fedsim.run(experiment, out=tmp_path).summary
    assert full["rounds"] == 3
    assert full["event_hash"] == fedsim.run(experiment, out=tmp_path, timing_only=True).summary["event_hash"]


def test_a_strategy_whose_messages_all_fail_at_once_lets_time_pass(tmp_path):
    experiment = {
        "data": {"clients": 4},
        "model": "softmax",
        "strategy": {"name": "fedavg", "fraction_evaluate": 0.0},
        "network": {"latency_ms": 10, "detect_s": 0},
        "faults": [{"name": "partition", "at_s": 5, "for_s": 3, "groups": [[4], [0, 1, 2, 3]]}],
        "stop": {"sim_time_s": 12},
        "record": {"report": False, "events": False},
    }
    summary = fedsim.run(experiment, out=tmp_path, timing_only=True).summary
    assert summary["sim_time_s"] == 12
    assert summary["rounds"] < 200


@pytest.mark.parametrize("seed", [2, 6, 10])
def test_a_reply_that_comes_after_its_error_is_late(seed, tmp_path):
    experiment = {
        "seed": seed,
        "data": {"clients": 6},
        "model": "softmax",
        "strategy": {"name": "fedavg", "fraction_evaluate": 0.0, "retries": 1, "timeout_s": None},
        "network": {"latency_ms": 10, "detect_s": 0.1},
        "faults": [
            {"name": "message_duplication", "probability": 0.6},
            {"name": "message_delay", "seconds": 3},
            {"name": "message_loss", "probability": 0.4},
        ],
        "stop": {"rounds": 40},
        "record": {"report": False, "events": False},
    }
    assert fedsim.run(experiment, out=tmp_path, timing_only=True).summary["rounds"] == 40


def test_a_server_that_was_down_asks_again_when_it_is_back(tmp_path):
    experiment = {
        "data": {"clients": 4},
        "model": "softmax",
        "strategy": {"name": "fedavg", "fraction_evaluate": 0.0, "retries": 3},
        "network": {"latency_ms": 10, "detect_s": 1},
        "devices": {"seconds_per_sample": 0.01},
        "faults": [{"name": "server_crash", "at_s": 1, "down_s": 20}],
        "stop": {"rounds": 1},
        "record": {"report": False},
    }
    seen = []
    summary = fedsim.run(experiment, out=tmp_path, progress=seen.append).summary
    assert summary["sim_time_s"] > 21
    assert seen[-1].clients == 4


def test_a_quorum_does_not_cut_the_pass_before_the_first_round(tmp_path):
    experiment = {
        "data": {"clients": 20},
        "model": "softmax",
        "strategy": {"name": "fedamd", "participants": 4, "quorum": 0.5, "local": {"steps": 2}},
        "devices": {"seconds_per_sample": {"distribution": "lognormal", "median": 0.01, "sigma": 1.0}},
        "stop": {"rounds": 1},
        "record": {"report": False},
    }
    seen = []
    fedsim.run(experiment, out=tmp_path, progress=seen.append)
    assert seen[-1].clients >= 20 + 2


def test_what_a_run_gives_does_not_depend_on_how_often_it_is_measured(tmp_path):
    experiment = {
        "data": {"clients": 8},
        "model": "softmax",
        "strategy": "dpsgd",
        "topology": "ring",
        "devices": {"seconds_per_sample": {"distribution": "lognormal", "median": 0.01, "sigma": 1.0}},
        "stop": {"sim_time_s": 20},
        "record": {"report": False},
    }
    runs = [fedsim.run(experiment, out=tmp_path, evaluate__every=every) for every in (1, 2, 1000)]
    assert len({run.summary["run_hash"] for run in runs}) == 1
    assert len({run.metrics()["time_s"][-1] for run in runs}) == 1
    assert runs[0].metrics()["time_s"][-1] < 20


@pytest.mark.parametrize("change", [{"strategy.quorum": 0.5}, {"strategy.retries": 2}])
def test_peers_have_no_server_policies(change):
    experiment = {"data": {"clients": 4}, "strategy": "dpsgd", "topology": "ring", "stop": {"rounds": 1}}
    with pytest.raises(ConfigError, match="belongs to a server, and dpsgd has only peers"):
        fedsim.check(experiment, change)


def test_overlapping_losses_are_independent(tmp_path):
    def lost(faults):
        experiment = {
            "data": {"clients": 10},
            "model": "softmax",
            "strategy": {"name": "fedavg", "fraction_evaluate": 0.0, "timeout_s": 5},
            "network": {"latency_ms": 1, "detect_s": 0.1},
            "devices": {"seconds_per_sample": 0.0001},
            "faults": faults,
            "stop": {"rounds": 60},
            "record": {"report": False},
        }
        run = fedsim.run(experiment, out=tmp_path, timing_only=True)
        with sqlite3.connect(run.path / "record.sqlite") as database:
            kinds = dict(database.execute("SELECT kind, count(*) FROM events GROUP BY kind").fetchall())
        database.close()
        return kinds["lost"] / kinds["send"]

    twice = {
        "name": "message_loss",
        "probability": 0.3,
        "at_s": 0,
        "for_s": 1000,
        "every_s": 0.001,
        "times": 2,
    }
    assert lost([twice]) == pytest.approx(0.51, abs=0.07)  # 1 - 0.7^2; about five standard errors
