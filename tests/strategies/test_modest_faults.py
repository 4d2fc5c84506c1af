"""MoDeST when nodes crash, leave, come back, and messages go astray."""

from __future__ import annotations

import statistics
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedsim.errors import StalledError
from strategies.modest.sampling import order

SEEDS = range(12)


def ids(n):
    return [str(node) for node in range(n)]


def outcome(run):
    """Run to the end, and return why it stalled, or nothing."""
    try:
        run.run()
    except StalledError as error:
        return str(error)
    return ""


def slow_links(modest, **params):
    """A network whose models take a second or more to travel."""
    return modest(nodes=20, rounds=8, params={"sample_size": 5, **params}, network={"up_mbps": 0.05})


@pytest.mark.parametrize(("aggregators", "survives"), [(1, False), (2, True)])
def test_modest_property_24_an_aggregators_crash_is_survived_if_there_is_another(
    modest, aggregators, survives
):
    """It crashes when the first model is on its way to it, and has trained nothing itself."""
    round = next(k for k in range(2, 9) if order(ids(20), k)[0] not in order(ids(20), k - 1)[:5])
    run = slow_links(modest, aggregators=aggregators)
    victim = run.world.nodes[order(ids(20), round)[0]]

    def strike(transfer):
        if transfer.message.kind == "trained" and transfer.dst is victim and transfer.message.round == round:
            run.at(0.5, victim.crash)

    run.world.network.hazards.append(strike)
    stalled = outcome(run)
    assert victim.crashed
    assert run.observer.round == (8 if survives else round - 2)
    assert bool(stalled) is not survives
    assert survives or (f"of round {round - 1}" in stalled and f"gone for good: [{victim.id}]" in stalled)


@pytest.mark.parametrize("crashes", [1, 2, 3])
def test_modest_property_24_participants_may_crash_as_long_as_a_quorum_is_left(modest, crashes):
    victims = order(ids(20), 1)[:crashes]
    run = slow_links(modest, success_fraction=0.6)
    for node in victims:
        run.at(0.5, run.world.nodes[node].crash)
    stalled = outcome(run)
    assert bool(stalled) is (crashes > 2)
    assert run.observer.round == (0 if stalled else 8)
    if stalled:
        sample = order(ids(20), 1)[:5]
        has, lacks = sorted(sample[3:]), sorted(sample[:3])
        assert f"waits for 3 models of round 1; it has those of {has}, not of {lacks}" in stalled


def crash80(modest, seed, sim_time_s=3600.0, **params):
    """Five of a hundred nodes crash every minute from 300 s on, until the first twenty are left."""
    faults = [
        {"name": "crash", "at_s": 300.0 + 60 * batch, "nodes": list(range(20 + 5 * batch, 25 + 5 * batch))}
        for batch in range(16)
    ]
    run = modest(
        nodes=100,
        seed=seed,
        model={"name": "mlp", "hidden": 1000},
        params={"sample_size": 10, "ping_timeout_s": 2.0, "window": 20, **params},
        stop={"sim_time_s": sim_time_s},
        network={
            "latency_ms": {"distribution": "uniform", "low": 5, "high": 150},
            "up_mbps": 10,
            "down_mbps": 10,
        },
        devices={"seconds_per_sample": {"distribution": "uniform", "low": 0.1, "high": 0.4}},
        faults=faults,
    )
    outcome(run)
    return run.observer.ends[-1][1] > sim_time_s - 300


ENOUGH = {"aggregators": 2, "success_fraction": 0.6}
TIMED = {"aggregators": 3, "aggregator_timeout_s": 60.0}


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("params", "survives"), [(ENOUGH, True), (TIMED, True), ({}, False)])
def test_modest_property_25_who_survives_when_four_in_five_crash(modest, seed, params, survives):
    assert crash80(modest, seed, **params) is survives


def test_modest_property_25_one_aggregator_that_needs_all_models_stalls(modest):
    assert not crash80(modest, 0, sim_time_s=1500.0)


@pytest.mark.parametrize("window", [40, 10_000])
def test_modest_property_26_rounds_are_quick_again_when_the_dead_are_forgotten(modest, window):
    """Twenty of thirty nodes crash between 30 s and 102 s."""
    params = {
        "sample_size": 6,
        "aggregators": 2,
        "success_fraction": 0.5,
        "ping_timeout_s": 2.0,
        "window": window,
    }
    run = modest(nodes=30, rounds=160, params={**params, "aggregator_timeout_s": 10.0, "resend_s": 20.0})
    for index, node in enumerate(node for node in range(30) if node % 3):
        run.at(30.0 + 8 * (index // 2), run.world.nodes[node].crash)
    run.run()
    ends = [now_s for _, now_s, _ in run.observer.ends]
    took = [later - sooner for sooner, later in pairwise(ends)]
    first, last = (sum(now_s < at_s for now_s in ends) for at_s in (30.0, 102.0))
    before, after = statistics.median(took[: first - 1]), statistics.median(took[last : last + 10])
    late = statistics.median(took[-20:])
    assert after > 2 * before
    assert (late < 1.2 * before) if window == 40 else (late > 2 * before)


# any schedule


@pytest.mark.slow
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_modest_property_27_nothing_breaks_whatever_happens(modest, data):
    draw = data.draw
    share = st.sampled_from([0.05, 0.3])
    faults = [
        {"name": "message_loss", "probability": draw(share)},
        {"name": "message_duplication", "probability": draw(share)},
        {"name": "crash", "at_s": draw(st.sampled_from([3.0, 11.0])), "count": draw(st.integers(1, 3))},
    ]
    options = {
        "aggregators": draw(st.integers(1, 3)),
        "success_fraction": draw(st.sampled_from([0.3, 0.6, 1.0])),
        "ping_timeout_s": draw(st.sampled_from([0.5, 2.0])),
        "aggregator_timeout_s": draw(st.sampled_from([None, 5.0])),
        "resend_s": draw(st.sampled_from([None, 8.0])),
        "heartbeat_s": draw(st.sampled_from([None, 20.0])),
        "window": draw(st.sampled_from([5, None])),
    }
    run = modest(
        nodes=9,
        seed=draw(st.integers(0, 99)),
        params=options,
        faults=faults,
        churn={"name": "exponential", "online_s": 15, "offline_s": 5},
        stop={"sim_time_s": 120.0},
    )
    outcome(run)
    rounds = [round for round, _, _ in run.observer.ends]
    assert rounds == sorted(set(rounds))
    totals = run.world.totals()
    assert totals["bytes_up"] == totals["bytes_down"] + totals["bytes_lost"]
    meanings = {}
    for node in range(9):
        mine = run.member(node)
        for other in range(9):
            if other in mine.view:
                active, counter, joined = mine.view[other]
                assert -1 <= active <= max(run.member(id).round for id in range(9))
                assert 0 <= counter <= run.member(other).events
                assert meanings.setdefault((other, counter), joined) is joined


def test_modest_property_28_a_node_that_has_left_is_not_invited_any_more(modest):
    run = modest(nodes=12, rounds=150, churn={"name": "depart", "count": 1, "at_s": 20.5})
    run.run()
    adverts = [one for one in run.of_kind("advert") if one.src == 11]
    assert len(adverts) == 4
    assert run.world.nodes[11].crashed
    pings = [event for event in run.events if event[1] == "send" and event[3] == 11 and event[4] == 179]
    assert pings
    assert max(time_us for time_us, *_ in pings) < 60e6 < run.world.clock.now
    for node in range(11):
        assert run.member(node).view[11][1:] == (1, False)


def test_modest_property_28_a_node_that_comes_back_is_invited_again(modest):
    """It is away for longer than the window, so that it is forgotten, and tells that it is back."""
    params = {"window": 25, "success_fraction": 0.75, "ping_timeout_s": 1.0}
    run = modest(nodes=12, rounds=150, params=params)
    run.at(20.5, run.world.nodes[11].set_online, False)
    run.at(90.25, run.world.nodes[11].set_online, True)
    run.run()
    calls = [
        event[0] / 1e6 for event in run.events if event[1] == "send" and event[3] == 11 and event[4] == 179
    ]
    assert not [now_s for now_s in calls if 70 < now_s < 90]
    assert [now_s for now_s in calls if now_s > 91]
    invited = [one.at_s for one in run.of_kind("aggregated") if one.dst == 11]
    assert max(invited) > 91
    assert run.member(11).view[11].counter == 1


def test_heartbeats_keep_idle_nodes_in_view(modest):
    """With a window that is far too small, most nodes are forgotten; those who show that they are there are not."""
    known = {}
    for heartbeat_s in (None, 4.0):
        params = {"window": 12, "sample_size": 3, "aggregators": 2, "success_fraction": 0.6}
        run = modest(nodes=30, rounds=60, params={**params, "heartbeat_s": heartbeat_s})
        run.run()
        mine = max(map(run.member, range(30)), key=lambda one: one.train_round)
        known[heartbeat_s] = mine.view.count(mine.round - 12)
    assert known[None] < 20 < 26 < known[4.0]


def test_a_model_that_nobody_acknowledges_is_sent_again(modest):
    """The only aggregator crashes with the models; the trainers find the next one."""
    run = slow_links(modest, resend_s=20.0, success_fraction=0.8)
    victim = run.world.nodes[order(ids(20), 2)[0]]
    run.at(1.5, victim.crash)
    assert outcome(run) == ""
    assert run.observer.round == 8
    assert run.observer.ends[1][1] > 21.0
    acks = Counter(one.round for one in run.of_kind("ack"))
    assert acks[3] >= 4


@pytest.mark.parametrize(("minimum", "ends"), [(2, True), (4, False)])
def test_an_aggregator_makes_do_with_what_it_has_after_its_timeout(modest, minimum, ends):
    run = slow_links(modest, aggregator_timeout_s=30.0, minimum_models=minimum)
    for node in order(ids(20), 1)[2:]:
        run.at(0.5, run.world.nodes[node].crash)
    assert (outcome(run) == "") is ends
    assert run.observer.round == (8 if ends else 0)
    if ends:
        assert run.observer.ends[1][1] >= 31.0
        assert run.observer.ends[1][2] == 2


def test_modest_property_29_the_same_seed_is_the_same_run(modest):
    world = {
        "churn": {"name": "exponential", "online_s": 15, "offline_s": 5},
        "faults": [{"name": "message_loss", "probability": 0.1}],
        "params": {"aggregators": 2, "success_fraction": 0.5, "resend_s": 10.0, "aggregator_timeout_s": 20.0},
    }
    hashes = []
    for seed in (3, 3, 4):
        run = modest(seed=seed, rounds=12, **world)
        run.run()
        hashes.append(run.world.log.hexdigest())
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_run_that_cannot_go_on_ends_however_much_its_nodes_come_and_go(modest):
    """All who could train crash; the others leave and return, and say so, and an idle node shows that it is there."""
    churn = {"name": "exponential", "online_s": 8000, "offline_s": 2000}
    run = modest(nodes=8, rounds=5, churn=churn, params={"resend_s": 30.0, "heartbeat_s": 100.0})
    run.at(0.2, lambda: [node.crash() for node in run.world.nodes if node._jobs])
    assert "nobody can make progress" in outcome(run)
    assert run.observer.round == 0
    assert 0 < run.world.clock.now_s < 250_000
