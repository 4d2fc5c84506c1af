"""MoDeST as nodes that exchange messages.

Local training of a round is one batch of 10 samples at 0.1 s each: one second.
"""

from __future__ import annotations

from collections import Counter, defaultdict

import pytest
import torch

from fedsim import api
from fedsim.errors import ConfigError
from fedsim.learn.learner import Place
from fedsim.running.threads import limited
from fedsim.world.net.network import Message
from strategies.modest.registry import View
from strategies.modest.sampling import least_window, order

MODEL_BYTES = 4 * 650
PING = 179


@pytest.fixture(autouse=True)
def one_thread():
    with limited(1):
        yield


def ids(n):
    return [str(node) for node in range(n)]


# sampling


@pytest.mark.parametrize("aggregators", [1, 2, 4])
def test_modest_property_02_all_nodes_agree_on_samples_and_aggregators(modest, aggregators):
    run = modest(nodes=15, rounds=6, params={"aggregators": aggregators})
    run.run()
    for round in range(2, 7):
        sample, before = (set(order(ids(15), k)[:4]) for k in (round, round - 1))
        first = order(ids(15), round)[:aggregators]
        assert set(first) <= sample
        trained = defaultdict(set)
        for one in run.of_kind("trained", round):
            trained[one.src].add(one.dst)
        assert {src: trained[src] for src in before} == {src: set(first) - {src} for src in before}
        for aggregator in first:
            told = {one.dst for one in run.of_kind("aggregated", round) if one.src == aggregator}
            assert told == sample - {aggregator}


def test_modest_property_08_a_silent_node_gets_two_pings_and_an_own_id_none(modest):
    run = modest(rounds=2, params={"sample_size": 3, "success_fraction": 0.5})
    dead = order(ids(12), 2)[0]
    run.at(0.5, run.world.nodes[dead].crash)
    run.run()
    pings = Counter(
        (src, dst) for _, kind, src, dst, size, _ in run.events if kind == "send" and size == PING
    )
    askers = set(order(ids(12), 1)[:3]) - {dead}
    assert {pings[src, dead] for src in askers} == {2}
    assert not any(src == dst for src, dst in pings)
    assert not any(one.src == dead for one in run.sent)


def test_modest_property_08_with_a_short_timeout_it_gets_one(modest):
    run = modest(rounds=2, params={"sample_size": 3, "success_fraction": 0.5, "ping_timeout_s": 0.9})
    dead = order(ids(12), 2)[0]
    run.at(0.5, run.world.nodes[dead].crash)
    run.run()
    pings = Counter(
        (src, dst) for _, kind, src, dst, size, _ in run.events if kind == "send" and size == PING
    )
    assert {count for (_, dst), count in pings.items() if dst == dead} == {1}


def test_the_fastest_of_the_next_sample_aggregates(modest):
    speeds = {"up_mbps": {"distribution": "uniform", "low": 1, "high": 9}, "down_mbps": 100}
    run = modest(rounds=5, params={"aggregator_choice": "bandwidth"}, network=speeds)
    run.run()
    for round in range(2, 6):
        best = max(order(ids(12), round)[:4], key=run.peers[0].mbps)
        assert {one.dst for one in run.of_kind("trained", round)} <= {best}
        assert {one.src for one in run.of_kind("aggregated", round)} == {best}


# views


def test_modest_property_13_a_join_changes_no_sample_that_is_being_found(modest):
    """All are told at 0.51 s, while they train; it counts when they have sent what they trained."""
    run = modest(
        nodes=4, churn={"name": "arrive", "count": 1, "at_s": 0.5}, rounds=30, params={"sample_size": 3}
    )
    knows = {}
    for seconds in (0.9, 1.5):
        run.at(seconds, lambda s: knows.update({s: [3 in run.member(n).view for n in range(3)]}), seconds)
    run.run()
    assert {one.dst for one in run.of_kind("advert")} == {0, 1, 2}
    assert knows == {0.9: [False] * 3, 1.5: [True] * 3}
    assert all(one.at_s > 1 for one in run.sent if one.dst == 3 and one.kind == "ping")
    assert 3 in {one.dst for one in run.of_kind("aggregated")}


@pytest.mark.slow
def test_modest_property_14_news_of_a_join_reaches_everybody(modest):
    """90 nodes, of whom each learns of the 91st; those who are sampled later know it."""
    churn = {"name": "arrive", "count": 1, "at_s": 20.0}
    run = modest(
        nodes=91, rounds=220, churn=churn, params={"sample_size": 10, "aggregators": 2, "window": 1000}
    )
    known = {}

    def look(peers):
        for node in peers:
            if node not in known and 90 in run.member(node).view:
                known[node] = run.observer.round
        run.at(1.0, look, peers)

    run.at(20.0, look, list(run.peers))
    run.run()
    joined = min(known.values())
    assert set(known) == set(range(91))
    assert max(known.values()) - joined <= 200
    half = sorted(known.values())[45] - joined
    assert half <= 25
    # once somebody has sent the news to the aggregators, all later samples have it from them
    sent = {round: [90 in one.payload[1] for one in run.of_kind("trained", round)] for round in range(2, 221)}
    first = min(round for round, told in sent.items() if any(told))
    assert not all(sent[first])
    assert all(all(sent[round]) for round in range(first + 1, 221))


def test_modest_property_14_news_of_a_leave_reaches_everybody(modest):
    run = modest(
        nodes=30, rounds=120, churn={"name": "depart", "count": 1, "at_s": 10.5}, params={"window": 1000}
    )
    run.run()
    sent = {
        round: [one.payload[1][29].joined for one in run.of_kind("trained", round) if one.src != 29]
        for round in range(2, 121)
    }
    first = min(round for round, joined in sent.items() if not all(joined))
    assert first < 20
    assert not any(any(sent[round]) for round in range(first + 1, 121))
    assert all(not run.member(node).view[29].joined for node in range(29))


def test_modest_property_12_a_node_is_always_a_candidate_itself(modest):
    run = modest(nodes=5, rounds=1)
    run.run()
    everybody, window = set(range(5)), run.strategy.horizon
    for node in everybody:
        member = run.member(node)
        assert set(member.candidates(window - 1)) == everybody
        assert set(member.candidates(10 * window)) == {node}
        member.view.change(node, 7, joined=False)
        assert set(member.candidates(window - 1)) == everybody


def test_modest_property_15_a_sufficient_window_keeps_all_and_forgets_the_dead(modest):
    window = least_window(30, 5)
    run = modest(
        nodes=30, rounds=3 * window, params={"sample_size": 5, "success_fraction": 0.6, "ping_timeout_s": 1.0}
    )
    dead = order(ids(30), 3)[0]
    run.at(0.2, run.world.nodes[dead].crash)
    run.run()
    updated = [node for node in range(30) if run.member(node).train_round >= run.observer.round - 1]
    assert updated
    for node in updated:
        mine = run.member(node)
        candidates = set(mine.candidates(mine.round + 1))
        assert dead not in candidates
        assert candidates == set(range(30)) - {dead}


def test_a_window_that_is_too_small_is_warned_of(modest, caplog):
    modest(nodes=100, params={"sample_size": 10, "window": 20})
    assert (
        "window 20: nodes that are there will be forgotten; 100 nodes in samples of 10 need at least 88"
        in caplog.text
    )
    caplog.clear()
    modest(nodes=100, params={"sample_size": 10, "window": 88})
    assert not caplog.text


# rounds


def average_by_hand(run, model, round, nodes):
    """Train some nodes one after the other and return the mean of what they send, in the order of ids."""
    update, learner = run.strategy.update, run.learner
    total = None
    for node in sorted(nodes):
        given = {"arrays": model}
        trained = learner.train(update, node, given, Place(node, round, 0.0)).pick("arrays").value()
        total = trained.clone() if total is None else total + trained
    return type(model).known(total / len(nodes))


@pytest.mark.parametrize(("nodes", "size"), [(6, 6), (12, 4), (1, 1)])
def test_modest_property_16_it_is_federated_averaging_of_the_hashed_sample(modest, nodes, size):
    run = modest(nodes=nodes, dry=False, rounds=4, params={"sample_size": size})
    run.run()
    model = run.learner.initial
    for round in range(1, 5):
        model = average_by_hand(run, model, round, order(ids(nodes), round)[:size])
        assert torch.equal(run.model(round), model.value())


def test_modest_property_17_aggregators_agree_if_all_models_count(modest):
    run = modest(dry=False, rounds=5, params={"aggregators": 3})
    run.run()
    for round in range(2, 6):
        sent = {one.src: one.payload[0].value() for one in run.of_kind("aggregated", round)}
        assert len(sent) == 3
        first, *others = sent.values()
        assert all(torch.equal(first, other) for other in others)


def test_modest_property_17_every_participant_trains_from_one_of_several_averages(modest):
    latency = {"latency_ms": {"distribution": "exponential", "mean": 400}}
    run = modest(dry=False, rounds=12, params={"aggregators": 3, "success_fraction": 0.5}, network=latency)
    run.run()
    differ = 0
    for round in range(2, 12):
        averages = {one.src: one.payload[0].value() for one in run.of_kind("aggregated", round)}
        differ += any(not torch.equal(a, b) for a in averages.values() for b in averages.values())
        for one in run.of_kind("trained", round + 1):
            source = run.strategy.update, one.src
            tries = [
                run.learner.train(source[0], one.src, {"arrays": type(one.payload[0]).known(average)},
                                  Place(one.src, round, 0.0)).pick("arrays").value()
                for average in averages.values()
            ]  # fmt: skip
            assert any(torch.equal(one.payload[0].value(), found) for found in tries)
    assert differ > 0


def assert_one_job(run):
    """At most one training at a time, and none twice in a round."""
    busy, done = {}, Counter()
    for _, kind, node, _, _, round in run.events:
        if kind == "compute":
            assert node not in busy
            busy[node] = round
        elif kind in ("done", "aborted"):
            assert busy.pop(node) == round
            done[node, round] += kind == "done"
    assert max(done.values()) == 1


def test_modest_property_18_stale_models_change_nothing(modest):
    calm, told = modest(dry=False, rounds=6), modest(dry=False, rounds=6)
    node = order(ids(12), 3)[1]
    initial = told.learner.initial
    for seconds in (3.3, 4.1):
        stale = Message("aggregated", (initial, View(12, list(range(12))), 4), 0, 1, 5)
        told.at(seconds, told.world.nodes[node].deliver, stale)
    for run in (calm, told):
        run.run()
        assert_one_job(run)
    assert calm.observer.ends == told.observer.ends
    for round in range(1, 7):
        assert torch.equal(calm.model(round), told.model(round))


def test_modest_property_18_rounds_never_go_back(modest):
    run = modest(nodes=14, rounds=15, params={"aggregators": 2, "success_fraction": 0.5, "resend_s": 9.0},
               churn={"name": "exponential", "online_s": 12, "offline_s": 4})  # fmt: skip
    seen = defaultdict(lambda: (0, 0))

    def look(transfer):
        mine = run.member(transfer.src.id)
        now = mine.train_round, mine.average_round
        assert now[0] >= seen[mine.id][0]
        assert now[1] >= seen[mine.id][1]
        seen[mine.id] = now

    run.world.network.hazards.append(look)
    run.run()
    assert_one_job(run)
    assert max(seen.values())[0] >= 15


def test_modest_property_19_duplicates_count_once(modest):
    twice = [{"name": "message_duplication", "probability": 1.0}]
    params = {"success_fraction": 0.75, "sample_size": 4}
    calm, doubled = (modest(dry=False, rounds=5, params=params, faults=faults) for faults in ([], twice))
    for run in (calm, doubled):
        run.run()
        assert [updates for _, _, updates in run.observer.ends] == [0, 3, 6, 9, 12, 15]
    assert calm.observer.ends == doubled.observer.ends
    assert torch.equal(calm.model(5), doubled.model(5))


def test_modest_property_19_late_models_change_no_average(modest):
    params = {"success_fraction": 0.75}
    run = modest(dry=False, rounds=3, params=params)
    slow = order(ids(12), 1)[0]
    run.world.nodes[slow].ps_per_sample *= 2
    run.run()
    model = average_by_hand(run, run.learner.initial, 1, set(order(ids(12), 1)[:4]) - {slow})
    assert torch.equal(run.model(1), model.value())
    assert any(kind == "late" and peer == slow for _, kind, _, peer, _, _ in run.events)


def test_modest_property_20_a_newer_round_breaks_training_off(modest):
    run = modest(rounds=30, stop={"sim_time_s": 3.0})
    node = order(ids(12), 1)[0]
    newer = Message("aggregated", (run.learner.initial, View(12, list(range(12))), 4), 0, 50, 11)
    run.at(0.4, run.world.nodes[node].deliver, newer)
    run.run()
    work = ("compute", "aborted", "done")
    mine = [(kind, size, round) for _, kind, id, _, size, round in run.events if id == node and kind in work]
    assert mine[:4] == [("compute", 10, 1), ("aborted", 4, 1), ("compute", 10, 50), ("done", 10, 50)]
    assert run.world.nodes[node].wasted == 4
    assert {one.round for one in run.of_kind("trained") if one.src == node} == {51}


def test_modest_property_21_a_node_alone_sends_nothing(modest):
    run = modest(nodes=1, rounds=3, params={"sample_size": 1})
    run.run()
    assert run.world.totals()["bytes_up"] == 0
    assert run.world.clock.now_s == 3.0


@pytest.mark.parametrize("aggregators", [1, 3])
def test_modest_property_22_traffic_is_what_the_formula_says(modest, aggregators):
    run = modest(nodes=14, rounds=8, params={"aggregators": aggregators})
    run.run()
    entry = round(14 * 87.2)
    for k in range(2, 8):
        before, sample = order(ids(14), k - 1)[:4], order(ids(14), k)[:4]
        selves = len(set(before) & set(sample[:aggregators]))
        up, down = run.of_kind("trained", k), run.of_kind("aggregated", k)
        assert len(up) == aggregators * 4 - selves
        assert len(down) == aggregators * 3
        assert {one.size for one in up + down} == {MODEL_BYTES + 70 + entry}
    totals = run.world.totals()
    assert totals["bytes_up"] == totals["bytes_down"]
    assert {one.size for one in run.of_kind("ping") + run.of_kind("pong")} == {PING}


@pytest.mark.parametrize("aggregators", [1, 3])
def test_modest_property_22_every_transfer_has_one_ping_and_one_pong(modest, aggregators):
    """Each node trains for as long as the others: the pings of a round fall into two moments."""
    run = modest(nodes=14, rounds=8, params={"aggregators": aggregators})
    run.run()
    pings, pongs, models = (
        Counter((one.src, one.dst) for kind in kinds for one in run.of_kind(kind) if one.at_s < 8)
        for kinds in (["ping"], ["pong"], ["trained", "aggregated"])
    )
    assert pings == models
    assert pongs == Counter({(dst, src): count for (src, dst), count in pings.items()})


def test_modest_property_22_views_grow_with_the_nodes_they_know(modest):
    sizes = {}
    for nodes in (10, 20, 40):
        run = modest(nodes=nodes, rounds=2)
        run.run()
        sizes[nodes] = run.of_kind("trained")[0].size - MODEL_BYTES - 70
    assert sizes == {10: 872, 20: 1744, 40: 3488}


@pytest.mark.parametrize(("size", "aggregators"), [(4, 1), (5, 2)])
def test_modest_property_23_it_sends_less_than_one_model_a_node(modest, size, aggregators):
    run = modest(nodes=60, rounds=40, params={"sample_size": size, "aggregators": aggregators})
    run.run()
    models = len(run.of_kind("trained")) + len(run.of_kind("aggregated"))
    ratio = 60 / (models / 40)
    assert ratio == pytest.approx(60 / (2 * aggregators * size), rel=0.2)
    if aggregators == 1:  # what a server would send and receive, up to what a node hands to itself
        assert models / 40 == pytest.approx(2 * size, rel=0.2)


def test_bad_parameters_are_refused_before_the_start():
    def check(**params):
        with pytest.raises(ConfigError) as caught:
            api.check(
                {"data": {"clients": 8}, "strategy": {"name": "modest", **params}, "stop": {"rounds": 1}}
            )
        return str(caught.value)

    assert check() == "strategy.sample_size: 10: must be at most 8, the number of peers"
    assert check(sample_size=4, aggregators=5).startswith(
        "strategy.aggregators: 5: must be at most sample_size (4)"
    )
    for fraction in (0.0, 1.5, -1.0):
        assert check(sample_size=4, success_fraction=fraction).startswith("strategy.success_fraction: ")
    for key in ("ping_timeout_s", "aggregator_timeout_s", "resend_s", "heartbeat_s"):
        assert check(sample_size=4, **{key: 0}).startswith(f"strategy.{key}: 0: ")
    for key in ("window", "sample_size", "aggregators", "minimum_models"):
        assert check(**{key: 0}).startswith(f"strategy.{key}: 0: ")
