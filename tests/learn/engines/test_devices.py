"""Whether all that is computed stays on the device: played through on a card that is none."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

import fedsim
import fedsim.learn.build
import fedsim.running.begin
from fedsim import parts
from fedsim.errors import BadValue, ConfigError
from fedsim.learn.around import Around, Transform
from fedsim.learn.augment import augmentation
from fedsim.learn.curriculum.order import Order
from fedsim.learn.curriculum.update import ClientScore, Ordered
from fedsim.learn.engines import Engine, Shard, TrainJob
from fedsim.learn.engines.base import Unfit
from fedsim.learn.engines.device import find_device, steady
from fedsim.learn.local import MINE, LocalSGD, LocalUpdate, MeanGradient
from fedsim.learn.models import builtin as models
from fedsim.learn.task import Task
from fedsim.rng import stream
from fedsim.running.build import make_strategy, updates_in
from fedsim.spec.blocks import Part
from fedsim.spec.experiment import Local, load
from tests.conformance.conformance_rows import ROWS, experiment
from tests.learn.engines.card import Card, MixedDevices

SIZES = [1, 8, 4, 6]
META = torch.device("meta")
FOUND = {name: parts.find("engines", name) for name in parts.names("engines")}
ENGINES = {
    name: part for name, part in FOUND.items() if issubclass(part, Engine)
}  # others have them work elsewhere
every_engine = pytest.mark.parametrize("kind", ENGINES.values(), ids=ENGINES)


def of_strategies():
    """Return every local update that a strategy of the registry hands out, by name."""
    found = {}
    for row in ROWS:
        given = load(experiment(row))
        for one in updates_in(make_strategy(given), given):
            for round in (1, 2):
                found.setdefault(f"{row.name}-{type(one.at(round)).__name__}", one.at(round))
    return found


def of_transforms():
    """Return local training with each of the registry's transforms around it."""
    sizes = {"clip": {"max_norm": 1.0}, "noise": {"std": 0.1}, "top_k": {"share": 0.1}}
    found, plain = {}, LocalSGD(Local(steps=2, batch_size=4, lr=0.1))
    for name in parts.names("transforms"):
        part = parts.find("transforms", name)
        if isinstance(part, type) and issubclass(part, Transform):
            one = parts.call(part, sizes.get(name, {}), {"seed": 0})
            found[f"around-{name}"] = Around(plain, one, "train.0")
    return found


def of_settings():
    """Return local training as it can be set, and what has to do with scores."""
    plain = {"steps": 2, "batch_size": 4, "lr": 0.1}
    settings = {name: {"optimizer": name} for name in parts.names("optimisers")}
    settings |= {"momentum": {"momentum": 0.5, "weight_decay": 0.1}, "clipped": {"clip_norm": 1.0}}
    settings |= {"decay": {"lr_decay": 0.1}, "rates": {"lr": [0.1] * len(SIZES)}}
    found = {name: LocalSGD(Local.model_validate({**plain, **more})) for name, more in settings.items()}
    found["proximal"] = LocalSGD(Local(**plain), proximal=0.5)
    found["gradient"] = MeanGradient()
    for score in ("global", "local", "both", "expert"):
        found[f"ordered-{score}"] = Ordered(LocalSGD(Local(**plain)), Order(score), False)
        found[f"score-{score}"] = ClientScore(score)
    return found


UPDATES = {**of_strategies(), **of_transforms(), **of_settings()}


def world(module, device=META, dtype=torch.float32, buffers=(), shape=(1, 8, 8)):
    """Return a task and data on a device."""
    task = Task(module, "cross_entropy", device, dtype, buffers)
    x = torch.zeros(sum(SIZES), *shape, dtype=dtype, device=device)
    y = torch.zeros(len(x), dtype=torch.long, device=device)
    cuts = [0, *np.cumsum(SIZES).tolist()]
    owned = [torch.arange(a, b, device=device) for a, b in pairwise(cuts)]
    hard = torch.zeros(len(x), dtype=dtype, device=device)
    return task, Shard(x, y, owned, lambda: hard, (x[:5], y[:5]))


def made(part, shape=(1, 8, 8)):
    return models.build(part, {}, shape, 4, stream(0, "model"))


def jobs_of(task, data, update):
    names = [*update.takes, *update.keeps]
    drawn = update.draws(task.trained, stream(0, "draws"))
    given = dict.fromkeys(names, task.initial[: task.trained])
    if update.splits:
        given[MINE] = (torch.arange(task.trained, device=task.device) % 3 == 0).to(task.dtype)
    given |= {name: torch.from_numpy(one).to(task.device, task.dtype) for name, one in drawn.items()}
    rows = [update.batches(size, stream(0, "batches", i)) for i, size in enumerate(data.sizes)]
    return [TrainJob(update, i, one, given, 7 + i) for i, one in enumerate(rows)]


def test_every_update_of_the_code_is_among_them():
    def below(kind):
        return {kind, *(one for inner in kind.__subclasses__() for one in below(inner))}

    ours = {
        one
        for one in below(LocalUpdate)
        if one.__module__.split(".")[0] in ("fedsim", "strategies") and not one.__abstractmethods__
    }
    inner = {type(one.update) for one in UPDATES.values() if hasattr(one, "update")}
    assert ours - {type(one) for one in UPDATES.values()} - inner == set()


def test_the_card_refuses_what_a_real_one_refuses():
    here, there = torch.ones(3), torch.ones(3, device=META)
    with Card() as card:
        for mixed in (
            lambda: there + here,
            lambda: there.index_select(0, torch.tensor([1])),
            lambda: there[torch.tensor([1])],
            lambda: there.mul_(here),
            lambda: torch.where(here > 0, there, there),
        ):
            with pytest.raises((MixedDevices, RuntimeError)):
                mixed()
        assert (there + torch.tensor(2.0)).device == (there + 1).device == META
        assert (float(there.sum()), bool((there > 0).all())) == (0.0, True)
        assert there.cpu().tolist() == [0.0] * 3
        assert here.copy_(there).tolist() == [0.0] * 3
    assert sum(card.looks.values()) == 4
    with Card(doubles=False), pytest.raises(TypeError, match="no float64"):
        there.double()


@every_engine
@pytest.mark.parametrize("update", UPDATES.values(), ids=UPDATES)
def test_every_update_stays_on_the_device(kind, update):
    task, data = world(made(models.mlp))
    engine = kind(task, data)
    jobs = jobs_of(task, data, update)
    with Card() as card:
        results = engine.train(jobs)
    assert card.work > 0
    assert not card.looks, "training waits for numbers"
    for result in results:
        assert {one.device for one in result.values()} == {META}
        assert {*update.sends, *update.keeps, *update.metrics} <= result.keys()


BUFFERED = torch.nn.Sequential(
    torch.nn.Flatten(), torch.nn.Linear(64, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 4)
)
NOISE = Part.model_validate({"name": "noise", "std": 0.1})
MODELS = {
    "softmax": lambda: made(models.softmax),
    "lenet5": lambda: made(models.lenet5),
    "gn-lenet": lambda: made(models.gn_lenet),
    "dropout": lambda: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.5), torch.nn.Linear(64, 4)),
    "buffered": lambda: BUFFERED,
}


@every_engine
@pytest.mark.parametrize("name", MODELS)
def test_every_model_stays_on_the_device(kind, name):
    buffers = ("2.running_mean", "2.running_var", "2.num_batches_tracked") if name == "buffered" else ()
    task, data = world(MODELS[name](), buffers=buffers)
    task.mixes, task.drops = name == "buffered", name == "dropout"
    task.augment = augmentation([Part(name="crop"), Part(name="flip"), NOISE], data.x[:2])
    try:
        engine = kind(task, data)
    except Unfit:
        task.augment = None
        if name in ("softmax", "lenet5"):
            engine = kind(task, data)
        else:
            return
    update = LocalSGD(Local(steps=3, batch_size=4, lr=0.1))
    jobs = jobs_of(task, data, update)[1:]
    with Card() as card:
        results = engine.train(jobs)
    assert not card.looks
    assert {one.device for result in results for one in result.values()} == {META}


@every_engine
def test_evaluations_look_at_the_card_a_few_times_for_each_model(kind):
    task, data = world(made(models.mlp))
    with Card() as card:
        scores = kind(task, data).evaluate([task.initial] * 3, *data.test, 2)
    assert scores == [{"loss": 0.0, "accuracy": 0.0}] * 3
    assert card.looks.total() <= 3 * 3 * 3  # models, chunks, numbers


@pytest.fixture
def on_the_card(monkeypatch):
    """Let all runs take the card that is none."""
    for module in (fedsim.learn.build, fedsim.running.begin):
        monkeypatch.setattr(module, "find_device", lambda *_: META)


KINDS = ("fedavg", "scaffold", "fedamd", "choco", "hierarchical", "fedbuff")
"""One strategy of each kind: Flower's own, with state, with caches, compressed, in two tiers, without rounds."""


@pytest.mark.slow
@pytest.mark.parametrize("row", [row for row in ROWS if row.name in KINDS], ids=lambda row: row.name)
def test_whole_runs_stay_on_the_device(row, on_the_card, tmp_path):
    given = experiment(row, stop={"rounds": 2}, compute={"engine": "stacked", "dtype": "float32"})
    with Card() as card:
        fedsim.run(given, out=tmp_path)
    assert card.work > 100


def test_a_card_without_float64_trains():
    task, data = world(made(models.lenet5))
    jobs = jobs_of(task, data, UPDATES["momentum"])
    for kind in (parts.find("engines", "sequential"), parts.find("engines", "stacked")):
        with Card(doubles=False) as card:
            kind(task, data).train(jobs)
        assert card.work > 0


def test_a_card_gives_the_same_bits_every_time_and_is_left_as_it_was():
    def flags():
        cudnn = torch.backends.cudnn
        return cudnn.deterministic, cudnn.allow_tf32, torch.are_deterministic_algorithms_enabled()

    before = flags()
    with steady(torch.device("cpu")):
        assert flags() == before
    with steady(torch.device("cuda")):
        assert flags() == (True, False, True)
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    assert flags() == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there():
    for name in ("cuda", "cuda:1"):
        with pytest.raises(
            BadValue, match=rf"{name}: there is no such device here: this torch is built for the CPU"
        ):
            find_device(name)
    with pytest.raises(ConfigError, match=r"compute.device: cuda:1: there is no such device here"):
        fedsim.check(experiment(ROWS[0], compute={"device": "cuda:1"}))


def test_apples_device(monkeypatch):
    if not torch.backends.mps.is_available():
        with pytest.raises(
            BadValue, match="mps: there is no such device here: it is Apple's; use auto or cpu"
        ):
            find_device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert find_device("mps").type == "mps"
    with pytest.raises(BadValue, match="cannot compute in float64; take dtype: float32"):
        find_device("mps", torch.float64)


def test_nothing_that_learns_needs_flower():
    learn = Path(fedsim.learn.build.__file__).parent
    words = ("import flwr", "from flwr", "fedsim.flower")
    found = [file.name for file in learn.rglob("*.py") if any(word in file.read_text() for word in words)]
    assert found == []
