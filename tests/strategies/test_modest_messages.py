"""MoDeST's node by itself: it is given messages, and what it does and knows then is looked at.

Local training of a round takes a second, and a message 10 ms.
"""

from __future__ import annotations

import pytest
import torch

from fedsim.world.net.network import Message
from strategies.modest.registry import View
from strategies.modest.sampling import order

IDS = [str(node) for node in range(20)]


def test_whoever_is_heard_of_is_active_in_the_latest_round_that_either_knows(modest):
    """The fifth node is not a member yet: its pings are no news of it, but its answers are."""
    run = modest(nodes=5, rounds=3, churn={"name": "arrive", "count": 1, "at_s": 1e5})
    found = []
    heard = [("ping", 3, 7), ("ping", 4, 8), ("ping", 2, 1), ("pong", 1, 9), ("pong", 3, 2), ("pong", 4, 0)]
    stale = Message("aggregated", (run.learner.initial, View(5, list(range(4))), 4), 0, 1, 2)
    for kind, src, round in heard:
        run.at(0.1, run.world.nodes[0].deliver, Message(kind, (99,), 0, round, src))
    run.at(0.2, lambda: found.extend(run.member(0).view[node].active for node in (1, 2, 3, 4)))
    run.at(0.2, run.world.nodes[0].deliver, stale)
    run.at(0.3, lambda: found.append(run.member(0).view[2].active))
    run.run()
    assert found == [9, 7, 9, 9, 9]
    assert {one.dst for one in run.of_kind("pong") if one.at_s == 0.1} == {2, 3}  # the fifth is not reached


def test_whoever_takes_a_model_is_active_in_the_senders_round(modest):
    """A model is on its way from 1.1 s to 1.9 s; in between, its sender hears of round 50."""
    run = modest(nodes=20, network={"up_mbps": 0.05}, stop={"sim_time_s": 2.2})
    aggregator, found = order(IDS, 2)[0], []
    trainer = next(node for node in order(IDS, 1)[:4] if node != aggregator)
    run.at(1.5, run.world.nodes[trainer].deliver, Message("ping", (99,), 0, 50, (trainer + 1) % 20))
    for seconds in (1.6, 2.1):
        run.at(seconds, lambda: found.append(run.member(trainer).view[aggregator].active))
    run.run()
    assert found[0] <= 2
    assert found[1] == 50


def tell_trained(run, src, round, model=None, at_s=0.1, invited=2):
    """Let node 11 hear of a trained model."""
    payload = (model or run.learner.initial, View(12, list(range(12))), invited)
    run.at(at_s, run.world.nodes[11].deliver, Message("trained", payload, 0, round, src))


def test_modest_property_19_of_two_models_of_a_node_the_first_counts(modest):
    run = modest(dry=False, stop={"sim_time_s": 0.5})
    one, two = (type(run.learner.initial).known(torch.full((650,), value)) for value in (1.0, 5.0))
    for src, model in ((0, one), (0, two), (1, one)):
        tell_trained(run, src, 9, model)
    run.run()
    assert torch.equal(run.model(8), one.value())


@pytest.mark.parametrize("newer", [False, True])
def test_an_aggregator_that_hears_of_a_newer_round_does_not_pass_its_average_on(modest, newer):
    """At 0.11 s it waits for answers of those whom it will invite."""
    run = modest(stop={"sim_time_s": 0.5})
    for src in (0, 1):
        tell_trained(run, src, 9)
    if newer:
        tell_trained(run, 0, 20, at_s=0.11)
    run.run()
    assert bool(run.of_kind("aggregated", 9)) is not newer


@pytest.mark.parametrize("invited", [(4, 2), (2, 4), (4, 4)])
def test_the_smallest_invitation_makes_the_quorum(modest, invited):
    """Two aggregators have reached different numbers of nodes; more than the fewer may never come."""
    run = modest(stop={"sim_time_s": 0.5})
    for src, count in enumerate(invited):
        tell_trained(run, src, 9, invited=count)
    run.run()
    assert [(round, updates) for round, _, updates in run.observer.ends[1:]] == [(8, 2)] * (2 in invited)


def test_who_comes_back_tells_some_of_all_whom_it_knows(modest):
    """It was away, and so has heard of nobody but node 3 within the window; that does not mean that they are gone."""
    run = modest(params={"window": 5}, stop={"sim_time_s": 0.5})
    back = run.world.nodes[11]
    run.at(0.1, back.deliver, Message("ping", (99,), 0, 60, 3))
    run.at(0.2, back.set_online, False)
    run.at(0.3, back.set_online, True)
    run.run()
    told = [one.dst for one in run.of_kind("advert") if one.src == 11]
    assert len(set(told)) == len(told) == 4
