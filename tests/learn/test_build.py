"""From an experiment to a learner: reproducible, open to anybody's parts, and strict before t=0."""

from __future__ import annotations

import logging
import random
import textwrap

import numpy as np
import pytest
import torch

from fedsim.errors import BadValue, ConfigError
from fedsim.learn.build import build
from fedsim.learn.engines import Sequential, Stacked
from fedsim.learn.engines.device import find_device
from fedsim.spec.experiment import load

BASE = {
    "data": {"name": "digits", "clients": 5},
    "model": {"name": "mlp", "hidden": 8},
    "strategy": "fedavg",
    "stop": {"rounds": 1},
    "compute": {"device": "cpu"},
}

PARTS = """
    import numpy as np
    import torch
    from torch import nn
    from fedsim.learn.data.datasets import Dataset

    def points(*, clients, seed, spread: float = 1.0, classes: int = 3):
        rng = np.random.default_rng(seed)
        x = torch.from_numpy(spread * rng.standard_normal((6 * clients, 4)).astype(np.float32))
        y = torch.arange(6 * clients) % 3
        return Dataset("points", x, y, x[:6], y[:6], classes)

    def line(*, clients):
        x = torch.arange(4.0 * clients)[:, None]
        return Dataset("line", x, 2 * x[:, 0], x, 2 * x[:, 0], 0, loss="half_square")

    def not_data(*, seed):
        return [1, 2, 3]

    class Net(nn.Module):
        def __init__(self, *, shape, classes, width: int = 5):
            super().__init__()
            self.first, self.last = nn.Linear(shape[0], width), nn.Linear(width, classes)

        def forward(self, x):
            return self.last(self.first(x).tanh())

    def narrow(*, shape):
        return nn.Linear(shape[0], 2)

    def column(*, shape):
        return nn.Linear(shape[0], 1)

    def other_width():
        return nn.Linear(9, 3)

    class Pair(nn.Linear):
        def __init__(self, *, shape, classes):
            super().__init__(shape[0], classes)

        def forward(self, x):
            return super().forward(x), x

    def alternate(labels, clients, *, offset: int = 0):
        return [np.flatnonzero((np.arange(len(labels)) + offset) % clients == i) for i in range(clients)]

    def lists(labels, clients):
        return tuple(part.tolist() for part in alternate(labels, clients))

    def twice(labels, clients):
        return [np.arange(len(labels)) for _ in range(clients)]

    def missing(labels, clients):
        return [part[:-1] for part in alternate(labels, clients)]

    def empty(labels, clients):
        return [np.arange(len(labels)), *(np.array([], dtype=int) for _ in range(clients - 1))]

    def fewer(labels, clients):
        return alternate(labels, clients - 1)

    def fractions(labels, clients):
        return [part.astype(float) for part in alternate(labels, clients)]

    def by_name(labels, clients):
        return dict(enumerate(alternate(labels, clients)))
"""


@pytest.fixture
def own_parts(tmp_path, monkeypatch):
    (tmp_path / "my_lab_parts.py").write_text(textwrap.dedent(PARTS))
    monkeypatch.syspath_prepend(tmp_path)


def make(changes=None, **overrides):
    return build(load({**BASE, **(changes or {})}, {k.replace("__", "."): v for k, v in overrides.items()}))


def own(**changes):
    """Return the changes that make the experiment use this file's parts."""
    given = {"dataset": "points", "model": "Net", "partition": "alternate", **changes}
    named = {key: f"my_lab_parts:{name}" for key, name in given.items()}
    data = {"name": named["dataset"], "clients": 4, "partition": named["partition"]}
    return {"data": data, "model": named["model"]}


def trained(learner):
    return learner.engine.task.initial


def test_what_is_built():
    learner, dataset, owned = make(seed=3)
    assert (dataset.name, len(owned), sum(map(len, owned))) == ("digits", 5, len(dataset.y))
    assert learner.sizes == [len(part) for part in owned]
    assert learner.engine.task.size == 64 * 8 + 8 + 8 * 10 + 10
    assert (learner.seed, learner.chunk, learner.dry) == (3, 1000, False)
    assert torch.equal(learner.x_test, dataset.x_test)
    assert torch.equal(learner.engine.data.y, dataset.y)
    assert all(np.array_equal(a, b) for a, b in zip(learner.engine.data.owned, owned))


def test_settings_arrive():
    learner, *_ = make(
        compute__engine="stacked", compute__slots=4, compute__dtype="float64", evaluate__batch_size=50
    )
    assert isinstance(learner.engine, Stacked)
    assert (learner.engine.slots, learner.chunk) == (4, 50)
    tensors = (trained(learner), learner.engine.data.x, learner.x_test)
    assert [tensor.dtype for tensor in tensors] == [torch.float64] * 3
    assert learner.engine.data.y.dtype == torch.int64
    assert build(load(BASE), dry=True)[0].initial.is_phantom
    assert isinstance(make(compute__engine="sequential")[0].engine, Sequential)


def test_the_choice_of_engine_is_logged(caplog):
    with caplog.at_level(logging.INFO, logger="fedsim"):
        make()
        make(model="gn-lenet")
    assert caplog.messages == [
        "engine: closed (the model is a chain of plain layers, whose gradients are written out)",
        "engine: lean (the closed engine does not fit this model: MaxPool2d is not among its layers)",
    ]


def global_states():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


def test_the_seed_is_all_that_matters():
    first, _, owned = make(seed=1)
    random.seed(99)
    np.random.seed(99)
    torch.manual_seed(99)
    before = global_states()
    second, _, again = make(seed=1)
    assert global_states() == before
    assert torch.equal(trained(first), trained(second))
    assert torch.equal(first.engine.data.x, second.engine.data.x)
    assert all(np.array_equal(a, b) for a, b in zip(owned, again, strict=True))
    third, _, others = make(seed=2)
    assert not torch.equal(trained(first), trained(third))
    assert not all(np.array_equal(a, b) for a, b in zip(owned, others, strict=True))


def test_the_model_does_not_depend_on_the_partition():
    iid, skewed = make(), make({"data": {"clients": 9, "partition": {"name": "dirichlet", "alpha": 0.5}}})
    assert torch.equal(trained(iid[0]), trained(skewed[0]))


@pytest.mark.usefixtures("own_parts")
def test_anybodys_parts():
    learner, dataset, owned = make(own())
    assert dataset.name == "points"
    assert learner.engine.task.layout[0] == ("first.weight", (5, 4))
    assert [part.tolist() for part in owned] == [list(range(i, 24, 4)) for i in range(4)]
    parameters = {"data__spread": 3.0, "model__width": 7, "data__partition__offset": 1}
    learner, wider, owned = make(own(), **parameters)
    torch.testing.assert_close(wider.x, 3 * dataset.x)
    assert learner.engine.task.layout[0] == ("first.weight", (7, 4))
    assert owned[0].tolist() == list(range(3, 24, 4))


@pytest.mark.usefixtures("own_parts")
def test_a_partition_may_give_any_whole_numbers():
    _, _, owned = make(own(partition="lists"))
    assert {part.dtype for part in owned} == {np.dtype(np.int64)}
    assert [part.tolist() for part in owned] == [list(range(i, 24, 4)) for i in range(4)]


@pytest.mark.usefixtures("own_parts")
@pytest.mark.parametrize(
    ("partition", "rule"),
    [
        ("twice", "must give each of the 24 samples to exactly one client"),
        ("missing", "must give each of the 24 samples to exactly one client"),
        ("fractions", "must give each of the 24 samples to exactly one client"),
        ("empty", "must give each of the 4 clients at least one sample"),
        ("fewer", "must give each of the 4 clients at least one sample"),
        ("by_name", "must give each of the 4 clients at least one sample"),
    ],
)
def test_bad_partitions(partition, rule):
    with pytest.raises(ConfigError) as caught:
        make(own(partition=partition))
    assert str(caught.value) == f"data.partition: my_lab_parts:{partition}: {rule}"


@pytest.mark.usefixtures("own_parts")
@pytest.mark.parametrize(
    ("dataset", "model", "rule"),
    [
        ("points", "narrow", "gives outputs of shape (1, 2) for one sample of points, not (1, 3)"),
        ("points", "Pair", "gives outputs of shape () for one sample of points, not (1, 3)"),
        ("line", "column", "gives outputs of shape (1, 1) for one sample of line, not (1,)"),
        ("points", "other_width", "does not fit points (samples of shape (4,)): "),
    ],
)
def test_models_that_do_not_fit(dataset, model, rule):
    with pytest.raises(ConfigError) as caught:
        make(own(dataset=dataset, model=model))
    text = str(caught.value)
    assert text.startswith(f"model: my_lab_parts:{model}: {rule}")
    assert "\n" not in text


@pytest.mark.usefixtures("own_parts")
def test_data_that_are_none():
    with pytest.raises(ConfigError) as caught:
        make(own(dataset="not_data"))
    assert str(caught.value) == "data.name: my_lab_parts:not_data: must return a Dataset, not list"


@pytest.mark.usefixtures("own_parts")
def test_the_dataset_itself_may_be_wrong():
    with pytest.raises(ConfigError, match="labels must be between 0 and 1, for 2 classes"):
        make(own(), data__classes=2)


MISTAKES = {
    "model: {name: mlp, hidden: 0}": ["model.hidden: 0: every hidden layer needs"],
    "model: {name: mlp, hiden: 8}": ["model.hiden: unknown key; did you mean hidden?"],
    "model: linear": ["model: linear: gives outputs of shape (1,) for one sample of digits, not (1, 10)"],
    "model: mpl": ["model: mpl: no such model; did you mean mlp?"],
    "compute: {device: 'cuda:99'}": ["compute.device: cuda:99: there is no such device here"],
}


@pytest.mark.parametrize("line", MISTAKES)
def test_mistakes_name_their_line(tmp_path, line):
    path = tmp_path / "bad.yaml"
    path.write_text(
        f"# a comment\ndata:\n  clients: 5\nstrategy: fedavg\n{line}\nstop: {{rounds: 1}}\n", encoding="utf-8"
    )
    with pytest.raises(ConfigError) as caught:
        build(load(path))
    found = str(caught.value)
    assert found.startswith(f"{path}:5: {MISTAKES[line][0]}")


def test_mistakes_in_the_partition_name_their_line(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text(
        "data:\n  clients: 5000\n  partition: iid\nstrategy: fedavg\nstop: {rounds: 1}\n", encoding="utf-8"
    )
    with pytest.raises(ConfigError) as caught:
        build(load(path))
    rule = "5000 clients with at least 1 sample(s) each need 5000 samples"
    # 80 % of 1,797 digits, class by class; the number of clients is one line above the partition.
    assert str(caught.value) == f"{path}:2: data.clients: 5000: {rule}, and there are 1438"


def test_devices():
    assert find_device("cpu") == torch.device("cpu")
    assert find_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(BadValue, match=r"there is no such device here: .*; use auto or cpu") as caught:
        find_device(f"cuda:{torch.cuda.device_count()}")
    assert caught.value.key == "device"
