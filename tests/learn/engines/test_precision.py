"""Fewer bits for more speed, by wish alone: other results with other names, and the same ones every time."""

from __future__ import annotations

import pytest
import torch

import fedsim
from fedsim.errors import BadValue, ConfigError
from fedsim.learn.engines import Stacked
from fedsim.learn.engines.choose import choose
from fedsim.learn.engines.device import steady
from fedsim.learn.engines.workers import Workers
from fedsim.learn.identity import identity
from fedsim.running.threads import limited
from tests.learn.engines.test_engines import UPDATES, make_jobs, same, world

RUN = {
    "data": {"clients": 4},
    "model": "mlp",
    "strategy": {"name": "fedavg", "local": {"steps": 3, "batch_size": 8, "lr": 0.1}},
    "stop": {"rounds": 2},
    "record": {"report": False, "events": False},
}


@pytest.fixture(autouse=True)
def _one_thread():
    with limited(1):
        yield


@pytest.mark.parametrize("model", ["softmax", "mlp", "lenet5"])
def test_bf16_is_close_and_the_same_every_time_in_any_company(model):
    task, data = world(model, torch.float32)
    jobs = make_jobs(task, data, UPDATES["sgd"])
    full = Stacked(task, data, 3).train(jobs)
    engine = Stacked(task, data, 3, precision="bf16")
    found, again = engine.train(jobs), engine.train(jobs[::-1])[::-1]
    assert all(map(same, found, again))
    for one, other, job in zip(found, full, jobs, strict=True):
        assert one["arrays"].dtype == torch.float32
        moved = (other["arrays"] - job.given["arrays"]).norm()
        gap = (one["arrays"] - other["arrays"]).norm()
        assert 0 < gap < 0.15 * moved  # of 8 bits, products are right to 0.4 %; a maximum may be another one


def test_evaluations_are_in_full():
    task, data = world("mlp", torch.float32)
    x, y = data.x[:20], data.y[:20]
    wanted = Stacked(task, data, 3).evaluate([task.initial], x, y, 7)
    assert Stacked(task, data, 3, precision="bf16").evaluate([task.initial], x, y, 7) == wanted


def test_it_is_part_of_the_names_and_of_what_other_processes_are_told():
    task, data = world("mlp", torch.float32)
    full, less = Stacked(task, data, 3), Stacked(task, data, 3, precision="bf16")
    assert identity(full.arithmetic) != identity(less.arithmetic)
    assert full.arithmetic[0] == {"slots": 3, "grain": 3}  # values of before keep their names
    assert Workers(less, 2).arithmetic == less.arithmetic
    assert less.settings == {"slots": 3, "precision": "bf16"}
    assert Stacked(task, data, **less.settings).arithmetic == less.arithmetic


def test_a_run_by_wish_alone(tmp_path):
    def weights(engine):
        return fedsim.run(RUN, out=tmp_path, compute__engine=engine).summary["weights_hash"]

    less = {"name": "stacked", "precision": "bf16"}
    plain = weights("stacked")
    assert weights({"name": "stacked", "precision": "full"}) == plain
    assert weights(less) == weights(less) != plain


@pytest.mark.parametrize(
    ("precision", "device", "dtype", "said"),
    [
        ("tf32", "cpu", torch.float32, "is arithmetic of NVIDIA cards, and the device is cpu"),
        ("tf32", "meta", torch.float32, "is arithmetic of NVIDIA cards, and the device is meta"),
        ("bf16", "meta", torch.float32, "cannot be had on the device meta"),
        ("bf16", "cpu", torch.float64, "is less than what float64 was asked for; take dtype: float32"),
    ],
)
def test_what_means_nothing_is_refused(precision, device, dtype, said):
    task, data = world("softmax", dtype)
    task.device = torch.device(device)
    with pytest.raises(BadValue) as error:
        Stacked(task, data, 2, precision=precision)
    assert str(error.value).startswith(f"precision: {precision}: {said}")


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        (
            {"name": "stacked", "precision": "tf32"},
            r"compute.engine.precision: tf32: is arithmetic of NVIDIA",
        ),
        (
            {"name": "stacked", "precision": "half"},
            r"compute.engine.precision: half: must be full, tf32 or bf16",
        ),
        ({"name": "closed", "precision": "bf16"}, r"compute.engine.precision: unknown key"),
        ({"name": "auto", "precision": "bf16"}, r"compute.engine.precision: is a parameter of one engine"),
    ],
)
def test_in_a_file(engine, said):
    with pytest.raises(ConfigError, match=said):
        fedsim.check(RUN, compute__engine=engine)


def test_never_by_itself():
    task, data = world("mlp", torch.float32)
    for name in ("auto", "stacked"):
        assert "precision" not in str(choose(task, data, name, 2)[0].arithmetic)


def test_tf32_on_a_card_and_nowhere_else():
    def flags():
        return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32

    before = flags()
    with steady(torch.device("cuda"), tf32=True):
        assert flags() == (True, True)
        assert torch.backends.cudnn.deterministic
        with steady(torch.device("cuda")):  # such as an evaluation
            assert flags() == (False, False)
        assert flags() == (True, True)
    assert flags() == before
