"""FedAMD: golden numbers as exact fractions, and the algorithm's properties, each derived by hand."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from fedamd_lab import (
    TOLERANCE,
    C,
    H,
    Lab,
    close,
    golden,
    gradients,
    job,
    learner,
    random_problem,
    scalars,
)
from flwr.app import ConfigRecord
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.flower import compat
from fedsim.flower.cohort import draw
from fedsim.flower.records import pack, unpack
from fedsim.flower.simulate.clients import BuiltinClients
from fedsim.flower.simulate.instruction import round_of
from fedsim.learn.deferred import Deferred
from fedsim.learn.task import Batch
from fedsim.rng import stream
from fedsim.running.threads import limited
from fedsim.spec.experiment import Local
from strategies.fedamd.fedamd import ANCHOR, MINER, FedAMD, Miner


@pytest.fixture(autouse=True)
def one_thread():
    """Small models are faster with one thread, as in a run."""
    with limited(1):
        yield


# the golden run


def test_fedamd_property_08_golden_run():
    lab = golden()
    wanted_x = [Fraction(0), Fraction(21, 50), Fraction(259, 300), Fraction(259, 300)]
    wanted_mean = [None, Fraction(-7, 3), Fraction(-133, 75), Fraction(-539, 450)]
    for found, wanted in zip(lab.x, wanted_x):
        assert close(found, [float(wanted)])
        assert Fraction(float(found)).limit_denominator(10_000) == wanted
    for found, wanted in zip(lab.means[1:], wanted_mean[1:]):
        assert close(found, [float(wanted)])
        assert Fraction(float(found)).limit_denominator(10_000) == wanted
    end = {node: float(value) for node, value in lab.caches[3].items()}
    # anchor 2 at 259/300: 2 (259/300 + 1); anchor 3 at 21/50: 4 (21/50 - 2)
    assert end == pytest.approx({0: -1.0, 1: 2 * 559 / 300, 2: -6.32}, abs=TOLERANCE)


@pytest.mark.parametrize(
    ("round", "wrong"),
    [
        (2, Fraction(5677, 7500)),  # follows this round's anchors
        (1, Fraction(21, 100)),  # divides by the participants
        (2, Fraction(259, 600)),
        (1, Fraction(-9, 100)),  # averages the participants' caches only
        (2, Fraction(999, 1250)),
    ],
)
def test_fedamd_property_08_wrong_variants_are_not_produced(round, wrong):
    assert abs(float(golden().x[round]) - float(wrong)) > 1e-2


def exactly(h, c, lr, server_lr, steps, participants, anchors):
    """Return models and means after each round, in fractions, from the algorithm's pseudo-code alone."""
    slope = [lambda x, a=a, b=b: a * (x - b) for a, b in zip(h, c)]
    x, caches = Fraction(0), [one(Fraction(0)) for one in slope]
    ends = []
    for cohort, chosen in zip(participants, anchors):
        mean, moves = sum(caches) / len(caches), []
        for i in cohort - chosen:
            y, before, g = x - lr * mean, x, mean
            for _ in range(steps - 1):
                g = g + slope[i](y) - slope[i](before)
                y, before = y - lr * g, y
            moves.append(x - y)
        for i in cohort & chosen:
            caches[i] = slope[i](x)
        x -= server_lr * sum(moves) / max(1, len(moves))
        ends.append((x, sum(caches) / len(caches)))
    return ends


@settings(max_examples=15, deadline=None)
@given(
    rounds=st.lists(
        st.tuples(st.sets(st.integers(0, 3), min_size=1, max_size=2), st.sets(st.integers(0, 3))),
        min_size=1,
        max_size=3,
    ),
    steps=st.integers(1, 3),
    server_lr=st.sampled_from([1.0, 0.5]),
)
def test_fedamd_property_08_any_run_is_exact_where_floats_are(rounds, steps, server_lr):
    """Powers of two everywhere, and four clients: no operation rounds, so every bit must be right."""
    h, c = (1, 4, 16, 4), (1, -1, 2, 3)
    participants, anchors = zip(*rounds)
    local = Local(steps=steps, batch_size=None, lr=0.125)
    given = {"participants": list(participants), "anchors": anchors, "local": local, "server_lr": server_lr}
    lab = Lab(scalars(h, c), **given).run(len(rounds))
    wanted = exactly(h, c, Fraction(1, 8), Fraction(server_lr), steps, participants, anchors)
    assert [(float(x), float(mean)) for x, mean in zip(lab.x[1:], lab.means[1:])] == wanted


def test_the_golden_run_does_not_depend_on_the_engine_of_messages():
    """Slow and fast devices change the order of the replies, not the numbers."""
    slow = {"devices": {"seconds_per_sample": {"distribution": "uniform", "low": 0.001, "high": 1.0}}}
    lab = Lab(scalars(), participants=[{0, 1}, {0, 2}, {1}], anchors=[{0}, {2}, {1}], world=slow).run(3)
    assert [float(x) for x in lab.x] == [float(x) for x in golden().x]
    assert lab.world.clock.now != golden().world.clock.now


# special cases


@pytest.mark.parametrize("schedule", [{"p": 1.0}, {"period": 1}])
@pytest.mark.parametrize("large_batch", [None, 2])
def test_fedamd_property_01_only_anchors_freeze_the_model(schedule, large_batch):
    lab = Lab(random_problem(), cls=FedAMD, large_batch=large_batch, **schedule).run(4)
    assert all(torch.equal(x, lab.x[0]) for x in lab.x)
    for caches in lab.caches[1:]:
        found = torch.stack(list(caches.values()))
        assert close(found, gradients(lab.learner, lab.x[0])) == (large_batch is None)


def test_fedamd_property_02_only_miners_walk_a_straight_line():
    local = Local(steps=1, batch_size=2, lr=0.05)
    lab = Lab(random_problem(), cls=FedAMD, p=0.0, local=local, server_lr=0.5).run(6)
    slope = gradients(lab.learner, lab.x[0]).mean(0)
    for t, x in enumerate(lab.x):
        assert close(x, lab.x[0] - t * 0.5 * 0.05 * slope)
    first = lab.caches[1]
    assert all(torch.equal(caches[node], first[node]) for caches in lab.caches[1:] for node in first)


def test_fedamd_property_03_one_step_needs_no_data():
    lab = random_problem()
    mean = [0.3, -2.0, 1.0]
    for batch_size in (1, 2, None):
        miner = Miner(Local(steps=1, batch_size=batch_size, lr=0.25))
        assert miner.work(5) == 0
        for client in range(4):
            rows = miner.batches(5, stream(0, "x", client))
            assert len(rows) == 0
            sent = job(lab, miner, client, rows, arrays=[1.0, 2.0, 3.0], anchor_mean=mean)
            assert close(sent["arrays"], [0.075, -0.5, 0.25])
            assert float(sent["train_loss"]) == 0.0


@pytest.mark.parametrize("miners", [{0, 1, 2}, {1}])
def test_fedamd_property_04_alternating_is_gradient_descent(miners):
    everybody = {0, 1, 2}
    local = Local(steps=1, batch_size=1, lr=0.2)
    participants = [everybody, miners] * 4
    lab = Lab(scalars(start=3.0), participants=participants, local=local, period=2, server_lr=0.5).run(8)
    x = 3.0
    for t in range(4):
        assert close(lab.x[2 * t + 1], [x])  # anchors do not move the model
        x -= 0.5 * 0.2 * sum(h * (x - c) for h, c in zip(H, C)) / 3
        assert close(lab.x[2 * t + 2], [x])


def test_fedamd_property_05_full_batch_miners_take_svrg_steps():
    lab, lr, client = random_problem(), 0.03, 2
    start, mean = torch.tensor([1.0, -1.0, 0.5], dtype=torch.float64), [0.2, 0.1, -0.4]
    y, total = start.clone(), torch.zeros(3, dtype=torch.float64)
    for steps in range(1, 7):
        g = torch.tensor(mean, dtype=torch.float64)
        g = g + gradients(lab, y)[client] - gradients(lab, start)[client]
        y, total = y - lr * g, total + g
        miner = Miner(Local(steps=steps, batch_size=None, lr=lr))
        rows = miner.batches(5, stream(0, "x"))
        sent = job(lab, miner, client, rows, arrays=start.tolist(), anchor_mean=mean)
        assert close(sent["arrays"], start - y)
        assert close(sent["arrays"], lr * total)


def test_fedamd_property_05_the_progress_is_the_sum_of_all_directions():
    """With mini-batches, too; each direction by hand from the samples' own gradients."""
    lab, lr, client = random_problem(), 0.05, 1
    x, y = (one[lab.engine.data.owned[client]] for one in (lab.engine.data.x, lab.engine.data.y))
    start, mean = torch.tensor([0.3, 0.1, -1.0], dtype=torch.float64), [1.0, -0.5, 0.25]
    miner = Miner(Local(steps=5, batch_size=2, lr=lr))
    rows = miner.batches(5, stream(3, "x"))
    directions, before = [torch.tensor(mean, dtype=torch.float64)], start
    here = start - lr * directions[0]
    for row in rows:
        a, b = x[row[row >= 0]], y[row[row >= 0]]
        change = a.T @ (a @ here - b) / len(a) - a.T @ (a @ before - b) / len(a)
        directions.append(directions[-1] + change)
        before, here = here, here - lr * directions[-1]
    sent = job(lab, miner, client, rows, arrays=start.tolist(), anchor_mean=mean)
    assert close(sent["arrays"], lr * torch.stack(directions).sum(0))


def test_fedamd_property_06_identical_clients_take_gradient_steps():
    local = Local(steps=5, batch_size=None, lr=0.1)
    lab = Lab(scalars((2.0,) * 3, (1.5,) * 3, start=-1.0), anchors=[set()], local=local).run(1)
    x = -1.0
    for _ in range(5):
        x -= 0.1 * 2.0 * (x - 1.5)
    assert close(lab.x[1], [x])


@pytest.mark.parametrize(
    ("steps", "batch_size", "p"), [(7, 2, 0.4), (1, 2, 0.5), (3, 1, 0.0), (5, None, 0.7)]
)
def test_fedamd_property_07_the_optimum_is_a_fixed_point(steps, batch_size, p):
    data = random_problem().engine.data  # as many samples each: the mean of clients is that of samples
    optimum = torch.linalg.solve(data.x.T @ data.x, data.x.T @ data.y)
    local = Local(steps=steps, batch_size=batch_size, lr=0.1)
    lab = Lab(random_problem(start=optimum), cls=FedAMD, p=p, local=local).run(8)
    assert all(close(x, optimum) for x in lab.x)
    assert float(gradients(lab.learner, optimum).norm(dim=1).min()) > 0.1


def test_fedamd_property_09_sarah_not_svrg():
    lab = learner([([[1.0], [math.sqrt(3.0)]], [0.0, 0.0])])
    y = [1.0]
    for steps in (1, 2, 3):
        miner = Miner(Local(steps=steps, batch_size=1, lr=0.1))
        rows = np.array([[0], [1]])[: steps - 1].reshape(steps - 1, 1)
        y.append(1.0 - float(job(lab, miner, 0, rows, arrays=[1.0], anchor_mean=[2.0])["arrays"]))
    assert y == pytest.approx([1.0, 0.8, 0.62, 0.494], abs=TOLERANCE)
    directions = [(before - after) / 0.1 for before, after in pairwise(y)]
    assert directions == pytest.approx([2.0, 9 / 5, 63 / 50], abs=1e-11)
    exact = [Fraction(4, 5), Fraction(31, 50), Fraction(247, 500)]
    assert [Fraction(one).limit_denominator(10_000) for one in y[1:]] == exact
    steps = [Fraction(one).limit_denominator(10_000) for one in directions]
    assert steps == [Fraction(2), Fraction(9, 5), Fraction(63, 50)]
    assert abs(y[3] - 0.534) > 0.01


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 4), max_size=5), st.sampled_from([0.01, 0.1, 0.3]))
def test_fedamd_property_09_directions_are_products_of_contractions(samples, lr):
    """g_k = (I - lr H_k) ... (I - lr H_2) ḡ on a quadratic, whatever the start and the targets are."""
    lab, mean = random_problem(), torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    direction, total = mean, mean.clone()
    for sample in samples:
        a = lab.engine.data.x[lab.engine.data.owned[3][sample]]
        direction = direction - lr * a * (a @ direction)
        total += direction
    miner = Miner(Local(steps=len(samples) + 1, batch_size=1, lr=lr))
    rows = np.array(samples, dtype=np.int64).reshape(-1, 1)
    sent = job(lab, miner, 3, rows, arrays=[0.5, 1.5, -1.0], anchor_mean=mean.tolist())
    assert close(sent["arrays"], lr * total, 1e-9 * (1 + float(total.abs().max())))


# order and isolation


class Perturbing(BuiltinClients):
    """Client 0 adds one to its anchor gradient of the first round."""

    def answer(self, client, message, sim_time_s):
        content = super().answer(client, message, sim_time_s)
        if client == 0 and message.metadata.message_type == ANCHOR and round_of(message.content) == 1:
            value = unpack(content["arrays"]).value() + 1.0
            content["arrays"] = pack(Deferred.known(value), self.learner.engine.task.layout, "float64")
        return content


def test_fedamd_property_10_anchors_act_from_the_next_round_on():
    roles = {"participants": [{0, 1}, {0, 1}, {0, 1}], "anchors": [{0}, {1}, {1}]}
    calm, moved = Lab(scalars(), **roles).run(3), Lab(scalars(), **roles, clients=Perturbing).run(3)
    assert torch.equal(calm.x[1], moved.x[1])
    # the mean moves by 1/3, and with it both steps of the one miner: client 0 with h = 1 at lr = 0.1
    assert close(calm.x[2] - moved.x[2], [(0.1 + 0.1 * (1 - 0.1)) / 3])


def test_fedamd_property_11_only_anchors_change_their_caches():
    lab = Lab(random_problem(clients=5), cls=FedAMD, p=0.5, local=Local(steps=3, batch_size=2, lr=0.02))
    lab.strategy.participants = 3
    lab.run(60)  # the running sum is made afresh after 50
    changed = 0
    for round in range(2, 61):
        before, after = lab.caches[round - 1], lab.caches[round]
        cohort = draw(range(5), 3, stream(0, "cohort", round=round))
        anchors = {node for node in cohort if lab.strategy.is_anchor(round, node)}
        assert {node for node in after if not torch.equal(before[node], after[node])} <= anchors
        for node in anchors:
            assert close(after[node], gradients(lab.learner, lab.x[round - 1])[node])
        assert close(lab.means[round], torch.stack(list(after.values())).mean(0))
        changed += len(anchors)
    assert changed > 40


def test_a_client_that_is_lost_keeps_its_cache():
    lab = Lab(scalars(), participants=[{0, 1, 2}] * 3, anchors=[{0}, {0, 2}, {2}])
    note = lab.note

    def note_and_crash(round, arrays):
        note(round, arrays)
        if round == 1:
            lab.world.nodes[2].crash()

    lab.note = note_and_crash
    lab.run(3)
    assert torch.equal(lab.caches[3][2], lab.caches[1][2])
    assert close(lab.caches[3][2], [-8.0])
    assert len(lab.caches[3]) == 3
    # round 2 goes on with the one miner that is left: client 1 with h = 2
    mean = lab.means[1]
    assert close(lab.x[2], lab.x[1] - 0.1 * mean - 0.1 * (mean - 0.1 * 2 * mean))


def test_a_client_that_was_away_joins_the_mean_with_its_first_gradient():
    lab = Lab(scalars(), anchors=[set(), {2}, set()])
    lab.grid.script = iter([{0, 1}, {0}, {0, 2}, {0}])
    lab.run(3)
    assert [sorted(caches) for caches in lab.caches] == [[], [0, 1], [0, 1, 2], [0, 1, 2]]
    assert close(lab.means[1], [(-1 + 2) / 2])
    x1 = -0.1 * 0.5 - 0.1 * (0.5 - 0.05)
    assert close(lab.x[1], [x1])
    x2 = x1 - 0.1 * 0.5 - 0.1 * (0.5 - 0.05)
    assert close(lab.x[2], [x2])
    assert close(lab.means[2], [(-1 + 2 + 4 * (x1 - 2)) / 3])


def test_without_any_cache_everybody_is_an_anchor():
    lab = Lab(scalars(), cls=FedAMD, p=0.0)
    lab.grid.script = iter([{0, 1, 2}, {0, 1}, {0}])
    for node in lab.world.nodes[:3]:
        node.set_online(False)
    lab.world.clock.after(500_000, lab.world.nodes[0].set_online, True)
    lab.world.clock.after(500_000, lab.world.nodes[1].set_online, True)
    lab.run(2)
    assert [sorted(caches) for caches in lab.caches] == [[], [0, 1], [0, 1]]
    assert torch.equal(lab.x[1], lab.x[0])
    assert not torch.equal(lab.x[2], lab.x[1])


def test_a_world_in_which_nobody_ever_answers_leaves_the_model_alone():
    lab = Lab(scalars(start=2.0), participants=[{0}] * 51)
    for node in lab.world.members:
        node.crash()
    lab.run(51)
    assert all(float(x) == 2.0 for x in lab.x)
    assert len(lab.strategy.caches) == 0


# rounds


def test_fedamd_property_13_rounds_without_miners_or_without_anchors():
    lab = Lab(random_problem(clients=3), anchors=[{0, 1, 2}, set(), {1}], participants=[{0, 1, 2}] * 3).run(3)
    assert torch.equal(lab.x[1], lab.x[0])
    assert not torch.equal(lab.x[2], lab.x[1])
    assert all(torch.equal(lab.caches[2][node], lab.caches[1][node]) for node in range(3))
    assert torch.equal(lab.means[2], lab.means[1])


def test_fedamd_property_13_every_participant_has_one_role():
    lab = Lab(random_problem(), cls=FedAMD, p=0.5)
    lab.strategy.participants = 3
    lab.run(1)
    arrays = pack(lab.learner.initial, lab.learner.engine.task.layout, "float64")
    with compat.session(0, lab.grid.server.id, lab.grid.sleep):
        for round in range(2, 30):
            messages = lab.strategy.configure_train(round, arrays, ConfigRecord(), lab.grid)
            nodes = [message.metadata.dst_node_id for message in messages]
            assert len(set(nodes)) == len(nodes) == 3
            for message in messages:
                kind, node = message.metadata.message_type, message.metadata.dst_node_id
                assert kind == (ANCHOR if lab.strategy.is_anchor(round, node) else MINER)
                assert ("anchor-mean" in message.content) == (kind == MINER)
                assert round_of(message.content) == round


def test_fedamd_property_14_the_order_of_replies_does_not_matter():
    """With four of each role: sums of two numbers would be the same in any order."""
    anchors, ends = [{0, 2, 4, 6}], []
    for order in ([0, 1, 2, 3, 4, 5, 6, 7], [7, 3, 1, 4, 0, 6, 2, 5]):
        lab = Lab(random_problem(clients=8), anchors=anchors, local=Local(steps=2, batch_size=2, lr=0.1))
        arrays = pack(lab.learner.initial, lab.learner.engine.task.layout, "float64")
        with compat.session(0, lab.grid.server.id, lab.grid.sleep):
            messages = list(lab.strategy.configure_train(1, arrays, ConfigRecord(), lab.grid))
            replies = lab.grid.send_and_receive(messages)
        assert len(replies) == 8
        replies.sort(key=lambda reply: order.index(reply.metadata.src_node_id))
        new, _ = lab.strategy.aggregate_train(1, replies)
        ends.append((unpack(new).value(), lab.strategy.anchor_mean().value()))
    assert torch.equal(ends[0][0], ends[1][0])
    assert torch.equal(ends[0][1], ends[1][1])


def test_fedamd_property_14_sizes_do_not_matter():
    script = {"participants": [{0, 1, 2}] * 3, "anchors": [{0}, {2}, {1}]}  # two miners in each round
    even, uneven = Lab(scalars(), **script).run(3), Lab(scalars(copies=[1, 7, 3]), **script).run(3)
    assert all(close(a, b) for a, b in zip(even.x, uneven.x))
    assert all(close(a, b) for a, b in zip(even.means[1:], uneven.means[1:]))


def test_fedamd_property_15_one_batch_at_both_points():
    lab, seen = random_problem(), []
    data = lab.engine.data

    def noting(weights, batch):
        seen.append((weights.clone(), batch))
        return lab.engine.task.gradient(weights, batch)

    miner = Miner(Local(steps=3, batch_size=2, lr=0.1))
    rows = miner.batches(5, stream(0, "x"))
    assert rows.shape == (2, 2)
    assert len(set(rows.reshape(-1).tolist())) == 4  # fresh samples at every step
    zeros = torch.zeros(3, dtype=torch.float64)
    given = {"arrays": zeros, "anchor-mean": zeros + 1, "lr": torch.tensor(0.1, dtype=torch.float64)}
    given["lr-factor"] = torch.ones_like(given["lr"])
    state = miner.init(given)
    assert seen == []  # the first step looks at no data
    for row in rows:
        state = miner.step(noting, state, Batch(data.x[row], data.y[row], torch.ones(2, dtype=torch.float64)))
    assert [id(batch) for _, batch in seen] == [
        id(seen[0][1]),
        id(seen[0][1]),
        id(seen[2][1]),
        id(seen[2][1]),
    ]
    assert torch.equal(seen[1][0], zeros)  # the iterate before last at the second step is the start
    assert torch.equal(seen[3][0], seen[0][0])  # and then what was the last one
