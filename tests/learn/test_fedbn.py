"""FedBN: scales, shifts and statistics of batch normalisation are each client's own; all else is averaged."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fedsim
from fedsim.errors import ConfigError
from fedsim.learn import build as learning
from tests.learn.odd_models import WIDTH
from tests.learn.test_buffers import experiment

LR = 0.1
NORM = "tests.learn.odd_models:batch_norm"
WHOLE = {"batch_size": None, "lr": LR}


def given(strategy="strategies.server.fedavg:FedAvg", held="fedbn", **more):
    made = experiment(strategy, held, NORM, WHOLE, **more)
    made["data"]["client_test_share"] = 0.25
    return made


def shared(module):
    return [weight for name, weight in module.named_parameters() if not name.startswith("between")]


def by_hand(experiment, rounds=2):
    """Train plain modules, one for each client; between rounds all but batch normalisation is averaged by samples."""
    learner, data, owned = learning.build(fedsim.load(experiment))
    start = learner.engine.task.module
    clients = [copy.deepcopy(start).double() for _ in owned]
    sizes = torch.tensor([float(len(own)) for own in owned], dtype=torch.float64)
    for _ in range(rounds):
        for module, own in zip(clients, owned, strict=True):
            module.train()
            loss = F.cross_entropy(module(data.x[own].double()), data.y[own])
            loss.backward()
            with torch.no_grad():
                for weight in module.parameters():
                    weight -= LR * weight.grad
                    weight.grad = None
        with torch.no_grad():
            for pieces in zip(*map(shared, clients), strict=True):
                mean = sum(size * piece for size, piece in zip(sizes, pieces, strict=True)) / sizes.sum()
                for piece in pieces:
                    piece.copy_(mean)
    tests = [(data.x[own].double(), data.y[own]) for own in learner.tests]
    losses = [float(F.cross_entropy(module.eval()(x), y).detach()) for module, (x, y) in zip(clients, tests)]
    return clients, losses


@pytest.mark.parametrize("engine", ["lean", "sequential", "stacked"])
def test_each_client_is_plain_torch_with_batch_norm_of_its_own(engine, tmp_path):
    asked = given(compute={"device": "cpu", "dtype": "float64", "engine": engine})
    result = fedsim.run(asked, out=tmp_path)
    clients, losses = by_hand(asked)
    assert len({round(loss, 6) for loss in losses}) == 3
    assert result.summary["client_loss"] == pytest.approx(np.mean(losses), abs=1e-12)
    weights = result.weights()
    own = {name: torch.stack([one.state_dict()[name].double() for one in clients]) for name in weights}
    for name, array in weights.items():  # what is saved is the mean of what the clients have
        np.testing.assert_allclose(array, own[name].mean(0).numpy(), atol=1e-12, err_msg=name)
    assert float(own["between.weight"].std(0).max()) > 1e-4


def test_local_keeps_the_statistics_alone(tmp_path):
    asked = given(held="local")
    result = fedsim.run(asked, out=tmp_path)
    _, losses = by_hand(asked)
    assert abs(result.summary["client_loss"] - np.mean(losses)) > 1e-6


def test_each_client_is_judged_with_statistics_of_its_own(tmp_path):
    # of a model that only its buffers change: with lr 0 the weights stay, and every client counts its own batches
    asked = experiment(held="local", local={"lr": 0.0001, "epochs": 1, "batch_size": 3}, stop={"rounds": 1})
    asked["data"] |= {"client_test_share": 0.25, "partition": {"name": "quantity", "sigma": 1.0}}
    result = fedsim.run(asked, out=tmp_path)
    learner, data, owned = learning.build(fedsim.load(asked))
    module = copy.deepcopy(learner.engine.task.module)
    state = {name: torch.from_numpy(np.array(array)) for name, array in result.weights().items()}
    losses = []
    for own, test in zip(owned, learner.tests, strict=True):
        module.load_state_dict({**state, "batches": torch.tensor(-(-len(own) // 3))})
        losses.append(float(F.cross_entropy(module.eval()(data.x[test].double()), data.y[test]).detach()))
    assert len({len(own) for own in owned}) > 1
    assert result.summary["client_loss"] == pytest.approx(np.mean(losses), abs=1e-12)


def test_bytes_are_without_them(tmp_path):
    up = {
        held: fedsim.run(given("dpsgd", held, topology="ring"), out=tmp_path).summary["bytes_up"]
        for held in ("local", "fedbn")
    }
    # a scale and a shift of 8 bytes for each of WIDTH numbers, from 3 peers to 2 neighbours in 2 rounds
    assert up["local"] - up["fedbn"] == 2 * WIDTH * 8 * 3 * 2 * 2
    names = [name for name, _ in learning.build(fedsim.load(given()))[0].engine.task.sent]
    assert names == ["first.weight", "first.bias", "last.weight", "last.bias"]


def test_peers_do_the_same(tmp_path):
    # on a complete graph all weigh alike, and clients hold as much as each other: so peers end where clients do
    asked = given("dpsgd", topology="complete")
    result = fedsim.run(asked, out=tmp_path)
    clients, losses = by_hand(asked)
    assert result.summary["client_loss"] == pytest.approx(np.mean(losses), abs=1e-12)
    weights = result.weights()
    wanted = torch.stack([one.between.weight.detach() for one in clients]).mean(0)
    np.testing.assert_allclose(weights["between.weight"], wanted.numpy(), atol=1e-12)


def test_they_do_not_depend_on_processes_or_on_going_on(tmp_path):
    runs = [fedsim.run(given(), overrides={"compute.workers": n}, out=tmp_path) for n in (1, 2)]
    assert runs[0].summary["weights_hash"] == runs[1].summary["weights_hash"]


class Affine(nn.Module):
    """Batch statistics that nobody keeps, with a scale and a shift: no buffer at all."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4, track_running_stats=False)
        self.last = nn.Linear(4, 3)

    def forward(self, x):
        return self.last(self.norm(x[:, :, None] * x.new_tensor([1.0, 2.0])).amax(-1))


def test_without_statistics_the_scales_are_the_clients_own_all_the_same(tmp_path):
    asked = given()
    asked["model"] = f"{__name__}:Affine"
    task = learning.build(fedsim.load(asked))[0].engine.task
    assert (task.buffers, task.norms, task.own.tolist()) == (
        [],
        ["norm.weight", "norm.bias"],
        list(range(8)),
    )
    first, second = (fedsim.run(given() | {"model": asked["model"]}, out=tmp_path) for _ in range(2))
    assert first.summary["weights_hash"] == second.summary["weights_hash"]
    assert (
        np.abs(first.weights()["norm.weight"] - 1).max() > 1e-6
    )  # the mean of what three clients have learned


FEW = {"participants": 3, "local": {"steps": 2, "lr": LR}}

ALONE = {
    "scaffold": {"participants": 1},
    "scaffold, warm": {"participants": 1, "warm_start": True, "option": 1},
    "fedbuff": {"concurrency": 1, "buffer": 1},
    "fedasync": {"concurrency": 1, "alpha": 1.0, "mu": 0.0},
    "fednova": {"participants": 1},
}


@pytest.mark.parametrize("name", ALONE)
def test_alone_a_client_that_sends_its_progress_is_plain_torch(name, tmp_path):
    """Where nobody else is there, neither sending a difference nor what is remembered of it changes anything."""
    asked = given(name.partition(",")[0], extra=ALONE[name])
    asked["data"]["clients"] = 1
    result = fedsim.run(asked, out=tmp_path)
    [module], _ = by_hand(asked)
    for key, array in result.weights().items():
        if ("warm" in name and "running" in key) or "batches" in key:
            continue  # the pass for the control is seen by the statistics, too
        wanted = module.state_dict()[key].double().numpy()
        np.testing.assert_allclose(array, wanted, atol=1e-10, err_msg=key)


def test_scaffold_corrects_what_is_shared_and_leaves_the_rest_to_the_client(tmp_path):
    """By hand, with all clients and one step a round: c_i is the last gradient, and the norms follow their own."""
    asked = given("scaffold", extra={"participants": 3})
    asked["strategy"]["local"] = {"steps": 2, **WHOLE}
    result = fedsim.run(asked, out=tmp_path)
    learner, data, owned = learning.build(fedsim.load(asked))
    clients = [copy.deepcopy(learner.engine.task.module).double() for _ in owned]
    controls = [[torch.zeros_like(piece) for piece in shared(module)] for module in clients]
    mean = [torch.zeros_like(piece) for piece in controls[0]]
    for _ in range(2):
        starts = [piece.detach().clone() for piece in shared(clients[0])]
        ends = []
        for module, own, control in zip(clients, owned, controls, strict=True):
            module.train()
            places = {id(piece): place for place, piece in enumerate(shared(module))}
            for _ in range(2):
                F.cross_entropy(module(data.x[own].double()), data.y[own]).backward()
                with torch.no_grad():
                    for weight in module.parameters():
                        place = places.get(id(weight))
                        turn = 0 if place is None else mean[place] - control[place]
                        weight -= LR * (weight.grad + turn)
                        weight.grad = None
            ends.append([piece.detach().clone() for piece in shared(module)])
        fresh = [
            [c - m - (end - start) / (2 * LR) for c, m, end, start in zip(control, mean, own, starts)]
            for control, own in zip(controls, ends)
        ]
        mean = [sum(pieces) / 3 for pieces in zip(*fresh)]
        controls = fresh
        for module in clients:
            for piece, pieces in zip(shared(module), zip(*ends)):
                piece.data = sum(pieces) / 3
    for key, array in result.weights().items():
        wanted = torch.stack([module.state_dict()[key].double() for module in clients]).mean(0).numpy()
        np.testing.assert_allclose(array, wanted, atol=1e-12, err_msg=key)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "softmax"}, "the model has no batch normalisation .*take average"),
        ({"strategy": "fedavg"}, "fedavg sends every array .*between.weight"),
        (
            {"strategy": "mimelite", "extra": {"participants": 3}},
            "weights of mimelite follow what is made of everybody's gradients: between.weight would have none",
        ),
        ({"strategy": "fedamd", "extra": FEW}, "weights of fedamd follow what is made of everybody's"),
        ({"strategy": "fedpage", "extra": FEW}, "weights of fedpage follow what is made of everybody's"),
        ({"strategy": "choco", "topology": "ring"}, "choco compresses models"),
        ({"strategy": "gradient_tracking", "topology": "ring"}, "weights of gradient_tracking follow"),
        (
            {"extra": {"around": [{"name": "clip", "max_norm": 1.0}]}},
            "is changed on its way, and between.weight",
        ),
    ],
)
def test_where_it_means_nothing_it_is_refused(changes, words):
    model = changes.pop("model", NORM)
    strategy = changes.pop("strategy", "strategies.server.fedavg:FedAvg")
    with pytest.raises(ConfigError, match=rf"^strategy\.buffers: fedbn: .*{words}") as caught:
        fedsim.check(experiment(strategy, "fedbn", model, WHOLE, **changes))
    assert len(str(caught.value).splitlines()) == 1
