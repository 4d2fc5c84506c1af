"""Buffers that training changes: averaged with the model, each client's own, or the server's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import nn

import fedsim
from fedsim.errors import ConfigError
from fedsim.learn import buffers
from fedsim.learn import build as learning
from fedsim.learn.deferred import Deferred
from fedsim.learn.engines import BUFFERS, Lean, Sequential, Shard, Stacked, TrainJob
from fedsim.learn.local import LocalSGD, MeanGradient
from fedsim.learn.task import Batch, Task
from fedsim.spec.experiment import Local
from tests.learn.odd_models import points

SENT = 4 * 3 + 3  # the weights of Counting
MODEL = "tests.learn.test_buffers:Counting"


class Counting(nn.Module):
    """Keeps the sum of the first inputs and the number of its batches, and adds the latter to its outputs."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.register_buffer("total", torch.zeros(2))
        self.register_buffer("batches", torch.tensor(0))
        self.register_buffer("constant", torch.ones(3))

    def forward(self, x):
        if self.training:
            self.total = self.total + x[:, :2].detach().sum(0)
            self.batches += 1
        return self.layer(x) + 0.01 * self.batches + self.constant


def experiment(strategy="strategies.server.fedavg:FedAvg", held="average", model=MODEL, local=None, **more):
    own = {"participants": 3} if "server" in strategy or strategy in ("fedprox", "scaffold") else {}
    local = {"epochs": 1, "batch_size": 3, "lr": 0.1, **(local or {})}
    return {
        "data": {"name": "tests.learn.odd_models:points", "clients": 3},
        "model": model,
        "strategy": {"name": strategy, "local": local, "buffers": held, **own, **more.pop("extra", {})},
        "stop": {"rounds": 2},
        "compute": {"device": "cpu", "dtype": "float64"},
        "record": {"report": False},
        **more,
    }


def sums(owned):
    x = points(clients=3, seed=0).x.double().numpy()
    return [x[own][:, :2].sum(0) for own in owned]


def test_a_task_has_what_training_changes_behind_its_weights():
    learner, _, _ = learning.build(fedsim.load(experiment()))
    task = learner.engine.task
    assert [name for name, _ in task.layout] == ["layer.weight", "layer.bias", "total", "batches"]
    assert (task.trained, task.size, task.buffers) == (SENT, SENT + 3, ["total", "batches"])
    assert task.fixed_bytes == 8 * 3  # the constant alone
    made = task.state({"batches": np.float64(2.6), "total": np.zeros(2)})
    assert (int(made["batches"]), made["batches"].dtype) == (3, np.int64)


@pytest.mark.parametrize("strategy", ["strategies.server.fedavg:FedAvg", "fedavg", "scaffold", "fedprox"])
@pytest.mark.parametrize("engine", ["lean", "stacked"])
def test_a_server_averages_them_by_samples(strategy, engine, tmp_path):
    extra = {"mu": 0.5} if strategy == "fedprox" else {}
    given = experiment(strategy, extra=extra, compute={"device": "cpu", "dtype": "float64", "engine": engine})
    result = fedsim.run(given, out=tmp_path)
    weights = result.weights()
    # three clients of 8 samples in 3 batches a round: 2 rounds, 6 batches; sums are added to the mean of the sums
    assert (int(weights["batches"]), weights["batches"].dtype) == (6, np.dtype("int64"))
    _, _, owned = learning.build(fedsim.load(given))
    np.testing.assert_allclose(weights["total"], 2 * np.mean(sums(owned), axis=0), rtol=1e-12)
    np.testing.assert_array_equal(weights["constant"], np.ones(3))


def test_a_method_that_sends_differences_has_them_all_the_same(tmp_path):
    given = experiment("fedbuff", extra={"concurrency": 3, "buffer": 3, "server_lr": 5.0})
    result = fedsim.run(given, out=tmp_path)
    assert int(result.weights()["batches"]) == 6


def test_bytes_count_them_only_where_they_are_sent(tmp_path):
    up = {}
    for held in ("average", "local", "server"):
        result = fedsim.run(experiment(held=held), out=tmp_path)
        up[held] = result.summary["bytes_up"]
    assert up["local"] == up["server"]
    # two arrays more in six replies and six models: a name, a header of 128 bytes, and 8 bytes a number
    more = len("total") + 128 + 2 * 8 + len("batches") + 128 + 8
    assert up["average"] - up["local"] in (6 * more, 12 * more)


def test_peers_count_them_too(tmp_path):
    sent = {
        held: fedsim.run(experiment("dpsgd", held, topology="ring"), out=tmp_path).summary["bytes_up"]
        for held in ("average", "local")
    }
    # 3 numbers of 8 bytes more in each message: of 3 peers to 2 neighbours in 2 rounds
    assert sent["average"] - sent["local"] == 3 * 8 * 3 * 2 * 2


def test_a_client_keeps_its_own(tmp_path):
    given = experiment(held="local")
    result = fedsim.run(given, out=tmp_path)
    weights, alone = result.weights(), fedsim.load(given)
    _, data, owned = learning.build(alone)
    # what the model is judged and saved with is the mean of what the clients have: 6 batches each
    assert int(weights["batches"]) == 6
    np.testing.assert_allclose(weights["total"], 2 * np.mean(sums(owned), axis=0), rtol=1e-12)
    module = Counting().double().eval()
    module.load_state_dict({name: torch.from_numpy(np.array(v)) for name, v in weights.items()})
    loss = nn.functional.cross_entropy(module(data.x_test.double()), data.y_test)
    assert result.summary["loss"] == pytest.approx(float(loss.detach()), abs=1e-12)


def test_a_peer_keeps_its_own(tmp_path):
    given = experiment("dpsgd", "local", topology="ring")
    result = fedsim.run(given, out=tmp_path)
    _, _, owned = learning.build(fedsim.load(given))
    held = load_file(result.path / "weights.safetensors")["peers/weights"]
    np.testing.assert_allclose(held[:, SENT : SENT + 2], 2 * np.array(sums(owned)), rtol=1e-12)
    np.testing.assert_array_equal(held[:, -1], [6, 6, 6])


def test_nobody_changes_the_servers(tmp_path):
    weights = fedsim.run(experiment(held="server"), out=tmp_path).weights()
    assert int(weights["batches"]) == 0
    assert weights["total"].tolist() == [0, 0]


@pytest.mark.parametrize("held", ["average", "local"])
def test_they_do_not_depend_on_processes(held, tmp_path):
    runs = [
        fedsim.run(experiment("dpsgd", held, topology="ring"), overrides={"compute.workers": n}, out=tmp_path)
        for n in (1, 2)
    ]
    assert runs[0].summary["weights_hash"] == runs[1].summary["weights_hash"]


def task_of(held):
    module = Counting()
    return Task(module, dtype=torch.float64, buffers=["total", "batches"], held=held)


def test_a_vector_is_cut_and_made_whole_again():
    update, after = LocalSGD(Local()), torch.tensor([5.0, 6.0, 7.0], dtype=torch.float64)
    weights = torch.arange(SENT, dtype=torch.float64)
    given = {"arrays": torch.cat([weights, torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)])}
    for held, wanted in {"average": [5, 6, 7], "local": [1, 2, 3], "server": [1, 2, 3]}.items():
        task = task_of(held)
        short, begin = buffers.cut(task, given)
        assert (short["arrays"].tolist(), begin.tolist()) == (weights.tolist(), [1, 2, 3])
        result = {"arrays": weights + 1, "train_loss": torch.tensor(0.5), BUFFERS: after}
        made = buffers.whole(task, update, result, given)
        assert made["arrays"].tolist() == [*(weights + 1).tolist(), *wanted]
        assert made["train_loss"] == 0.5
        assert (BUFFERS in made) == (held == "local")
        if held == "local":
            again = buffers.cut(task, {**given, BUFFERS: made[BUFFERS]})
            assert again[1].tolist() == [5, 6, 7]
            never = buffers.cut(task, {**given, BUFFERS: torch.zeros(SENT + 3)})
            assert never[1].tolist() == [1, 2, 3]


def test_a_gradient_carries_averaged_buffers_and_no_others():
    given = {"arrays": torch.ones(SENT + 3, dtype=torch.float64)}
    result = {"arrays": torch.ones(SENT), "train_loss": torch.tensor(0.5), BUFFERS: torch.full((3,), 4.0)}
    tails = [
        buffers.whole(task_of(held), MeanGradient(), dict(result), given)["arrays"][SENT:].tolist()
        for held in ("average", "local", "server")
    ]
    assert tails == [[4, 4, 4], [0, 0, 0], [0, 0, 0]]


def test_a_servers_model_gets_the_weighted_mean_behind_its_own_weights():
    task = task_of("average")
    model = Deferred.known(torch.zeros(SENT + 3))
    sent = [Deferred.known(torch.full((SENT + 3,), value)) for value in (1.0, 4.0)]
    found = buffers.merged(task, model, sent, [2.0, 1.0]).value()
    assert found.tolist() == [0.0] * SENT + [2.0] * 3  # (2 x 1 + 1 x 4) / 3
    assert buffers.merged(task_of("server"), model, sent, [1.0, 1.0]) is model


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"strategy": "fedadam"}, "fedadam takes steps of the server's own with .* total; take fedavg"),
        ({"strategy": "fedavg", "held": "local"}, "fedavg sends every array .*; take average"),
        ({"extra": {"around": [{"name": "top_k", "share": 0.5}]}}, "compresses would take .* total"),
        (
            {"extra": {"around": [{"name": "central_clip", "max_norm": 1.0}]}},
            "clipping and noise would count .* total, as weights; take strategy.buffers: local",
        ),
    ],
)
def test_what_means_nothing_for_them_is_refused(changes, words):
    with pytest.raises(ConfigError, match=rf"^strategy\.buffers: (average|local): .*{words}") as caught:
        fedsim.check(experiment(**changes))
    assert len(str(caught.value).splitlines()) == 1


def test_padding_never_reaches_batch_statistics():
    # one sample's worth of padding: the mean of 1 and 3 is 2, and of 1, 3 and the padding's 1 it is 5/3
    norm = nn.Sequential(nn.BatchNorm1d(1, momentum=None, affine=False), nn.Linear(1, 2))
    task = Task(norm, dtype=torch.float64, buffers=["0.running_mean"])
    x = torch.tensor([[1.0], [3.0]], dtype=torch.float64)
    batch = Batch(x, torch.tensor([0, 1]), torch.ones(2, dtype=torch.float64))
    *_, after = task.carried(task.initial[: task.trained], batch, task.start)
    assert after.tolist() == [2.0]


@pytest.mark.parametrize(
    ("local", "fails"),
    [
        ({"batch_size": 7}, True),
        ({"batch_size": 1}, True),
        ({"batch_size": 3}, False),
        ({"batch_size": 7, "epochs": None, "steps": 1}, False),  # the last batch of the pass is not reached
        ({"batch_size": 7, "epochs": None, "steps": 2}, True),
        ({"batch_size": None}, False),
    ],
)
def test_a_batch_of_one_that_the_model_cannot_do_is_told_before_the_run(local, fails):
    given = experiment(model="tests.learn.odd_models:batch_norm", local=local)
    if not fails:
        fedsim.check(given)
        return
    words = (
        r"^strategy\.local\.batch_size: \d: leaves client 0 \(8 samples\) a batch of 1, .*more than 1 value"
    )
    with pytest.raises(ConfigError, match=words) as caught:
        fedsim.check(given)
    assert len(str(caught.value).splitlines()) == 1
    fedsim.check(experiment(local=local))  # others have nothing against one sample


def test_one_model_that_is_mixed_in_brings_its_share_of_buffers(tmp_path):
    # every client has 8 samples in 3 batches: 0.6 of a client's 3 is 1.8, which a client goes on from as from 2
    extra = {"concurrency": 1, "alpha": 0.5, "staleness": "constant", "mu": 0.0}
    given = experiment("fedasync", extra=extra, stop={"rounds": 1})
    one = fedsim.run(given, out=tmp_path)
    two = fedsim.run(given, overrides={"stop.rounds": 2}, out=tmp_path)
    _, _, owned = learning.build(fedsim.load(given))
    first = [0.5 * one_sum for one_sum in sums(owned)]
    at = int(np.argmin([np.abs(one.weights()["total"] - wanted).max() for wanted in first]))
    np.testing.assert_allclose(one.weights()["total"], first[at], rtol=1e-12)
    # x2 = 0.5 x1 + 0.5 (x1 + s) = x1 + 0.5 s, where s is the sum of whoever came second
    seconds = [first[at] + 0.5 * one_sum for one_sum in sums(owned)]
    assert min(np.abs(two.weights()["total"] - wanted).max() for wanted in seconds) < 1e-12


def test_compressed_differences_have_buffers_whole(tmp_path):
    whole = {"share": 1.0, "pace": 1.0}
    runs = [
        fedsim.run(experiment(name, topology="complete", extra=extra), out=tmp_path)
        for name, extra in (("dpsgd", {}), ("choco", whole), ("choco", {"share": 0.01, "pace": 1.0}))
    ]
    totals = [run.weights()["total"] for run in runs]
    np.testing.assert_allclose(totals[1], totals[0], rtol=1e-12)
    np.testing.assert_allclose(totals[2], totals[0], rtol=1e-12)  # one weight alone travels, and all buffers
    assert int(runs[2].weights()["batches"]) == 6
    # ceil(0.01 x 15) = 1 weight of 4 + 8 bytes and 3 buffers of 8, from 3 peers to 2 neighbours in 2 rounds
    header = (runs[0].summary["bytes_up"] - 12 * 8 * (SENT + 3)) // 12
    assert runs[2].summary["bytes_up"] == 12 * (header + 12 + 3 * 8)
    alone = fedsim.run(experiment("choco", "local", topology="complete", extra={"share": 0.01}), out=tmp_path)
    assert alone.summary["bytes_up"] == 12 * (header + 12)


class Seldom(nn.Module):
    """Renews a buffer with every fourth batch alone: known from the start only where every step writes it."""

    def __init__(self, *, writes):
        super().__init__()
        self.layer, self.writes = nn.Linear(4, 3), writes
        self.register_buffer("batches", torch.tensor(0))
        self.register_buffer("centre", torch.zeros(4))

    def forward(self, x):
        if self.training:
            self.batches += 1
            if self.writes:
                self.centre.copy_(torch.where(self.batches % 6 == 0, x.detach().mean(0), self.centre))
            elif int(self.batches) % 6 == 0:
                self.centre.copy_(x.detach().mean(0))
        return self.layer(x - self.centre)


def test_a_buffer_that_is_written_is_one_that_may_change(tmp_path):
    made = experiment(model={"name": f"{__name__}:Seldom", "writes": True})
    task = learning.build(fedsim.load(made))[0].engine.task
    assert task.buffers == ["batches", "centre"]
    assert np.abs(fedsim.run(made, out=tmp_path).weights()["centre"]).max() > 0.1


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("engine", ["lean", "sequential"])
def test_a_buffer_that_changes_seldom_stops_the_run_when_it_does(engine, workers, tmp_path):
    compute = {"device": "cpu", "engine": engine, "workers": workers}
    made = experiment(model={"name": f"{__name__}:Seldom", "writes": False}, compute=compute)
    words = (
        r"^node 0, round 2, t = .* train: the model has changed its buffer in forward \(centre\), .*each step"
    )
    with pytest.raises(fedsim.RunError, match=words):
        fedsim.run(made, out=tmp_path)


def test_an_average_of_counters_is_rounded_alike_by_all_engines():
    task = task_of("average")
    data = points(clients=1, seed=0)
    shard = Shard(data.x.double(), data.y, [torch.arange(8)])
    update = LocalSGD(Local(steps=1, batch_size=8))
    begin = torch.tensor([0.0, 0.0, 2.6], dtype=torch.float64)  # a third of a batch of others
    job = TrainJob(update, 0, np.arange(8)[None], {"arrays": task.initial[:SENT]}, buffers=begin)
    for engine in (Sequential, Lean, Stacked):
        [found] = engine(task_of("average"), shard).train([job])
        assert found[BUFFERS][-1] == 4  # 2.6 batches are 3, and one more
