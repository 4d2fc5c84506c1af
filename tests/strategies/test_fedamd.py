"""FedAMD: golden numbers as exact fractions, and the algorithm's properties, each derived by hand.

Client i of the hand-made problems has f_i(x) = h_i/2 (x - c_i)^2: one sample a = sqrt(h_i) with target a c_i.
"""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from fedsim import api
from fedsim.config import Local, load
from fedsim.errors import BadValue, ConfigError
from fedsim.flower import compat
from fedsim.flower.arrays import pack, unpack
from fedsim.flower.cohort import draw
from fedsim.flower.grid import SimGrid, round_of
from fedsim.flower.simclient import BuiltinClients
from fedsim.learn.deferred import Deferred
from fedsim.learn.engines import Sequential, Shard, TrainJob
from fedsim.learn.learner import Learner
from fedsim.learn.models import linear
from fedsim.learn.task import Batch, Task
from fedsim.rng import stream
from fedsim.setup import prepare
from fedsim.threads import limited
from fedsim.world import world as worlds
from strategies.fedamd import ANCHOR, MINER, Anchor, FedAMD, Miner
from topologies.graphs import star

H, C = (1.0, 2.0, 4.0), (1.0, -1.0, 2.0)
TOLERANCE = 1e-12


@pytest.fixture(autouse=True)
def one_thread():
    """Small models are faster with one thread, as in a run."""
    with limited(1):
        yield


# a little laboratory


def learner(clients, start=0.0, seed=0):
    """Return least squares over the clients' samples (a [n, d], targets [n]), starting where it says."""
    x, y = (np.concatenate([np.asarray(part[i], dtype=float) for part in clients]) for i in (0, 1))
    ends = np.cumsum([len(a) for a, _ in clients])
    owned = [torch.arange(end - len(a), end) for (a, _), end in zip(clients, ends.tolist())]
    module = linear(shape=(x.shape[1],)).double()
    module[1].weight.data[:] = torch.as_tensor(start)
    task = Task(module, "half_square", dtype=torch.float64)
    shard = Shard(torch.from_numpy(x), torch.from_numpy(y), owned)
    return Learner(Sequential(task, shard), shard.x, shard.y, seed)


def scalars(h=H, c=C, start=0.0, copies=1):
    """Return the hand-made problem, every sample of client i as often as it says."""
    copies = [copies] * len(h) if isinstance(copies, int) else copies
    each = zip(h, c, copies)
    return learner([([[math.sqrt(a)]] * n, [math.sqrt(a) * b] * n) for a, b, n in each], start)


def random_problem(clients=4, samples=5, dimension=3, start=0.5):
    rng = stream(11, "problem")
    draws = [
        (rng.standard_normal((samples, dimension)), rng.standard_normal(samples)) for _ in range(clients)
    ]
    return learner(draws, start)


def gradients(lab, weights):
    """Return every client's full gradient [M, d]."""
    data, weights = lab.engine.data, torch.as_tensor(weights, dtype=torch.float64)
    rows = [data.x[own].T @ (data.x[own] @ weights - data.y[own]) / len(own) for own in data.owned]
    return torch.stack(rows)


class Script(SimGrid):
    """A grid on which the clients are online that the script names, look by look."""

    script = None

    def get_node_ids(self):
        return sorted(next(self.script)) if self.script is not None else super().get_node_ids()


class Forced(FedAMD):
    """FedAMD with forced roles: the anchors of each round."""

    anchors = None

    def is_anchor(self, round, node):
        return super().is_anchor(round, node) if self.anchors is None else node in self.anchors[round - 1]


class Lab:
    """Runs a strategy on a learner and keeps what the server knew after every round."""

    def __init__(
        self, lab, *, participants=None, anchors=None, cls=Forced, world=None, clients=None, **params
    ):
        params.setdefault("local", Local(steps=2, batch_size=None, lr=0.1))
        size = len(lab.sizes)
        self.strategy = cls(participants=size, **params)
        self.strategy.anchors = anchors
        file = {"data": {"clients": size}, "strategy": "fedamd", "stop": {"rounds": 1}, **(world or {})}
        self.learner, self.world = lab, worlds.build(load(file), star(size + 1), True)
        answering = (clients or BuiltinClients)(lab, self.strategy.updates)
        self.grid = Script(self.world, answering, detect_s=1.0)
        if participants is not None:
            self.grid.script = iter([range(size), *participants])
        self.x, self.caches, self.means = [], [], []

    def run(self, rounds):
        task = self.learner.engine.task
        start = pack(self.learner.initial, task.layout, "float64")
        with compat.session(0, self.grid.server.id, self.grid.sleep):
            self.strategy.start(self.grid, start, num_rounds=rounds, timeout=3600, evaluate_fn=self.note)
        return self

    def note(self, round, arrays):
        self.x.append(unpack(arrays).value().clone())
        caches = self.strategy.caches
        self.caches.append({node: value.value().clone() for node, value in sorted(caches.items())})
        self.means.append(self.strategy.anchor_mean().value().clone() if caches else None)


def close(found, wanted, tolerance=TOLERANCE):
    gap = (torch.as_tensor(found, dtype=torch.float64) - torch.as_tensor(wanted, dtype=torch.float64)).abs()
    return float(gap.max()) < tolerance


# the golden run


def golden():
    lab = Lab(scalars(), participants=[{0, 1}, {0, 2}, {1}], anchors=[{0}, {2}, {1}])
    return lab.run(3)


def test_fedamd_property_08_golden_run():
    lab = golden()
    wanted_x = [Fraction(0), Fraction(21, 50), Fraction(259, 300), Fraction(259, 300)]
    wanted_mean = [None, Fraction(-7, 3), Fraction(-133, 75), Fraction(-539, 450)]
    for found, wanted in zip(lab.x, wanted_x):
        assert close(found, [float(wanted)])
    for found, wanted in zip(lab.means[1:], wanted_mean[1:]):
        assert close(found, [float(wanted)])
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


def test_the_golden_run_does_not_depend_on_the_engine_of_messages():
    """Slow and fast devices change the order of the replies, not the numbers."""
    slow = {"devices": {"seconds_per_sample": {"distribution": "uniform", "low": 0.001, "high": 1.0}}}
    lab = Lab(scalars(), participants=[{0, 1}, {0, 2}, {1}], anchors=[{0}, {2}, {1}], world=slow).run(3)
    assert [float(x) for x in lab.x] == [float(x) for x in golden().x]
    assert lab.world.clock.now != golden().world.clock.now


# special cases


def test_fedamd_property_01_only_anchors_freeze_the_model():
    lab = Lab(random_problem(), cls=FedAMD, p=1.0).run(4)
    assert all(torch.equal(x, lab.x[0]) for x in lab.x)
    for caches in lab.caches[1:]:
        assert close(torch.stack(list(caches.values())), gradients(lab.learner, lab.x[0]))


def test_fedamd_property_02_only_miners_walk_a_straight_line():
    local = Local(steps=1, batch_size=2, lr=0.05)
    lab = Lab(random_problem(), cls=FedAMD, p=0.0, local=local, server_lr=0.5).run(6)
    slope = gradients(lab.learner, lab.x[0]).mean(0)
    for t, x in enumerate(lab.x):
        assert close(x, lab.x[0] - t * 0.5 * 0.05 * slope)
    first = lab.caches[1]
    assert all(torch.equal(caches[node], first[node]) for caches in lab.caches[1:] for node in first)


def job(lab, update, client, rows, **given):
    vectors = {name.replace("_", "-"): torch.tensor(v, dtype=torch.float64) for name, v in given.items()}
    return lab.engine.train([TrainJob(update, client, np.array(rows), vectors)])[0]


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
    for _ in range(6):
        g = torch.tensor(mean, dtype=torch.float64)
        g = g + gradients(lab, y)[client] - gradients(lab, start)[client]
        y, total = y - lr * g, total + g
    miner = Miner(Local(steps=6, batch_size=None, lr=lr))
    rows = miner.batches(5, stream(0, "x"))
    sent = job(lab, miner, client, rows, arrays=start.tolist(), anchor_mean=mean)
    assert close(sent["arrays"], start - y)
    assert close(sent["arrays"], lr * total)


def test_fedamd_property_06_identical_clients_take_gradient_steps():
    local = Local(steps=5, batch_size=None, lr=0.1)
    lab = Lab(scalars((2.0,) * 3, (1.5,) * 3, start=-1.0), anchors=[set()], local=local).run(1)
    x = -1.0
    for _ in range(5):
        x -= 0.1 * 2.0 * (x - 1.5)
    assert close(lab.x[1], [x])


def test_fedamd_property_07_the_optimum_is_a_fixed_point():
    data = random_problem().engine.data  # as many samples each: the mean of clients is that of samples
    optimum = torch.linalg.solve(data.x.T @ data.x, data.x.T @ data.y)
    local = Local(steps=7, batch_size=2, lr=0.1)
    lab = Lab(random_problem(start=optimum), cls=FedAMD, p=0.4, local=local).run(8)
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
    assert abs(y[3] - 0.534) > 0.01


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
    assert lab.strategy.caches == {}


# convergence


def test_fedamd_property_12_linear_convergence(tmp_path):
    given = {
        "data": {
            "name": "quadratic",
            "clients": 6,
            "dimension": 7,
            "samples": 12,
            "conditioning": 2.0,
            "partition": "natural",
        },
        "model": "linear",
        "strategy": {
            "name": "fedamd",
            "participants": 3,
            "p": 0.5,
            "local": {"steps": 3, "batch_size": 3, "lr": 0.03},
        },
        "stop": {"rounds": 500},
        "evaluate": {"every": 250},
        "compute": {"dtype": "float64"},
        "record": {"report": False, "events": False},
    }
    setup = prepare(load(given))
    optimum, start = setup.dataset.optimum.numpy(), setup.learner.initial.value().numpy()
    assert np.linalg.norm(start - optimum) > 0.1
    result = api.run(given, out=tmp_path)
    assert np.linalg.norm(result.weights()["1.weight"][0] - optimum) < 1e-8
    best = float(setup.learner.evaluate(Deferred.known(setup.dataset.optimum)).value()["loss"])
    gaps = result.metrics()["loss"] - best  # after 0, 250 and 500 rounds
    assert gaps[1] < 1e-4 * gaps[0]
    assert gaps[2] < 1e-14 * gaps[0]


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
    lab = Lab(random_problem(), participants=[range(4)] * 2, anchors=[{0, 2}, {0, 2}]).run(1)
    ends = []
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        strategy = Forced(participants=4, local=Local(steps=2, batch_size=2, lr=0.1))
        strategy.anchors = lab.strategy.anchors
        grid = Lab(random_problem(), participants=[range(4)], anchors=[{0, 2}]).grid
        arrays = pack(lab.learner.initial, lab.learner.engine.task.layout, "float64")
        with compat.session(0, grid.server.id, grid.sleep):
            messages = list(strategy.configure_train(1, arrays, ConfigRecord(), grid))
            replies = grid.send_and_receive(messages)
        replies.sort(key=lambda reply: order.index(reply.metadata.src_node_id))
        new, _ = strategy.aggregate_train(1, replies)
        ends.append((unpack(new).value(), strategy.anchor_mean().value()))
    assert torch.equal(ends[0][0], ends[1][0])
    assert torch.equal(ends[0][1], ends[1][1])


def test_fedamd_property_14_sizes_do_not_matter():
    script = {"participants": [{0, 1}, {0, 2}, {1}], "anchors": [{0}, {2}, {1}]}
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


def test_fedamd_property_16_roles_are_independent_coins():
    strategy = FedAMD(participants=4, local=Local(steps=2), p=0.3)
    strategy.caches = {0: Deferred.phantom()}
    coins = np.array([[strategy.is_anchor(t, node) for node in range(4)] for t in range(1, 3001)])
    counts = coins.sum(1)
    for k in range(5):
        wanted = math.comb(4, k) * 0.3**k * 0.7 ** (4 - k)
        deviation = math.sqrt(wanted * (1 - wanted) / 3000)
        assert abs((counts == k).mean() - wanted) < 4 * deviation
    assert np.abs(np.corrcoef(coins.T) - np.eye(4)).max() < 0.08
    assert abs(np.corrcoef(coins[1:, 0], coins[:-1, 0])[0, 1]) < 0.08


@pytest.mark.parametrize(("first", "rounds"), [("anchors", [1, 4, 7, 10]), ("miners", [3, 6, 9, 12])])
def test_fedamd_property_16_the_sequential_schedule_is_unanimous(first, rounds):
    strategy = FedAMD(participants=3, local=Local(steps=2), period=3, first=first)
    strategy.caches = {0: Deferred.phantom()}
    found = [t for t in range(1, 13) if strategy.is_anchor(t, 0)]
    assert found == rounds
    assert all(
        strategy.is_anchor(t, 0) == strategy.is_anchor(t, node) for t in range(1, 13) for node in (1, 2)
    )


def test_the_schedule_p_is_one_half_unless_given():
    assert FedAMD(participants=1, local=Local(steps=1)).p == 0.5
    assert FedAMD(participants=1, local=Local(steps=1), p=0.0).p == 0.0


# costs


@pytest.mark.parametrize(
    "schedule", [{"p": 0.5}, {"p": 0.0}, {"p": 1.0}, {"period": 2}, {"period": 2, "first": "miners"}]
)
@pytest.mark.parametrize("large_batch", [None, 40])
def test_fedamd_property_17_counters(schedule, large_batch, tmp_path):
    M, A, T, K, b, width = 8, 4, 6, 3, large_batch, 16
    given = {
        "seed": 3,
        "data": {"clients": M},
        "model": "softmax",
        "strategy": {
            "name": "fedamd",
            "participants": A,
            "local": {"steps": K, "batch_size": width},
            **schedule,
            **({"large_batch": b} if b else {}),
        },
        "stop": {"rounds": T},
        "record": {"report": False},
    }
    summary = api.run(given, out=tmp_path, timing_only=True).summary
    setup = prepare(load(given))
    setup.strategy.caches = {0: Deferred.phantom()}
    sizes = [len(own) for own in setup.owned]
    large = [min(b or size, size) for size in sizes]
    gradients, anchors, miners = sum(large), 0, 0
    for t in range(1, T + 1):
        for node in draw(range(M), A, stream(3, "cohort", round=t)):
            if setup.strategy.is_anchor(t, node):
                anchors, gradients = anchors + 1, gradients + large[node]
            else:
                miners, gradients = miners + 1, gradients + 2 * (K - 1) * width
    assert anchors + miners == A * T
    assert summary["work_samples"] == gradients
    vector = (128 + 4 * 640) + (128 + 4 * 10) + len("1.weight") + len("1.bias")  # one packed vector
    instruction = 64 + len("arrays") + len("config") + len("server-round") + 8
    reply = 64 + len("arrays") + len("metrics") + len("num-examples") + 8 + len("train_loss") + 8
    down = (M + A * T) * (vector + instruction) + miners * (vector + len("anchor-mean"))
    up = (M + A * T) * (vector + reply)
    assert summary["bytes_up"] == summary["bytes_down"] == up + down
    assert summary["wasted_samples"] == 0


@pytest.mark.parametrize(
    ("samples", "steps", "width", "work"),
    [
        (100, 1, 8, 0),
        (100, 4, 8, 2 * 24),
        (20, 4, 8, 2 * 20),  # batches of 8, 8 and 4 are one pass
        (20, 6, 8, 2 * (20 + 16)),
        (5, 3, 8, 2 * 10),  # no more than there are
    ],
)
def test_the_work_of_a_miner_is_two_gradients_a_sample(samples, steps, width, work):
    miner = Miner(Local(steps=steps, batch_size=width))
    assert miner.work(samples) == work
    assert 2 * int((miner.batches(samples, stream(0, "x")) >= 0).sum()) == work


# anchors


@pytest.mark.parametrize(("samples", "large"), [(5, None), (5, 3), (5, 9), (300, None), (600, 257)])
def test_an_anchor_draws_its_batch_without_replacement(samples, large):
    anchor = Anchor(large)
    rows = anchor.batches(samples, stream(0, "x"))
    drawn = rows[rows >= 0]
    assert len(drawn) == len(set(drawn.tolist())) == anchor.work(samples) == min(large or samples, samples)
    assert drawn.max() < samples
    assert rows.shape[1] == anchor.width(samples) <= 256
    if (large or samples) < samples:
        again = anchor.batches(samples, stream(0, "x", round=1))
        assert set(again[again >= 0].tolist()) != set(drawn.tolist())


def test_an_anchor_sends_the_mean_gradient_and_loss_over_all_chunks():
    rng = stream(5, "anchor")
    lab = learner([(rng.standard_normal((600, 2)), rng.standard_normal(600))])
    anchor, weights = Anchor(), [0.3, -0.2]
    rows = anchor.batches(600, stream(0, "x"))
    assert rows.shape == (3, 256)
    sent = job(lab, anchor, 0, rows, arrays=weights)
    assert close(sent["arrays"], gradients(lab, weights)[0])
    residual = lab.engine.data.x @ torch.tensor(weights, dtype=torch.float64) - lab.engine.data.y
    assert close(sent["train_loss"], (0.5 * residual**2).mean())


# parameters


@pytest.mark.parametrize(
    ("params", "line"),
    [
        ({"p": 0.5, "period": 2}, "strategy.period: 2: give p (constant schedule) or period (sequential)"),
        ({"participants": 9}, "strategy.participants: 9: at most 8, the number of clients"),
        ({"participants": 0}, "strategy.participants: 0: "),
        ({"p": 1.5}, "strategy.p: 1.5: "),
        ({"period": 0}, "strategy.period: 0: "),
        ({"large_batch": 0}, "strategy.large_batch: 0: "),
        ({"server_lr": 0.0}, "strategy.server_lr: 0.0: "),
        ({"first": "both"}, "strategy.first: both: "),
        (
            {"local": {"epochs": 1}},
            "strategy.local.steps: FedAMD counts local steps, not epochs; give local.steps",
        ),
        ({"local": {"steps": 2, "momentum": 0.9}}, "strategy.local.momentum: 0.9: FedAMD has neither"),
        (
            {"local": {"steps": 2, "weight_decay": 0.1}},
            "strategy.local.weight_decay: 0.1: FedAMD has neither",
        ),
        ({"tau": 2}, "strategy.tau: unknown key"),
    ],
)
def test_bad_parameters(params, line):
    block = {"name": "fedamd", "participants": 4, "local": {"steps": 2}, **params}
    with pytest.raises(ConfigError) as caught:
        api.check({"data": {"clients": 8}, "strategy": block, "stop": {"rounds": 1}})
    assert str(caught.value).startswith(line)


def test_participants_are_required():
    with pytest.raises(ConfigError, match=r"participants: is required"):
        api.check({"data": {"clients": 8}, "strategy": "fedamd", "stop": {"rounds": 1}})


def test_both_schedules_are_refused_in_code_too():
    with pytest.raises(BadValue, match="not both"):
        FedAMD(participants=1, local=Local(steps=1), p=0.5, period=2)


# what Flower sees


def test_metrics_of_a_round_count_the_roles():
    lab = Lab(scalars(), participants=[range(3)], anchors=[{1}])
    arrays = pack(lab.learner.initial, lab.learner.engine.task.layout, "float64")
    with compat.session(0, lab.grid.server.id, lab.grid.sleep):
        messages = lab.strategy.configure_train(1, arrays, ConfigRecord(), lab.grid)
        _, metrics = lab.strategy.aggregate_train(1, lab.grid.send_and_receive(messages))
    assert metrics == {"anchors": 1, "miners": 2, "cached": 3}
    assert list(lab.strategy.configure_evaluate(1, arrays, ConfigRecord(), lab.grid)) == []
    assert lab.strategy.aggregate_evaluate(1, []) is None


def test_records_from_a_deployment_will_do():
    """Plain NumPy arrays in place of deferred ones, as real clients send them."""

    class Plain(BuiltinClients):
        def answer(self, client, message, sim_time_s):
            content = super().answer(client, message, sim_time_s)
            arrays = ArrayRecord({name: a for name, a in content["arrays"].items()})  # serialises
            return RecordDict({"arrays": arrays, "metrics": content["metrics"]})

    script = {"participants": [{0, 1}, {0, 2}, {1}], "anchors": [{0}, {2}, {1}]}
    lab = Lab(scalars(), **script, clients=Plain).run(3)
    assert [float(x) for x in lab.x] == [float(x) for x in golden().x]
