"""Several processes: the same bits as one, whatever happens to them."""

from __future__ import annotations

import logging
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
import torch
from torch import nn

import fedsim
from fedsim.learn.curriculum.order import Order
from fedsim.learn.curriculum.update import ClientScore, Ordered
from fedsim.learn.engines import Closed, Lean, Sequential, Shard, Stacked
from fedsim.learn.engines.desk import Desk, dumps, loads, reserve
from fedsim.learn.engines.workers import Workers, shared
from fedsim.learn.local import LocalSGD
from fedsim.learn.task import Task
from fedsim.running.threads import limited
from fedsim.spec.experiment import Local
from tests.learn.engines.test_engines import UPDATES, make_jobs, same, world

SIZES = [7, 40, 1, 16, 5, 9, 12, 3, 30, 22]


@pytest.fixture(autouse=True)
def _one_thread():
    with limited(1):
        yield


@pytest.fixture
def sharing():
    """Start processes around an engine, and end them after the test."""
    begun = []

    def begin(engine, count=2):
        made = Workers(engine, count)
        begun.append(made)
        made.begin()
        assert made.wait() == count - 1
        made._is_worth_it = lambda kind, count: count > 1  # however small the work
        return made

    yield begin
    for one in begun:
        one.close()
        assert one.processes == []


def small(name="mlp", dtype=torch.float32):
    return world(name, dtype, sizes=SIZES)


def share_of(made, jobs):
    """Train, and return the results and how many jobs other processes have done."""
    done = []
    take = made._take

    def taken(process, how, number, place, data):
        if number in made._under_way and how == "done":
            done.extend(made._under_way[number][1].places)
        take(process, how, number, place, data)

    made._take = taken
    results = made.train(jobs)
    made._take = take
    return results, len(done)


def sizes_of(pieces):
    return [len(piece.items) for piece in pieces]


@pytest.mark.parametrize(
    ("count", "item_s", "sizes"),
    [
        (
            2,
            0.001,
            [12, 12, 12, 11, 9, 7, 6, 5, 5, 5, 5, 5, 5, 1],
        ),  # a sixth of the rest; at most 12, at least 5 ms
        (4, 0.001, [8, 8, 7, 6, 6] + [5] * 13),
        (2, 0.02, [2] * 46 + [1] * 8),  # at most 0.05 s, and fewer of the last eight
        (2, 0.06, [1] * 100),
        (2, 1e-6, [12] * 8 + [4]),
    ],
)
def test_pieces_are_large_first_and_end_together(count, item_s, sizes):
    task, data = small()
    made = Workers(Sequential(task, data), count)
    made._item_s["train"] = item_s
    pieces = made._pieces("train", list(range(100, 200)), 0)
    assert [item - 100 for piece in pieces for item in piece.items] == list(range(100))
    assert [place for piece in pieces for place in piece.places] == list(range(100))
    assert sizes_of(pieces) == sizes


def test_pieces_are_whole_stacks():
    task, data = small()
    made = Workers(Stacked(task, data, 8), 2)
    made._item_s["train"] = 0.002
    assert sizes_of(made._pieces("train", list(range(50)), 0)) == [8, 8, 8, 8, 8, 8, 2]


SLOW = pytest.mark.slow
"""Every process takes seconds to start."""


@pytest.mark.parametrize(
    "kind",
    [
        Closed,
        pytest.param(Lean, marks=SLOW),
        pytest.param(Sequential, marks=SLOW),
        pytest.param(lambda task, data: Stacked(task, data, 2), marks=SLOW, id="Stacked"),
    ],
)
def test_the_bits_are_those_of_one_process(kind, sharing):
    task, data = small()
    jobs = [
        job
        for update in ("sgd", "momentum", "scaffold-2", "miner-5")
        for job in make_jobs(task, data, UPDATES[update])
    ]
    wanted = kind(task, data).train(jobs)
    made = sharing(kind(task, data))
    found, elsewhere = share_of(made, jobs)
    assert all(map(same, found, wanted))
    assert 0 < elsewhere < len(jobs)
    again, _ = share_of(made, jobs[::-1])
    assert all(map(same, again, wanted[::-1]))


@SLOW
def test_three_processes_too(sharing):
    task, data = small("softmax")
    jobs = make_jobs(task, data, UPDATES["sgd"]) * 4
    found, elsewhere = share_of(sharing(Closed(task, data), 3), jobs)
    assert all(map(same, found, Closed(task, data).train(jobs)))
    assert elsewhere > 0


@SLOW
def test_what_a_model_draws_is_drawn_from_the_job_wherever_it_is_done(sharing):
    _, data = small()
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 4))
    task = Task(module)
    jobs = make_jobs(task, data, UPDATES["sgd"])
    wanted = Sequential(task, data).train(jobs)
    found, elsewhere = share_of(sharing(Lean(task, data)), jobs)
    assert all(map(same, found, wanted))
    assert elsewhere > 0


@SLOW
def test_models_are_judged_alike(sharing):
    task, data = small()
    test = torch.randn(50, 1, 8, 8), torch.randint(0, 4, (50,))
    data = Shard(data.x, data.y, data.owned, None, test)
    weights = [task.initial * (1 + i / 10) for i in range(9)]
    made = sharing(Closed(task, data))
    assert made.evaluate(weights, *test, 20) == made.inner.evaluate(weights, *test, 20)
    own = data.x[data.owned[1]], data.y[data.owned[1]]
    assert made.evaluate(weights, *own, 20) == made.inner.evaluate(weights, *own, 20)


@SLOW
def test_a_curriculum_by_an_expert_asks_this_process_alone():
    task, data = small()
    asked = []

    def difficulty():
        asked.append(1)
        return torch.arange(len(data.y), dtype=task.dtype)

    shard = Shard(data.x, data.y, data.owned, difficulty)
    jobs = make_jobs(task, shard, Ordered(LocalSGD(Local(epochs=1, batch_size=4, lr=0.1)), Order("expert")))
    jobs += make_jobs(task, shard, ClientScore("expert"))
    wanted = Closed(task, shard).train(jobs)
    made = Workers(Closed(task, shard), 2)
    try:
        assert all(map(same, made.train(jobs), wanted))
        made.begin()
        assert made.wait() == 1
        made._is_worth_it = lambda kind, count: True
        found, elsewhere = share_of(made, jobs)
        assert all(map(same, found, wanted))
        assert elsewhere > 0
    finally:
        made.close()


class Deadly(LocalSGD):
    """Ends any process but the one that it is told of."""

    def __init__(self, local, parent, how):
        super().__init__(local)
        self.parent, self.how = parent, how

    def final(self, state):
        if os.getpid() != self.parent:
            if self.how == "raise":
                raise RuntimeError("not here")
            os.kill(os.getpid(), getattr(signal, self.how))
        return super().final(state)


def test_the_work_of_a_process_that_dies_is_done_again(sharing, caplog):
    task, data = small()
    jobs = make_jobs(task, data, Deadly(Local(epochs=1, batch_size=4, lr=0.1), os.getpid(), "SIGKILL"))
    made = sharing(Closed(task, data))
    found = made.train(jobs * 5)
    assert all(map(same, found, Closed(task, data).train(jobs * 5)))
    while made.processes:  # it may have been given nothing to do but what it has died of
        made._hear(*made._news.get())
    assert caplog.messages == ["a worker process has ended (killed by SIGKILL); what it was at is done again"]
    assert all(map(same, made.train(jobs), found[: len(jobs)]))


@SLOW
def test_what_fails_there_is_done_here(sharing):
    task, data = small()
    jobs = make_jobs(task, data, Deadly(Local(epochs=1, batch_size=4, lr=0.1), os.getpid(), "raise")) * 3
    made = sharing(Closed(task, data))
    assert all(map(same, made.train(jobs), Closed(task, data).train(jobs)))
    assert len(made.processes) == 1


@SLOW
def test_what_fails_everywhere_fails_as_it_does_alone(sharing):
    task, data = small()
    jobs = make_jobs(task, data, UPDATES["sgd"]) * 3
    jobs[17] = jobs[17].__class__(jobs[17].update, 99, jobs[17].rows, jobs[17].given)
    made = sharing(Closed(task, data))
    with pytest.raises(IndexError):
        made.train(jobs)
    good = jobs[:10]
    assert all(map(same, made.train(good), Closed(task, data).train(good)))


@SLOW
def test_what_cannot_be_sent_stays_here(caplog):
    class Local_(LocalSGD):  # cannot be found by its name
        pass

    task, data = small()
    jobs = make_jobs(task, data, Local_(Local(epochs=1, batch_size=4, lr=0.1)))
    made = Workers(Closed(task, data), 2)
    made.begin()
    made.wait()
    made._is_worth_it = lambda kind, count: True
    with caplog.at_level(logging.INFO, logger="fedsim"):
        assert all(map(same, made.train(jobs), Closed(task, data).train(jobs)))
    assert made.processes == []
    [said] = caplog.messages
    assert said.startswith("one process does all the work: ")
    assert "Local_" in said
    made.close()


def test_a_model_that_cannot_be_sent_stays_here(caplog):
    class Net(nn.Sequential):
        pass

    task, data = Task(Net(nn.Flatten(), nn.Linear(64, 4))), small()[1]
    made = Workers(Lean(task, data), 2)
    with caplog.at_level(logging.INFO, logger="fedsim"):
        made.begin()
    assert made.processes == []
    assert "Net" in caplog.messages[0]
    jobs = make_jobs(task, data, UPDATES["sgd"])
    assert all(map(same, made.train(jobs), Sequential(task, data).train(jobs)))
    made.close()


NET = """
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(64, 10)

        def forward(self, x):
            return self.layer(x.flatten(1))
"""

SCRIPT = """
    import fedsim

    print("once")
    experiment = {
        "data": {"clients": 8}, "model": "nets:Net", "strategy": "fedavg", "stop": {"rounds": 40},
        "record": {"report": False}, "compute": {"workers": 2}, "evaluate": {"every": 40},
    }
    print(fedsim.run(experiment, out="runs").summary["weights_hash"])
    print(fedsim.run(experiment, out="runs", compute__workers=1).summary["weights_hash"])
"""


@pytest.mark.slow
def test_a_script_without_a_main_guard_runs_once(tmp_path):
    """Python's own way to start processes would run it again in each of them. The model is found beside it."""
    (tmp_path / "script.py").write_text(textwrap.dedent(SCRIPT))
    (tmp_path / "nets.py").write_text(textwrap.dedent(NET))
    ran = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    once, first, second = ran.stdout.split()
    assert (once, first) == ("once", second)
    assert ran.stderr == ""


@SLOW
def test_a_run_says_the_same_with_any_number_of_processes(tmp_path):
    experiment = {
        "data": {"clients": 12, "partition": {"name": "dirichlet", "alpha": 0.3}},
        "model": "mlp",
        "strategy": {"name": "dpsgd", "local": {"epochs": 2}},
        "topology": "ring",
        "stop": {"rounds": 6},
        "evaluate": {"every": 2},
        "record": {"report": False},
    }
    hashes = {
        fedsim.run(experiment, out=tmp_path, compute__workers=count).summary["run_hash"]
        for count in (1, 2, 3)
    }
    assert len(hashes) == 1


@SLOW
def test_processes_end_with_the_one_that_started_them(tmp_path):
    """However it ends: nobody is left, and no file."""
    code = textwrap.dedent(f"""
        import os, sys, time
        sys.path.insert(0, {os.getcwd()!r})
        from tests.learn.engines.test_workers import small
        from fedsim.learn.engines import Closed
        from fedsim.learn.engines.workers import Workers
        made = Workers(Closed(*small()), 2)
        made.begin()
        made.wait()
        print(made.processes[0]._process.pid, made._files, flush=True)
        time.sleep(600)
    """)
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    pid, files = parent.stdout.readline().split(maxsplit=1)
    assert files.strip() == "[]"
    parent.kill()
    parent.wait()
    parent.stdout.close()
    end_s = time.monotonic() + 60
    while os.path.exists(f"/proc/{pid}") and time.monotonic() < end_s:
        time.sleep(0.05)
    assert not os.path.exists(f"/proc/{pid}")


def test_a_short_run_starts_no_process_and_a_long_one_does():
    task, data = small("softmax")
    jobs = make_jobs(task, data, UPDATES["sgd"])
    made = Workers(Closed(task, data), 2, late_s=3600.0)
    made.train(jobs)
    made.train(jobs)
    assert made.processes == []
    made._late_s = 0.0
    made.train(jobs)
    assert len(made.processes) == 1
    made.close()


def test_how_many_processes(monkeypatch):
    engine = Closed(*small())
    monkeypatch.setenv("FEDSIM_WORKERS", "3")
    assert shared(engine, None).count == 3
    assert shared(engine, 5).count == 5
    assert shared(engine, 1) is engine
    monkeypatch.setenv("FEDSIM_WORKERS", "99")
    assert shared(engine, None).count == len(SIZES)  # no more than there are clients
    monkeypatch.delenv("FEDSIM_WORKERS")
    monkeypatch.setattr("fedsim.learn.engines.workers.cores", lambda: 4)
    assert shared(engine, None).count == 4
    assert shared(engine, None).name == "closed"


# what goes to and fro


@pytest.fixture
def desk(tmp_path):
    path = tmp_path / "desk"
    path.write_bytes(bytes(4096))
    return Desk(path, 1024, 2048)


def test_a_desk_holds_what_is_laid_down_until_it_is_cleared(desk):
    big, small_ = torch.arange(300.0), torch.tensor(2.5)
    rows = np.arange(150).reshape(3, 50)
    given = {"a": big, "again": big, "few": small_, "rows": rows, "none": torch.zeros(0, 3), "text": "x"}
    data = dumps(given, desk)
    assert len(data) < 2048  # 1,200 bytes lie on the desk once; the rows no longer fit and go along
    found = loads(data, desk)
    assert found["a"] is found["again"]
    assert torch.equal(found["a"], big)
    assert found["few"] == small_
    assert np.array_equal(found["rows"], rows)
    assert found["none"].shape == (0, 3)
    desk.clear()
    dumps(torch.zeros(300), desk)
    assert torch.equal(found["a"], big)  # a copy
    assert torch.equal(loads(data, desk, copy=False)["a"], torch.zeros(300))


def test_a_full_desk_sends_numbers_along(desk):
    first, second = torch.randn(400, dtype=torch.float64), torch.randint(0, 9, (20, 20))
    data = dumps([first, second], desk)
    found = loads(data, desk)
    assert all(map(torch.equal, found, [first, second]))
    assert found[0].dtype == torch.float64
    assert len(data) > 3200


def test_parameters_keep_what_they_are(desk):
    weight = nn.Parameter(torch.randn(400))
    [found] = loads(dumps([weight], desk), desk)
    assert isinstance(found, nn.Parameter)
    assert torch.equal(found, weight)
    view = torch.randn(40, 40).t()
    assert torch.equal(loads(dumps(view, desk), desk), view)


def test_room_is_reserved_before_it_is_needed(monkeypatch, tmp_path):
    monkeypatch.setattr("fedsim.learn.engines.desk.SHARED", str(tmp_path / "none"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    path = reserve(5000)
    assert os.path.getsize(path) == 5000
    assert os.path.dirname(path) == str(tmp_path)
    monkeypatch.setattr(os, "posix_fallocate", lambda *_: (_ for _ in ()).throw(OSError(28, "no room")))
    with pytest.raises(OSError, match="no room"):
        reserve(5000)
    assert os.listdir(tmp_path) == [os.path.basename(path)]


def test_no_room_leaves_one_process(monkeypatch, caplog):
    task, data = small()

    def full(size):
        raise OSError(28, "no room")

    monkeypatch.setattr("fedsim.learn.engines.workers.reserve", full)
    made = Workers(Closed(task, data), 2)
    with caplog.at_level(logging.INFO, logger="fedsim"):
        made.begin()
    assert "no room" in caplog.messages[0]
    jobs = make_jobs(task, data, UPDATES["sgd"])
    assert all(map(same, made.train(jobs), Closed(task, data).train(jobs)))
    assert pickle.loads(pickle.dumps(made.inner.settings)) == {}


def test_data_that_hardly_fit_are_not_laid_down_for_others(monkeypatch, caplog):
    caplog.set_level(logging.INFO, logger="fedsim")
    task, shard = small()
    engine = Workers(Lean(task, shard), 2)
    held = sum(tensor.nbytes for tensor in (shard.x, shard.y, task.initial))
    monkeypatch.setattr("fedsim.learn.engines.workers.memory_bytes", lambda: 3 * held)
    engine.begin()
    assert engine.processes == []
    assert "one process does all the work: MemoryError: no room to lay" in caplog.text
    jobs = make_jobs(task, shard, next(iter(UPDATES.values())))
    assert all(map(same, engine.train(jobs), Lean(task, shard).train(jobs)))
