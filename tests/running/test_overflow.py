"""What clients keep: in memory up to a budget, in files beyond it, and the same numbers wherever it is."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys

import pytest
import torch

import fedsim
import fedsim.learn.overflow as overflow
from fedsim.errors import ConfigError
from fedsim.learn.deferred import Deferred
from fedsim.learn.overflow import Overflow, default_budget
from fedsim.machine import memory_bytes
from fedsim.running.client_state import Kept

LOCAL = {"steps": 2, "batch_size": 8, "lr": 0.1}
RUN = {
    "data": {"clients": 6},
    "model": "softmax",  # 64 x 10 weights and 10 biases: 2,600 bytes
    "strategy": {"name": "scaffold", "participants": 4, "local": LOCAL},
    "stop": {"rounds": 4},
    "record": {"report": False, "events": False},
}
ONE = 4 * (64 * 10 + 10)


def vectors(count, size=10):
    return [torch.randn(size) for _ in range(count)]


def test_who_came_first_stays_in_memory_and_the_numbers_are_the_same():
    held, given = Overflow(100), vectors(5)  # 40 bytes each: two have room
    kept = [held.put(i, one) for i, one in enumerate(given)]
    assert [a is b for a, b in zip(kept, given)] == [True, True, False, False, False]
    assert all(map(torch.equal, kept, given))
    assert (held.inside_bytes, held.outside) == (80, 3)
    newer = vectors(5)
    kept = [held.put(i, one) for i, one in enumerate(newer)]
    assert all(map(torch.equal, kept, newer))
    assert (held.inside_bytes, held.outside) == (80, 3)


def test_a_place_is_free_only_when_nobody_reads_it_any_more():
    """A computation that waits may still need what the client had before."""
    held = Overflow(0)
    old = held.put("a", torch.full((4,), 1.0))
    part = old[1:3]
    del old
    gc.collect()
    new = held.put("a", torch.full((4,), 2.0))
    assert (part.tolist(), new.tolist(), held.outside) == ([1.0, 1.0], [2.0] * 4, 2)
    del part
    gc.collect()
    assert held.outside == 1
    addresses = {held.put("a", torch.zeros(4)).data_ptr() for _ in range(50)}
    assert len(addresses) <= 2


def test_types_and_shapes_are_kept_and_sizes_do_not_mix():
    held = Overflow(0)
    for one in (torch.randn(3, 5, dtype=torch.float64), torch.arange(7), torch.randn(2).to(torch.bfloat16)):
        kept = held.put(id(one), one)
        assert (kept.dtype, kept.shape) == (one.dtype, one.shape)
        assert torch.equal(kept, one)
    assert held.outside == 1  # nobody holds the others


def test_many_more_than_a_file_has_room_for(monkeypatch):
    monkeypatch.setattr(overflow, "PIECE_BYTES", 100)
    held, given = Overflow(0), vectors(9)
    kept = [held.put(i, one) for i, one in enumerate(given)]
    assert all(map(torch.equal, kept, given))
    assert len({one.data_ptr() for one in kept}) == 9


def test_no_file_has_a_name(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    held = Overflow(0)
    kept = held.put("a", torch.ones(100))
    assert kept.sum() == 100
    assert os.listdir(tmp_path) == []


def test_no_room_for_files_leaves_all_in_memory_and_says_so_once(monkeypatch, caplog):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    held, given = Overflow(0), vectors(3)
    assert [held.put(i, one) for i, one in enumerate(given)] == given
    assert held.inside_bytes == 120
    [said] = caplog.messages
    assert said.startswith("what clients keep stays in memory: no room in ")
    assert "No space left on device" in said


def test_what_evaluations_read_stays_in_memory():
    class Update:
        keeps = ("control",)

    kept = Kept(Deferred.known(torch.zeros(2)), ("model.buffers",), budget_bytes=0)
    result = Deferred.known({"control": torch.ones(2), "model.buffers": torch.ones(2)})
    kept.put(3, Update(), result)
    assert kept.overflow.outside == 1
    assert torch.equal(kept.of(3, Update())["control"].value(), torch.ones(2))


def test_a_quarter_of_the_memory_by_default():
    assert default_budget(torch.device("cpu")) == memory_bytes() // 4


@pytest.mark.slow
@pytest.mark.parametrize(
    "strategy",
    [
        RUN["strategy"],
        {"name": "fedavg", "participants": 4, "local": LOCAL, "around": [{"name": "top_k", "share": 0.1}]},
        {"name": "feddyn", "participants": 4, "local": LOCAL, "alpha": 0.1},
    ],
    ids=lambda one: one["name"],
)
def test_no_number_depends_on_the_budget(strategy, tmp_path, monkeypatch):
    outside = []
    put = Overflow.put

    def counted(self, owner, vector):
        found = put(self, owner, vector)
        outside.append(self.outside)
        return found

    monkeypatch.setattr(Overflow, "put", counted)
    run = {**RUN, "strategy": strategy}
    hashes, most = set(), []
    for budget in (None, 3 * ONE, 0):
        outside.clear()
        hashes.add(fedsim.run(run, out=tmp_path, compute__state_bytes=budget).summary["run_hash"])
        most.append(max(outside))
    assert len(hashes) == 1
    assert most[0] == 0 < most[1] < most[2]


KILLED = """
import sys, os, signal, fedsim
def kill(progress):
    if progress.round == 3:
        os.kill(os.getpid(), signal.SIGKILL)
fedsim.run(eval(sys.argv[1]), out="runs", progress=kill)
"""


@pytest.mark.slow
def test_a_run_that_is_killed_leaves_no_file_and_goes_on_with_another_budget(tmp_path):
    (tmp_path / "temporary").mkdir()
    run = {**RUN, "name": "killed", "stop": {"rounds": 6}, "compute": {"state_bytes": 0}}
    run["record"] = {**RUN["record"], "checkpoint": {"every_rounds": 1}}
    ran = subprocess.run(
        [sys.executable, "-c", KILLED, repr(run)],
        cwd=tmp_path,
        env={**os.environ, "TMPDIR": str(tmp_path / "temporary")},
        check=False,
    )
    assert ran.returncode == -signal.SIGKILL
    assert list((tmp_path / "temporary").glob("fedsim-state-*")) == []
    [folder] = (tmp_path / "runs").glob("killed-*")
    wanted = fedsim.run(run, out=tmp_path / "whole", compute__state_bytes=None).summary["run_hash"]
    text = (folder / "experiment.yaml").read_text()
    (folder / "experiment.yaml").write_text(text.replace("state_bytes: 0", "state_bytes: 1000000"))
    assert "state_bytes: 0" in text
    assert fedsim.resume(folder).summary["run_hash"] == wanted


def test_a_budget_that_is_none():
    with pytest.raises(
        ConfigError, match=rf"compute.state_bytes: 100: is less than the {ONE} bytes that one client"
    ):
        fedsim.check(RUN, compute__state_bytes=100)
    with pytest.raises(ConfigError, match=r"compute.state_bytes: -1: must be at least 0"):
        fedsim.check(RUN, compute__state_bytes=-1)
    fedsim.check({**RUN, "strategy": "fedavg"}, compute__state_bytes=100)  # whose clients keep nothing
