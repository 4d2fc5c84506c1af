"""FedAsync and FedBuff: numbers and times by hand. A client works for one millisecond per sample."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from server_lab import C, H, local, quadratics, trained, walk

import fedsim
from fedsim import api
from fedsim.errors import ConfigError
from fedsim.flower import compat
from fedsim.flower.apps.grid import AppGrid
from fedsim.flower.gridserver import POLL_S
from fedsim.flower.gridview import Shown
from fedsim.flower.records import pack, unpack
from fedsim.flower.simulate.clients import BuiltinClients
from fedsim.record import store
from fedsim.running.servers import SimServer
from fedsim.spec.experiment import Local, load
from fedsim.world import world as worlds
from strategies.server.fedasync import FedAsync
from strategies.server.fedbuff import FedBuff
from topologies.graphs import star

SLOW = {"copies": (2, 5), "h": H[:2], "c": C[:2]}
"""Client 0 answers at 2, 4, 6 … ms, client 1 at 5, 10 … ms."""


def small(strategy, **more):
    """Return an experiment with latency, slow devices and churn."""
    base = {
        "data": {"clients": 8},
        "model": {"name": "mlp", "hidden": 8},
        "strategy": strategy,
        "network": {"latency_ms": 30, "detect_s": 0.5},
        "devices": {"seconds_per_sample": {"distribution": "lognormal", "median": 0.01, "sigma": 0.7}},
        "churn": {"name": "exponential", "online_s": 20, "offline_s": 5},
        "stop": {"rounds": 20},
        "record": {"report": False},
    }
    return {**base, **more}


def test_fedasync_by_hand():
    """α = 1/2, divided by 1 + staleness."""
    strategy = FedAsync(concurrency=2, local=local(1), alpha=0.5, a=1.0, mu=0.0)
    models, _ = walk(strategy, quadratics(**SLOW), 4)
    x1 = 0.05  # client 0 goes from 0 to 0.1
    x2 = (x1 + trained(1.0, 1.0, x1, 1)) / 2
    x3 = x2 + 0.5 / 3 * (-0.2 - x2)  # client 1 goes from 0 to -0.2, and the model has changed twice meanwhile
    x4 = x3 + 0.25 * (trained(1.0, 1.0, x2, 1) - x3)  # client 0 began with x2
    assert models[1:] == pytest.approx([x1, x2, x3, x4], abs=1e-12)


def test_fedbuff_by_hand():
    """A buffer of two: first both from client 0, the second time one from each."""
    strategy = FedBuff(concurrency=2, local=local(1), buffer=2, damping=1.0, server_lr=0.5)
    models, _ = walk(strategy, quadratics(**SLOW), 2)
    x1 = 0.5 * 0.1  # client 0 comes from 0 to 0.1, twice
    fresh = trained(1.0, 1.0, x1, 1) - x1
    x2 = x1 + 0.5 * (fresh - 0.2 / 2) / 2
    assert models[1:] == pytest.approx([x1, x2], abs=1e-12)


def test_replies_that_come_together_are_merged_before_anybody_is_asked_again():
    """Both clients work for a millisecond; a model that is about to change is not sent, so staleness stays below 2."""
    strategy = FedAsync(concurrency=2, local=local(1), alpha=0.5, a=1.0, mu=0.0)
    models, _ = walk(strategy, quadratics(H[:2], C[:2], (1, 1)), 4)
    x, wanted = 0.0, []
    for _ in range(2):
        ends = [trained(H[i], C[i], x, 1) for i in (0, 1)]
        x = (x + ends[0]) / 2
        wanted.append(x)
        x += 0.25 * (ends[1] - x)
        wanted.append(x)
    assert models[1:] == pytest.approx(wanted, abs=1e-12)


def test_a_proximal_term_holds_clients_near_the_model_they_were_sent():
    models, _ = walk(
        FedAsync(concurrency=1, local=local(3), alpha=1.0, mu=2.0), quadratics(H[:1], C[:1], (1,)), 1
    )
    assert models[1] == pytest.approx(trained(1.0, 1.0, 0.0, 3, pull=2.0), abs=1e-12)


@pytest.mark.parametrize(
    ("kind", "ages", "shares"),
    [
        ("constant", (0, 9), (0.8, 0.8)),
        ("hinge", (0, 4, 5, 9), (0.8, 0.8, 0.8 / 3, 0.8 / 11)),
        ("polynomial", (0, 1, 3), (0.8, 0.8 / 4, 0.8 / 16)),
    ],
)
def test_stale_models_count_less(kind, ages, shares):
    strategy = FedAsync(concurrency=1, local=Local(), alpha=0.8, staleness=kind, a=2.0, b=4.0)
    assert [strategy.share(age) for age in ages] == pytest.approx(shares)


@settings(max_examples=50)
@given(
    kind=some.sampled_from(["constant", "hinge", "polynomial"]),
    alpha=some.floats(0.01, 1.0),
    a=some.floats(0.01, 20.0),
    b=some.floats(0.0, 10.0),
    age=some.integers(0, 1000),
)
def test_shares_fall_from_alpha(kind, alpha, a, b, age):
    strategy = FedAsync(concurrency=1, local=Local(), alpha=alpha, staleness=kind, a=a, b=b)
    assert strategy.share(0) == alpha
    assert 0 <= strategy.share(age + 1) <= strategy.share(age) <= alpha


def test_a_client_that_fails_is_replaced_at_once():
    """Client 0 crashes while it works; the server notices after a second, and asks client 2 instead."""
    lab = quadratics()
    strategy = FedBuff(concurrency=1, local=local(1), buffer=1, seed=0)
    first, _ = walk(strategy, lab, 1)
    went = next(i for i in range(3) if first[1] == pytest.approx(trained(H[i], C[i], 0.0, 1)))
    again = FedBuff(concurrency=1, local=local(1), buffer=1, seed=0)
    models, _ = walk(again, lab, 1, crash=(0, went))
    others = [trained(H[i], C[i], 0.0, 1) for i in range(3) if i != went]
    assert min(abs(models[1] - other) for other in others) < 1e-12


def test_a_client_that_takes_too_long_is_given_up(tmp_path):
    """One sample takes a second; 180 of them cannot be done in ten, so the time ends without a round."""
    strategy = {"name": "fedasync", "concurrency": 3, "timeout_s": 10.0, "local": {"lr": 0.1}}
    given = small(strategy, churn="always", devices={"seconds_per_sample": 1.0}, stop={"sim_time_s": 65.0})
    summary = fedsim.run(given, out=tmp_path, timing_only=True).summary
    assert summary["rounds"] == 0
    assert summary["sim_time_s"] == 65.0
    patient = fedsim.run(
        {**given, "strategy": {**strategy, "timeout_s": None}, "stop": {"rounds": 3}}, out=tmp_path
    )
    assert patient.summary["rounds"] == 3


@pytest.mark.parametrize("name", ["fedasync", "fedbuff"])
def test_no_more_clients_work_than_there_are_places(name, tmp_path):
    more = {"buffer": 4} if name == "fedbuff" else {}
    result = fedsim.run(small({"name": name, "concurrency": 3, **more}), out=tmp_path, timing_only=True)
    assert result.summary["rounds"] == 20
    replies = 20 * more.get("buffer", 1)
    assert int(store.read(result.path, "rounds")["clients"][-1]) == replies
    # each of the 144 to 180 samples of a client's pass is counted once, and nobody works twice for one reply
    works = result.summary["work_samples"] - result.summary["wasted_samples"]
    assert 143 * replies <= works <= 181 * (replies + 3)


@pytest.mark.parametrize("name", ["fedasync", "fedbuff"])
def test_staleness_is_recorded(name, tmp_path):
    strategy = {"name": name, "concurrency": 6, **({"buffer": 3} if name == "fedbuff" else {})}
    result = fedsim.run(small(strategy, evaluate={"every": 5}), out=tmp_path)
    table = store.metrics(result.path)
    assert table["round"].tolist() == [0, 5, 10, 15, 20]
    assert math.isnan(table["staleness"][0])
    assert (table["staleness_max"][1:] >= table["staleness"][1:]).all()
    assert table["staleness_max"][1:].max() > 0


def test_alone_nothing_is_stale(tmp_path):
    result = fedsim.run(small({"name": "fedasync", "concurrency": 1}, churn="always"), out=tmp_path)
    assert not store.metrics(result.path)["staleness"][1:].any()


def test_an_asynchronous_server_makes_more_rounds_than_one_that_waits(tmp_path):
    stop = {"sim_time_s": 60.0}
    waits = fedsim.run(
        small({"name": "fedavgm", "participants": 6}, stop=stop), out=tmp_path, timing_only=True
    ).summary
    goes_on = fedsim.run(
        small({"name": "fedbuff", "concurrency": 6, "buffer": 6}, stop=stop), out=tmp_path, timing_only=True
    ).summary
    assert goes_on["rounds"] > waits["rounds"]
    assert goes_on["sim_time_s"] == waits["sim_time_s"] == 60.0


@pytest.mark.parametrize(
    "select", ["round_robin", "by_size", "available", {"name": "power_of_choice", "candidates": 4}]
)
def test_any_selector_chooses_among_those_that_are_idle(select, tmp_path):
    strategy = {"name": "fedbuff", "concurrency": 3, "buffer": 2, "select": select}
    assert fedsim.run(small(strategy), out=tmp_path).summary["rounds"] == 20


def test_a_pool_of_clients_grows_by_updates_however_few_are_chosen_at_a_time(tmp_path):
    """Half of 8 rounds of 4 updates are 16: until then there are two clients in the pool, and afterwards all eight."""
    select = {"name": "curriculum", "order": "random", "rounds": 8, "pacing": "step", "a": 0.5, "b": 0.25}
    strategy = {"name": "fedbuff", "concurrency": 2, "buffer": 4, "select": select}
    given_ = small(strategy, churn="always", stop={"rounds": 8}, evaluate={"every": 1})
    table = store.metrics(fedsim.run(given_, out=tmp_path).path)
    assert table["pool_updates"][1:].tolist() == [4 * round for round in range(1, 9)]
    assert table["pool"][1:].tolist() == [2.0] * 4 + [8.0] * 4


def test_what_a_selector_asks_belongs_to_the_round_in_which_it_asks(tmp_path):
    """Clients are chosen some four times in a round; events and jobs know of rounds alone."""
    select = {"name": "curriculum", "rounds": 6}
    strategy = {"name": "fedbuff", "concurrency": 4, "buffer": 4, "select": select}
    given_ = small(strategy, churn="always", stop={"rounds": 6}, record={"report": False, "events": True})
    path = fedsim.run(given_, out=tmp_path).path
    for name in ("events", "jobs"):
        rounds = store.read(path, name)["round"]
        assert set(rounds[rounds >= 0].tolist()) == set(range(1, 7))


def test_a_central_clip_sees_every_update(tmp_path):
    """With a norm of almost nothing the model stays where it was, and with a large one nothing changes."""
    ends = {}
    for norm in (1e-12, None, 1e9):
        around = [{"name": "central_clip", "max_norm": norm}] if norm else []
        strategy = {"name": "fedasync", "concurrency": 4, "around": around}
        result = fedsim.run(small(strategy, compute={"dtype": "float64"}), out=tmp_path)
        ends[norm] = result.summary
    assert ends[1e9]["accuracy"] == ends[None]["accuracy"] != ends[1e-12]["accuracy"]
    assert ends[1e9]["event_hash"] == ends[None]["event_hash"]


class Polled(Shown):
    """A grid that, as a SuperLink does, often has nothing to say yet."""

    questions = 0

    def pull_messages(self, message_ids):
        self.questions += 1
        return [] if self.questions % 3 else self.grid.pull_messages(message_ids)


def test_a_superlink_is_asked_again_after_a_pause():
    """One client at a time takes the same way, but every answer is a few pauses late."""
    lab, strategies = quadratics(), [FedAsync(concurrency=1, local=local(1), seed=4) for _ in range(2)]
    wanted, _ = walk(strategies[0], lab, 3)
    strategies[1].check(3)
    file = {"data": {"clients": 3}, "strategy": "fedavg", "stop": {"rounds": 1}}
    grid = AppGrid(worlds.build(load(file), star(4), True), BuiltinClients(lab, strategies[1].updates))
    start = pack(lab.initial, lab.engine.task.layout, "float64")
    with compat.session(0, grid.server.id, grid.pause):
        result = strategies[1].start(Polled(grid), initial_arrays=start, num_rounds=3)
    assert float(unpack(result.arrays).value()) == wanted[3]
    assert grid.world.clock.now_s >= 3 * 2 * POLL_S


@pytest.mark.parametrize(
    ("params", "line"),
    [
        ({"name": "fedasync", "concurrency": 9}, "strategy.concurrency: 9: at most 8, the number of clients"),
        ({"name": "fedasync", "concurrency": 0}, "strategy.concurrency: 0: must be at least 1"),
        ({"name": "fedasync", "concurrency": 2, "alpha": 0.0}, "strategy.alpha: 0.0: must be greater than 0"),
        (
            {"name": "fedasync", "concurrency": 2, "staleness": "linear"},
            "strategy.staleness: linear: must be constant, hinge or polynomial",
        ),
        ({"name": "fedbuff", "concurrency": 2, "buffer": 0}, "strategy.buffer: 0: must be at least 1"),
        (
            {"name": "fedbuff", "concurrency": 2, "damping": -1.0},
            "strategy.damping: -1.0: must be at least 0",
        ),
        ({"name": "fedbuff"}, "strategy.concurrency: is required"),
        (
            {"name": "fedbuff", "concurrency": 2, "participants": 2},
            "strategy.participants: unknown key; known: buffer, concurrency",
        ),
    ],
)
def test_bad_parameters(params, line):
    with pytest.raises(ConfigError) as caught:
        api.check({"data": {"clients": 8}, "strategy": params, "stop": {"rounds": 1}})
    assert str(caught.value).startswith(line)


@pytest.mark.parametrize("strategy", [{"name": "fedbuff", "buffer": 3}, {"name": "fedasync"}])
@pytest.mark.parametrize(
    "select", [{"name": "power_of_choice", "candidates": 4}, {"name": "curriculum", "rounds": 8}]
)
def test_no_query_is_cut_short_by_clients_at_work(strategy, select, tmp_path, monkeypatch):
    """Nobody goes away and nothing is lost, so whoever is asked for its loss or score is waited for."""
    asked, real = [], SimServer.exchange

    def counted(server, round, asks, timeout_s=None, share=None):
        sent = list(asks)
        came = real(server, round, sent, timeout_s, share)
        asked.append((len(sent), len(came)))
        return came

    monkeypatch.setattr(SimServer, "exchange", counted)
    more = {"concurrency": 5, "select": select, "local": {"steps": 3, "batch_size": 8, "lr": 0.1}}
    experiment = small({**strategy, **more}, churn="always", stop={"rounds": 8})
    fedsim.run(experiment, out=tmp_path)
    assert len(asked) > 3
    assert all(came == sent for sent, came in asked)
