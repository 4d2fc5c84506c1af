"""Transforms around local updates: what is sent, what is kept, and that engines and groups agree."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedsim.errors import BadValue
from fedsim.learn.around import Around, Clip, Noise, Quantise, TopK
from fedsim.learn.engines import Sequential, Shard, Stacked
from fedsim.learn.learner import Learner, Place
from fedsim.learn.local import LocalSGD, MeanGradient
from fedsim.learn.models.builtin import linear
from fedsim.learn.task import Task
from fedsim.spec.experiment import Local
from strategies.server.scaffold import Controlled

P = 6
TRANSFORMS = {
    "clip": Clip(max_norm=0.1),
    "noise": Noise(std=0.5),
    "top_k": TopK(share=0.4),
    "top_k without feedback": TopK(share=0.4, feedback=False),
    "quantise": Quantise(),
    "stochastic": Quantise(rounding="stochastic"),
    "16 bits": Quantise(bits=16),
}
UPDATES = {
    "sgd": LocalSGD(Local(epochs=1, batch_size=3, lr=0.1)),
    "gradient": MeanGradient(),
    "scaffold": Controlled(Local(steps=2, batch_size=3, lr=0.1), 1),
}


def learner(engine="sequential", seed=0, sizes=(4, 9, 6)):
    rng = np.random.default_rng(3)
    x = torch.from_numpy(rng.standard_normal((sum(sizes), P)))
    y = torch.from_numpy(rng.standard_normal(sum(sizes)))
    module = linear(shape=(P,)).double()
    module[1].weight.data[:] = torch.arange(P) / P
    task = Task(module, "half_square", dtype=torch.float64)
    shard = Shard(x, y, list(torch.split(torch.arange(sum(sizes)), list(sizes))))
    made = Sequential(task, shard) if engine == "sequential" else Stacked(task, shard, 2)
    return Learner(made, x, y, seed)


def visit(one, update, client=0, kept=None, round=1, visit=1):
    given = dict.fromkeys(update.takes, one.initial) | dict.fromkeys(update.keeps, one.zeros) | (kept or {})
    return one.train(update, client, given, Place(client, round, 0.0, visit))


def change(one, update, result):
    start = one.initial.value() if "arrays" in update.models else 0.0
    return result.value()["arrays"] - start


@pytest.mark.parametrize("update", UPDATES.values(), ids=UPDATES)
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_engines_and_groups_agree_around_every_update(update, transform):
    wrapped = Around(update, transform, "train.0")
    slow, fast = learner(), learner("stacked")
    alone = [visit(slow, wrapped, client).value() for client in range(3)]
    grouped = [visit(fast, wrapped, client) for client in range(3)]
    for wanted, found in zip(alone, grouped):
        assert wanted.keys() == found.value().keys()
        assert max(float((wanted[k] - found.value()[k]).abs().max()) for k in wanted) < 1e-10
    single = visit(fast, wrapped, 1).value()
    assert all(torch.equal(single[name], grouped[1].value()[name]) for name in single)


def test_a_clip_bounds_how_far_the_weights_are_from_those_received():
    one, update = learner(), UPDATES["sgd"]
    free = change(one, update, visit(one, update))
    clipped = Around(update, Clip(max_norm=0.1), "a")
    found = change(one, update, visit(one, clipped))
    assert float(free.norm()) > 0.1
    assert float((found - 0.1 * free / free.norm()).abs().max()) < 1e-12
    wide = Around(update, Clip(max_norm=100.0), "a")
    assert float((change(one, update, visit(one, wide)) - free).abs().max()) < 1e-12


def test_a_gradient_is_clipped_itself():
    one, update = learner(), UPDATES["gradient"]
    found = visit(one, Around(update, Clip(max_norm=0.1), "a")).value()["arrays"]
    gradient = visit(one, update).value()["arrays"]
    assert float((found - 0.1 * gradient / gradient.norm()).abs().max()) < 1e-12


def test_noise_is_the_clients_and_the_visits_own():
    one, update = learner(), UPDATES["sgd"]
    noisy = Around(update, Noise(std=2.0), "a")
    plain = [change(one, update, visit(one, update, client)) for client in (0, 1)]
    drawn = [change(one, noisy, visit(one, noisy, client)) - p for client, p in zip((0, 1), plain)]
    again = change(one, noisy, visit(one, noisy, 0)) - plain[0]
    later = change(one, noisy, visit(one, noisy, 0, round=2))
    assert torch.equal(drawn[0], again)
    assert float((drawn[0] - drawn[1]).abs().min()) > 1e-6
    assert float((later - change(one, update, visit(one, update, 0, round=2)) - drawn[0]).abs().min()) > 1e-6
    many = [Around(update, Noise(std=2.0), "a").draws(5000, np.random.default_rng(0))["a.drawn.arrays"]]
    assert np.std(many[0]) == pytest.approx(1.0, abs=0.05)


def test_two_noises_are_two_draws():
    inner = Around(UPDATES["sgd"], Noise(std=1.0), "a")
    drawn = Around(inner, Noise(std=1.0), "b").draws(50, np.random.default_rng(0))
    assert drawn.keys() == {"a.drawn.arrays", "b.drawn.arrays"}
    assert abs(np.corrcoef(list(drawn.values()))[0, 1]) < 0.5


@pytest.mark.parametrize("transform", [TopK(share=0.4), Quantise(), Quantise(rounding="stochastic")])
def test_what_is_not_sent_is_kept_and_sent_later(transform):
    """All that was ever sent and what is kept now is all that the update wanted to send."""
    one, update = learner(), UPDATES["sgd"]
    wrapped = Around(update, transform, "a")
    name = "a.kept.arrays"
    assert wrapped.keeps == (name,)
    kept, sent, wanted = {}, torch.zeros(P, dtype=torch.float64), torch.zeros(P, dtype=torch.float64)
    for round in range(1, 6):
        result = visit(one, wrapped, 1, kept, round)
        sent += change(one, wrapped, result)
        wanted += change(one, update, visit(one, update, 1, round=round))
        kept = {name: result.pick(name)}
    assert float((sent + kept[name].value() - wanted).abs().max()) < 1e-12
    assert float(kept[name].value().abs().max()) > 0


def test_without_feedback_nothing_is_kept():
    assert Around(UPDATES["sgd"], TopK(share=0.4, feedback=False), "a").keeps == ()


def test_top_k_sends_the_largest_changes():
    one, update = learner(), UPDATES["sgd"]
    plain = change(one, update, visit(one, update))
    found = change(one, update, visit(one, Around(update, TopK(share=0.5), "a")))
    largest = plain.abs().argsort(descending=True)[:3]
    assert sorted(found.abs().argsort(descending=True)[:3].tolist()) == sorted(largest.tolist())
    assert float(found.abs().sort().values[:3].max()) < 1e-15


def test_every_vector_has_an_error_of_its_own():
    wrapped = Around(UPDATES["scaffold"], TopK(share=0.5), "a")
    assert wrapped.keeps == ("scaffold.control", "a.kept.arrays", "a.kept.control")
    assert wrapped.sends == ("arrays", "control")
    assert wrapped.work(9) == UPDATES["scaffold"].work(9)
    assert wrapped.width(9) == UPDATES["scaffold"].width(9)


def test_nothing_follows_a_compression():
    inner = Around(UPDATES["sgd"], Quantise(), "a")
    with pytest.raises(BadValue, match="nothing can follow"):
        Around(inner, Clip(max_norm=1.0), "b")


def test_a_share_is_at_most_one():
    with pytest.raises(BadValue, match="at most 1"):
        TopK(share=1.5)


def test_a_second_visit_in_a_round_draws_other_batches():
    one, update = learner(), UPDATES["sgd"]
    first, second, third = (visit(one, update, 1, visit=n).value()["arrays"] for n in (1, 2, 1))
    assert torch.equal(first, third)
    assert not torch.equal(first, second)
