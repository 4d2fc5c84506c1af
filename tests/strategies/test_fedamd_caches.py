"""FedAMD's caches: how they begin, who keeps them, and where."""

from __future__ import annotations

import tempfile

import numpy as np
import pytest
import torch
import yaml
from fedamd_lab import C, H, Lab, close, golden, random_problem, scalars
from flwr.app import Error
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim import api
from fedsim.errors import BadValue, ConfigError
from fedsim.flower import compat, run_app
from fedsim.flower.deploy.template import write_app
from fedsim.flower.records import pack
from fedsim.flower.simulate.clients import BuiltinClients
from fedsim.flower.simulate.instruction import numbers_of, round_of
from fedsim.learn.around import Around, TopK
from fedsim.learn.deferred import Deferred
from fedsim.learn.task import Batch
from fedsim.rng import stream
from fedsim.spec.experiment import Local
from strategies.fedamd.caches import BLOCK, Held, Spilled
from strategies.fedamd.fedamd import ANCHOR, CACHE, LATEST, MINER, FedAMD, KeepingAnchor

SCRIPT = {"participants": [{0, 1}, {0, 2}, {1}], "anchors": [{0}, {2}, {1}]}


# how they begin


def test_zero_caches_count_for_all_clients():
    lab = Lab(scalars(), participants=[{0, 1}, {1}, {0}], anchors=[{0}, set(), {0}], caches="zero").run(3)
    assert close(lab.x[1], [0.0])  # the miner's direction is 0, and stays it
    assert close(lab.means[1], [-1 / 3])
    # client 1 with h = 2: a step of 1/30 along the mean, and then one along 1/3 - 2/30
    assert close(lab.x[2], [1 / 30 + 0.1 * (1 / 3 - 2 / 30)])
    assert close(lab.x[3], lab.x[2])
    assert close(lab.means[3], [(0.06 - 1) / 3])


def test_lazy_caches_begin_with_a_round_of_anchors():
    lab = Lab(scalars(), participants=[{0, 1}, {2}, {2}], anchors=[set(), set(), {2}], caches="lazy").run(3)
    assert close(lab.x[1], [0.0])
    assert sorted(lab.caches[1]) == [0, 1]
    assert close(lab.means[1], [(-1 + 2) / 2])
    assert close(lab.x[2], [-0.05 - 0.1 * (0.5 - 4 * 0.05)])
    assert close(lab.means[3], [(-1 + 2 + 4 * (-0.08 - 2)) / 3])


@pytest.mark.parametrize(("caches", "before"), [("warm", 3), ("zero", 0), ("lazy", 0)])
def test_only_warm_caches_cost_anything_before_the_first_round(caches, before):
    lab = Lab(scalars(), participants=[{0}], anchors=[{0}], caches=caches).run(1)
    assert sum(node.work for node in lab.world.members) == before + 1


@pytest.mark.slow
def test_zero_caches_converge_to_the_same_minimiser():
    local = Local(steps=2, batch_size=None, lr=0.1)
    given = {"cls": FedAMD, "p": 0.5, "local": local}
    optimum = sum(h * c for h, c in zip(H, C)) / sum(H)
    for caches in ("warm", "zero", "lazy"):
        assert close(Lab(scalars(), caches=caches, **given).run(150).x[-1], [optimum], 1e-9)


# clients that keep their own


def test_clients_with_caches_of_their_own_make_the_golden_run():
    lab, wanted = Lab(scalars(), caches_at="clients", **SCRIPT).run(3), golden()
    assert all(close(a, b) for a, b in zip(lab.x, wanted.x))
    assert all(close(a, b) for a, b in zip(lab.means[1:], wanted.means[1:]))
    assert len(lab.strategy.caches) == 0  # the server has their sum, and no vector for each client
    kept, update = lab.grid.clients.local.kept, lab.strategy.updates[ANCHOR]
    for node, vector in wanted.caches[3].items():
        assert close(kept.of(node, update)[LATEST].value(), vector)


def test_what_clients_send_are_differences():
    lab = Lab(scalars(), caches_at="clients", **SCRIPT).run(3)
    # client 1 was an anchor at 0, where its gradient is 2, and at 259/300
    kept, update = (
        lab.grid.clients.local.kept.of(1, lab.strategy.updates[ANCHOR]),
        lab.strategy.updates[ANCHOR],
    )
    assert close(kept[CACHE].value(), [2.0])
    assert close(kept[LATEST].value(), [2 * 559 / 300])
    assert set(update.sends) == {"arrays"}


class Losing(BuiltinClients):
    """Loses messages to clients before they work, and replies of clients that have worked."""

    asks: frozenset[tuple[int, int]] = frozenset()
    replies: frozenset[tuple[int, int]] = frozenset()

    def answer(self, client, message, sim_time_s):
        place = client, round_of(message.content)
        if place in self.asks:
            return Error(5, "it never arrived")
        content = super().answer(client, message, sim_time_s)
        return Error(5, "the reply was lost") if place in self.replies else content


places = st.frozensets(st.tuples(st.integers(0, 2), st.integers(0, 5)), max_size=8)


@settings(max_examples=25, deadline=None)
@given(places, places, st.lists(st.sets(st.integers(0, 2)), min_size=5, max_size=5))
def test_a_lost_message_leaves_the_cache_as_it_was_wherever_that_is(asks, replies, anchors):
    """What a client keeps must agree with what the server heard, whichever half of an exchange is lost."""
    ends = []
    for caches_at in ("server", "clients"):
        lab = Lab(
            scalars(), participants=[{0, 1, 2}] * 5, anchors=anchors, caches_at=caches_at, clients=Losing
        )
        lab.grid.clients.asks, lab.grid.clients.replies = asks, replies
        lab.run(5)
        ends.append(lab)
    server, clients = ends
    assert server.strategy.heard == clients.strategy.heard
    assert all(close(a, b, 1e-11) for a, b in zip(server.x, clients.x))
    for a, b in zip(server.means, clients.means):
        assert (a is None and b is None) or close(a, b, 1e-11)


def test_the_server_tells_an_anchor_when_it_heard_of_it_last():
    lab = Lab(
        scalars(), participants=[{0, 1}, {1, 2}, {0, 1, 2}], anchors=[{1}] * 3, caches_at="clients"
    ).run(2)
    lab.strategy.anchors = [set(), set(), {0, 1, 2}]
    arrays = pack(lab.learner.initial, lab.learner.engine.task.layout, "float64")
    with compat.session(0, lab.grid.server.id, lab.grid.sleep):
        messages = lab.strategy.configure_train(3, arrays, {}, lab.grid)
    told = {m.metadata.dst_node_id: numbers_of(m.content) for m in messages}
    assert {node: numbers["heard"] for node, numbers in told.items()} == {0: 0.0, 1: 2.0, 2: 0.0}
    assert {numbers["round"] for numbers in told.values()} == {3.0}


def test_both_ways_of_keeping_agree_in_a_run_with_mini_batches(tmp_path):
    block = {
        "name": "fedamd",
        "participants": 3,
        "p": 0.4,
        "large_batch": 40,
        "local": {"steps": 3, "batch_size": 8},
    }
    given = {
        "data": {"clients": 5},
        "model": "softmax",
        "strategy": block,
        "stop": {"rounds": 8},
        "compute": {"dtype": "float64"},
        "record": {"report": False},
    }
    plain, own = (
        np.concatenate(
            [w.reshape(-1) for w in api.run(given, out=tmp_path, strategy__caches_at=at).weights().values()]
        )
        for at in ("server", "clients")
    )
    assert np.abs(plain).max() > 0
    assert np.abs(plain - own).max() < 1e-12


# on disk


def test_caches_on_disk_give_the_same_bits():
    local = Local(steps=3, batch_size=2, lr=0.02)
    given = {"cls": FedAMD, "p": 0.5, "local": local, "world": {"seed": 3}}
    memory, disk = (
        Lab(random_problem(clients=5), caches_on=where, **given).run(55) for where in ("device", "disk")
    )
    assert isinstance(disk.strategy.caches, Spilled)
    for a, b in zip(memory.x, disk.x):
        assert torch.equal(a, b)
    for a, b in zip(memory.means[1:], disk.means[1:]):
        assert torch.equal(a, b)
    for a, b in zip(memory.caches, disk.caches):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[node], b[node]) for node in a)


def test_caches_on_disk_give_the_same_run(tmp_path):
    given = {
        "data": {"clients": 6},
        "model": "softmax",
        "strategy": {"name": "fedamd", "participants": 3, "local": {"steps": 2, "batch_size": 8}},
        "stop": {"rounds": 5},
        "record": {"report": False},
    }
    one, two = (
        api.run(given, out=tmp_path, strategy__caches_on=where).summary for where in ("device", "disk")
    )
    assert one["run_hash"] == two["run_hash"]
    dry = api.run(given, out=tmp_path, strategy__caches_on="disk", timing_only=True).summary
    assert dry["event_hash"] == one["event_hash"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_more_vectors_than_a_file_holds(dtype):
    numbers = torch.from_numpy(stream(1, "vectors").standard_normal((BLOCK + 40, 3))).to(dtype)
    held, spilled = Held(), Spilled()
    for caches in (held, spilled):
        for node in reversed(range(len(numbers))):
            caches.keep({node: Deferred.known(numbers[node])}, Deferred.known(numbers[node]))
        caches.keep({5: Deferred.known(-numbers[5])}, Deferred.known(numbers[5]))
    assert list(held) == list(spilled) == list(range(len(numbers)))
    for node in held:
        assert spilled[node].value().dtype == dtype
        assert torch.equal(held[node].value(), spilled[node].value())
    assert torch.equal(held.total().value(), spilled.total().value())
    assert torch.equal(spilled[5].value(), -numbers[5])


def test_what_was_read_from_a_file_does_not_change_with_it():
    spilled, one = Spilled(), Deferred.known(torch.ones(2))
    spilled.keep({0: one}, one)
    before, total = spilled[0], spilled.total()
    spilled.keep({0: 3.0 * one}, one)
    assert before.value().tolist() == total.value().tolist() == [1.0, 1.0]
    assert spilled[0].value().tolist() == [3.0, 3.0]


def test_the_files_are_mapped_and_have_no_name(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    spilled, one = Spilled(), Deferred.known(torch.ones(4))
    spilled.keep({3: one}, one)
    (block,) = spilled._blocks
    assert isinstance(block, np.memmap)
    assert block.shape == (BLOCK, 4)
    assert list(tmp_path.iterdir()) == []


def test_disk_is_for_caches_that_the_server_has():
    with pytest.raises(
        BadValue, match="caches_on: disk: the server has no caches where caches_at is clients"
    ):
        FedAMD(participants=1, local=Local(steps=1), caches_at="clients", caches_on="disk")


def around(*transforms, **params):
    strategy = {
        "name": "fedamd",
        "participants": 2,
        "local": {"steps": 2},
        "around": list(transforms),
        **params,
    }
    return {"data": {"clients": 4}, "model": "softmax", "strategy": strategy, "stop": {"rounds": 1}}


CHANGES = [
    ({"name": "clip", "max_norm": 1.0}, "Clip"),
    ({"name": "noise", "std": 0.1}, "Noise"),
    ({"name": "top_k", "share": 0.1, "feedback": False}, "TopK"),
    ({"name": "quantise", "bits": 8, "feedback": False}, "Quantise"),
    ({"name": "central_clip", "max_norm": 1.0}, "CentralClip"),
]


@pytest.mark.parametrize(("transform", "name"), CHANGES)
def test_what_clients_send_of_their_caches_must_not_be_changed_for_good(transform, name):
    with pytest.raises(ConfigError) as caught:
        api.check(around({"name": "central_noise", "std": 0.1}, transform, caches_at="clients"))
    text = str(caught.value)
    assert text.startswith("strategy.caches_at: clients: clients send by how much their caches change")
    assert f"the {name} of strategy.around changes that: the server's sum would drift" in text
    assert "set caches_at: server" in text


@pytest.mark.parametrize("transform", [transform for transform, _ in CHANGES])
def test_caches_of_the_server_may_be_of_changed_gradients(transform):
    assert api.check(around(transform)).strategy.around[0].name == transform["name"]


@pytest.mark.parametrize(
    "transform",
    [
        {"name": "top_k", "share": 0.1},
        {"name": "quantise", "bits": 8},
        {"name": "central_noise", "std": 0.1},
    ],
)
def test_what_is_made_up_for_later_may_go_around_the_differences(transform):
    assert api.check(around(transform, caches_at="clients")).strategy.around[0].name == transform["name"]


def test_error_feedback_sends_later_what_it_left_out():
    update = Around(KeepingAnchor(None), TopK(share=0.1), "train.anchor.0")
    gradient = torch.from_numpy(stream(0, "gradient").standard_normal(20))
    kept = dict.fromkeys(update.keeps, torch.zeros(20).double())
    known, left, heard = torch.zeros(20).double(), [], -1.0
    batch = Batch(torch.zeros(1, 1), torch.zeros(1), torch.ones(1))
    for round in range(1, 31):
        numbers = {"round": torch.tensor(float(round)), "heard": torch.tensor(heard)}
        state = update.init({"arrays": torch.zeros(20).double(), **kept, **numbers})
        sent = update.final(update.step(lambda weights, batch: (gradient, torch.zeros(())), state, batch))
        kept, known, heard = {name: sent[name] for name in update.keeps}, known + sent["arrays"], float(round)
        assert torch.allclose(known + kept["train.anchor.0.kept.arrays"], gradient)
        left.append(float((known - gradient).norm()))
    assert left[0] > 1.0
    assert left[-1] < 1e-9


def test_an_app_is_not_written_of_what_would_drift(tmp_path):
    (tmp_path / "given.yaml").write_text(yaml.safe_dump(around(CHANGES[0][0], caches_at="clients")))
    with pytest.raises(ConfigError, match=r"strategy\.caches_at: clients"):
        write_app(tmp_path / "app", experiment=tmp_path / "given.yaml")
    assert not (tmp_path / "app").exists()


# a learning rate that changes


def test_the_learning_rate_is_halved_at_the_rounds_given():
    local = Local(steps=1, batch_size=None, lr=[0.1, 0.1, 0.1])
    lab = Lab(scalars(), cls=FedAMD, p=0.0, local=local, halve_lr_at=[2, 4]).run(5)
    slope = sum(-h * c for h, c in zip(H, C)) / 3
    moves = [float(a - b) for a, b in zip(lab.x, lab.x[1:])]
    assert moves == pytest.approx([factor * 0.1 * slope for factor in (1, 0.5, 0.5, 0.25, 0.25)], abs=1e-12)


def test_only_miners_are_told_of_the_learning_rate():
    lab = Lab(scalars(), participants=[{0, 1}] * 3, anchors=[{0}] * 3, halve_lr_at=[3]).run(1)
    arrays = pack(lab.learner.initial, lab.learner.engine.task.layout, "float64")
    for round, factor in ((2, 1.0), (3, 0.5)):
        with compat.session(0, lab.grid.server.id, lab.grid.sleep):
            anchor, miner = lab.strategy.configure_train(round, arrays, {}, lab.grid)
        assert (anchor.metadata.message_type, miner.metadata.message_type) == (ANCHOR, MINER)
        assert "lr-factor" not in numbers_of(anchor.content)
        assert numbers_of(miner.content)["lr-factor"] == factor


# the same in a deployment


def test_an_app_gives_the_weights_of_the_experiment_with_caches_of_the_clients(tmp_path):
    block = {
        "name": "fedamd",
        "participants": 3,
        "schedule": "opt-b",
        "caches_at": "clients",
        "halve_lr_at": [2],
        "local": {"steps": 3, "batch_size": 32, "lr": 0.1},
    }
    given = {
        "data": {"name": "digits", "clients": 4},
        "model": "softmax",
        "strategy": block,
        "stop": {"rounds": 4},
        "compute": {"engine": "sequential", "device": "cpu"},
        "record": {"report": False},
    }
    file = tmp_path / "given.yaml"
    file.write_text(yaml.safe_dump(given))
    write_app(tmp_path / "app", experiment=file)
    wanted = api.run(given, out=tmp_path / "runs").weights()
    found = run_app(
        tmp_path / "app", nodes=4, overrides={"record.report": False}, out=tmp_path / "runs"
    ).weights()
    for name in wanted:
        np.testing.assert_array_equal(found[name], wanted[name])
