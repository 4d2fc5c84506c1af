"""Scores, orders, and what a visit makes of them, in both engines."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fedsim.errors import BadValue, FedsimError
from fedsim.learn.around import Around, TopK
from fedsim.learn.curriculum.order import OWN, Order
from fedsim.learn.curriculum.update import ClientScore, Ordered, ordered
from fedsim.learn.engines import Sequential, Shard, Stacked, TrainJob
from fedsim.learn.local import LocalSGD, MeanGradient
from fedsim.learn.models import builtin as models
from fedsim.learn.task import Task
from fedsim.rng import stream
from fedsim.running.threads import limited
from fedsim.spec.experiment import Local
from fedsim.spec.local import Curriculum
from strategies.fedamd.fedamd import Anchor
from strategies.server.feddyn import Dynamic
from strategies.server.scaffold import Controlled

SIZES = [1, 40, 70, 300, 33]  # below the floor of 32, and above one chunk of 256
FLOAT = {"dtype": torch.float64}


@pytest.fixture(autouse=True)
def _one_thread():
    with limited(1):
        yield


def world(name="mlp", shape=(6,), classes=3, sizes=SIZES):
    part = {"mlp": models.mlp, "softmax": models.softmax}[name]
    params = {"hidden": 5} if name == "mlp" else {}
    task = Task(models.build(part, params, shape, classes, stream(0, "model")), **FLOAT)
    rng, total = np.random.default_rng(0), sum(sizes)
    x = torch.from_numpy(rng.standard_normal((total, *shape)))
    y = torch.from_numpy(rng.integers(0, classes, total))
    owned = list(map(torch.from_numpy, np.split(rng.permutation(total), np.cumsum(sizes)[:-1])))
    return task, Shard(x, y, owned, lambda: torch.linspace(0, 1, total, dtype=torch.float64).flip(0))


def vector(task, seed):
    return torch.from_numpy(stream(seed, "weights").standard_normal(task.size))


def jobs_of(task, data, update, own=0.0):
    given = {"arrays": vector(task, 1), "control": vector(task, 3) / 10}
    given |= dict.fromkeys(update.keeps, own * vector(task, 2))
    plans = [update.batches(size, stream(0, "batches", i)) for i, size in enumerate(data.sizes)]
    return [TrainJob(update, i, rows, given) for i, rows in enumerate(plans)]


class Noting(LocalSGD):
    """Local SGD that notes the inputs of each step."""

    def __init__(self, local):
        super().__init__(local)
        self.seen = []

    def step(self, gradient, state, batch):
        self.seen.append(batch.x.clone())
        return super().step(gradient, state, batch)


def seen_by(score="global", order="curriculum", own=0.0, client=1, **more):
    """Return the inputs of each step of one client in the sequential engine, its samples and their scores."""
    task, data = world(sizes=[50, 120])
    paced = Curriculum(score=score, order=order, **more)
    inner = Noting(Local(batch_size=10, epochs=2, lr=0.05, curriculum=paced))
    update = ordered({"train": inner}, inner.local)["train"]
    job = jobs_of(task, data, update, own)[client]
    engine = Sequential(task, data)
    engine.train([job])
    scores = engine.scores(Order(score), job)
    return inner.seen, data.x[data.owned[client]], scores


def mean_loss(task, weights, x, y):
    return nn.functional.cross_entropy(task.predict(weights, x), y, reduction="none")


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60))
@settings(max_examples=50, deadline=None)
def test_curriculum_property_04_anti_is_the_exact_reverse_and_ties_are_stable(given):
    scores = torch.tensor(given, dtype=torch.float64)
    ascending = Order().arrange(scores).tolist()
    assert ascending == sorted(range(len(given)), key=lambda i: (given[i], i))
    assert Order(reverse=True).arrange(scores).tolist() == ascending[::-1]


def test_curriculum_property_04_random_ignores_scores():
    local = Local(batch_size=10, curriculum=Curriculum(order="random"))
    update = ordered({"train": LocalSGD(local)}, local)["train"]
    assert update.order is None
    assert update.work(100) == LocalSGD(local).work(100)  # and pays for none


@pytest.mark.parametrize("engine", [Sequential, lambda task, data: Stacked(task, data, 5)])
def test_curriculum_property_05_the_first_visit_scores_with_the_received_weights(engine):
    task, data = world()
    for score in ("local", "both"):
        first, later, plain = (
            engine(task, data).train(jobs_of(task, data, wrapped(one), own))
            for one, own in ((score, 0.0), (score, 1.0), ("global", 0.0))
        )
        for i in range(1, len(SIZES)):
            assert torch.equal(first[i]["arrays"], plain[i]["arrays"])
            assert torch.equal(first[i][OWN], first[i]["arrays"])
        assert any(not torch.equal(a["arrays"], b["arrays"]) for a, b in zip(later, plain))


def wrapped(score="global", measure="loss", order="curriculum", **more):
    local = Local(
        batch_size=8, epochs=2, lr=0.05, curriculum=Curriculum(order=order, score=score, measure=measure)
    )
    return ordered({"train": LocalSGD(local, **more)}, local)["train"]


def test_curriculum_property_05_what_is_kept_is_not_an_alias():
    task, data = world()
    update = wrapped("local")
    job = jobs_of(task, data, update)[2]
    one = Sequential(task, data).train([job])[0]
    kept = one[OWN].clone()
    again = TrainJob(update, 2, job.rows, {"arrays": vector(task, 9), OWN: one[OWN]})
    scored = Sequential(task, data).scores(update.order, again)
    Sequential(task, data).train([again])
    assert torch.equal(one[OWN], kept)  # training went on from other weights, and left these alone
    own = data.owned[2]
    assert torch.allclose(scored, mean_loss(task, kept, data.x[own], data.y[own]), atol=1e-12)
    assert float((scored - mean_loss(task, vector(task, 9), data.x[own], data.y[own])).abs().max()) > 0.1


@pytest.mark.parametrize("measure", ["loss", "error"])
def test_curriculum_property_06_both_is_the_sum_and_errors_are_whole_numbers(measure):
    task, data = world()
    engine = Sequential(task, data)
    job = jobs_of(task, data, wrapped("both"), 1.0)[3]
    total, received, own = (engine.scores(Order(one, measure), job) for one in ("both", "global", "local"))
    assert torch.equal(total, received + own)
    index = data.owned[3]
    wanted = mean_loss(task, job.given["arrays"], data.x[index], data.y[index])
    if measure == "error":
        assert set(total.tolist()) == {0.0, 1.0, 2.0}
        outputs = task.predict(job.given["arrays"], data.x[index])
        assert torch.equal(received, (outputs.argmax(1) != data.y[index]).double())
    else:
        assert torch.allclose(received, wanted, atol=1e-12)


class Spoilt(nn.Module):
    """A model that is another one when it trains: dropout, and statistics of its batches."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 3))
        self.forwards = 0

    def forward(self, x):
        self.forwards += len(x)
        return self.layers(x)


def test_curriculum_property_07_scoring_leaves_no_trace():
    module = Spoilt()
    task = Task(module, **FLOAT)
    x, y = torch.randn(20, 4, generator=torch.Generator().manual_seed(0)).double(), torch.arange(20) % 3
    before = {name: value.clone() for name, value in module.state_dict().items()}
    for training in (True, False):
        module.train(training)
        one = task.scores(task.initial, x, y)
        pieces = torch.cat([task.scores(task.initial, x[i : i + 3], y[i : i + 3]) for i in range(0, 20, 3)])
        assert torch.allclose(one, pieces, atol=1e-12)
        assert module.training == training
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert not one.requires_grad


@pytest.mark.parametrize(("score", "passes"), [("global", 1), ("local", 1), ("both", 2), ("expert", 0)])
def test_curriculum_property_08_scores_are_computed_once_in_a_visit(score, passes):
    task, data = world(sizes=[50, 300])
    count = {"gradients": 0, "forwards": 0}
    whole, single = task.scores, task.carried

    def scores(weights, x, *more):
        count["forwards"] += len(x)
        return whole(weights, x, *more)

    def carried(weights, batch, buffers):
        count["gradients"] += len(batch.x)
        return single(weights, batch, buffers)

    task.scores, task.carried = scores, carried
    update = wrapped(score)
    Sequential(task, data).train([jobs_of(task, data, update, 1.0)[1]])
    assert count["forwards"] == passes * 300
    assert update.work(300) == count["gradients"] + passes * 100


def test_curriculum_property_10_a_pass_holds_the_easiest_samples():
    for order, sign in (("curriculum", 1), ("anti", -1)):
        steps, own, scores = seen_by(order=order)
        used = torch.cat(steps[:4])  # 32 samples, the floor; 0.2 * 120 are 24
        easiest = (sign * scores).argsort(stable=True)[:32]
        assert sorted(map(tuple, used.tolist())) == sorted(map(tuple, own[easiest].tolist()))


def test_curriculum_property_12_orders_coincide_where_all_take_part():
    task, data = world()
    ends = []
    for order in ("curriculum", "anti", "random"):
        paced = Curriculum(order=order, b=1.0)
        local = Local(batch_size=None, epochs=2, lr=0.1, curriculum=paced)
        update = ordered({"train": LocalSGD(local)}, local)["train"]
        ends.append(Sequential(task, data).train(jobs_of(task, data, update)))
    for others in zip(*ends):
        assert all(float((one["arrays"] - others[0]["arrays"]).abs().max()) < 1e-12 for one in others)
    assert float((ends[0][3]["arrays"] - vector(task, 1)).abs().max()) > 1e-2


@given(st.integers(1, 119), st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_curriculum_property_22_the_first_prefix_has_the_least_and_the_greatest_loss(size, seed):
    task, data = world(sizes=[50, 120])
    job = jobs_of(task, data, wrapped())[1]
    scores = Sequential(task, data).scores(Order(), job)
    subset = stream(seed, "subset").permutation(120)[:size]
    easy, hard = (scores[Order(reverse=one).arrange(scores)[:size]].mean() for one in (False, True))
    assert easy - 1e-12 <= scores[subset].mean() <= hard + 1e-12


UPDATES = {
    "global": lambda: wrapped(),
    "anti": lambda: wrapped(order="anti"),
    "local": lambda: wrapped("local"),
    "both": lambda: wrapped("both", measure="error"),
    "expert": lambda: wrapped("expert"),
    "proximal": lambda: wrapped("both", proximal=0.3),
    "scaffold": lambda: Ordered(Controlled(local_with("global"), 1), Order()),
    "dynamic": lambda: Ordered(Dynamic(local_with("local"), 0.3), Order("local")),
    "sparse": lambda: Around(wrapped("both"), TopK(share=0.3), "train.0"),
    "over rounds": lambda: Ordered(LocalSGD(local_with("global", rounds=9)), Order()).at(4),
    "client": lambda: ClientScore("both"),
}


def local_with(score, **more):
    return Local(batch_size=8, epochs=2, lr=0.05, curriculum=Curriculum(score=score, **more))


@pytest.mark.parametrize("name", UPDATES)
def test_stacked_is_sequential_with_a_curriculum(name):
    task, data = world()
    update = UPDATES[name]()
    jobs = jobs_of(task, data, update, 0.5)
    wanted = Sequential(task, data).train(jobs)
    found = Stacked(task, data, 5).train(jobs)
    for one, other in zip(found, wanted):
        assert one.keys() == other.keys()
        assert max(float((one[key] - other[key]).abs().max()) for key in one) < 1e-10


@pytest.mark.parametrize("score", ["global", "both"])
def test_a_client_does_not_depend_on_its_neighbours_in_the_stack(score):
    task, data = world()
    jobs = jobs_of(task, data, wrapped(score), 0.5)
    together = Stacked(task, data, 5).train(jobs)
    for job, wanted in zip(jobs, together):
        alone = Stacked(task, data, 5).train([job])[0]
        assert all(torch.equal(alone[name], wanted[name]) for name in wanted)


def test_a_clients_score_is_the_mean_over_its_samples():
    task, data = world()
    update = ClientScore("global")
    for engine in (Sequential(task, data), Stacked(task, data, 3)):
        for i, result in enumerate(engine.train(jobs_of(task, data, update))):
            own = data.owned[i]
            wanted = mean_loss(task, vector(task, 1), data.x[own], data.y[own]).mean()
            assert set(result) == {"score"}
            assert abs(float(result["score"] - wanted)) < 1e-12
    assert update.work(10) == 4  # ten forward passes
    assert ClientScore("expert").work(10) == 0


def test_curriculum_property_17_a_clients_score_is_no_sum():
    task, data = world()
    twice = Shard(data.x, data.y, [torch.cat([own, own]) for own in data.owned])
    once, doubled = (
        [float(one["score"]) for one in Sequential(task, shard).train(jobs_of(task, shard, ClientScore()))]
        for shard in (data, twice)
    )
    assert np.allclose(once, doubled, atol=1e-12)
    assert np.argsort(once).tolist() == np.argsort(doubled).tolist()


def test_scoring_a_client_keeps_what_it_keeps():
    task, data = world()
    result = Sequential(task, data).train(jobs_of(task, data, ClientScore("local"), 0.5)[:1])[0]
    assert torch.equal(result[OWN], 0.5 * vector(task, 2))


def test_the_expert_is_asked_for_its_losses():
    task, data = world()
    job = jobs_of(task, data, wrapped("expert"))[2]
    assert torch.equal(
        Sequential(task, data).scores(Order("expert"), job), data.expert_losses()[data.owned[2]]
    )
    with pytest.raises(FedsimError, match="no expert"):
        Shard(data.x, data.y, data.owned).expert_losses()


def test_the_learning_rate_decays_from_the_third_step_on():
    task = Task(nn.Linear(1, 1, bias=False), "half_square", **FLOAT)
    data = Shard(torch.ones(1, 1).double(), torch.zeros(1, 1).double(), [torch.arange(1)])
    local = Local(steps=4, batch_size=1, lr=0.5, lr_decay=1.0, lr_power=0.5)
    job = TrainJob(LocalSGD(local), 0, np.zeros((4, 1), dtype=np.int64), {"arrays": torch.ones(1).double()})
    wanted = 0.5 * 0.5 * (1 - 0.5 / 2**0.5) * (1 - 0.5 / 3**0.5)  # w <- w - lr w, with lr at t = 0, 0, 1, 2
    for engine in (Sequential(task, data), Stacked(task, data, 2)):
        assert abs(float(engine.train([job])[0]["arrays"]) - wanted) < 1e-12


def test_an_update_that_has_no_use_for_it_is_refused():
    local = Local(curriculum=Curriculum())
    with pytest.raises(BadValue, match="no curriculum can order"):
        ordered({"train": MeanGradient()}, local)
    with pytest.raises(BadValue, match="lr_decay"):
        ordered({"train": Controlled(Local(), 2)}, Local(lr_decay=0.1))
    assert isinstance(
        ordered({"train.anchor": Anchor(), "train": LocalSGD(local)}, local)["train.anchor"], Anchor
    )


def test_only_a_clock_over_rounds_makes_updates_of_rounds():
    still, moving = (
        wrapped(),
        Around(UPDATES["over rounds"]().over(LocalSGD(local_with("global", rounds=9))), TopK(share=1), "a"),
    )
    assert still.at(3) is still.at(4) is still
    assert moving.at(3) is moving.at(3)
    assert moving.at(3) is not moving.at(4)
    last = [moving.at(round).batches(200, stream(0, "test")).max() for round in (1, 5, 9)]
    assert last == [39, 127, 199]  # 0.2 + 0.8 u of 200, where u is 4 or 8 rounds of 0.8 * 9
