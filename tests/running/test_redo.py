"""One local update of a run is done again, alone, and is what it was."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import fedsim
from fedsim.api import happened, replay_job
from fedsim.cli import show
from fedsim.cli.app import app
from fedsim.errors import ConfigError, RunError
from fedsim.learn.engines.sequential import Sequential
from fedsim.running.redo import _apart, jobs, named, redone

GIVEN: dict[str, Any] = {
    "data": {"clients": 6},
    "model": "softmax",
    "strategy": {"name": "scaffold", "participants": 3, "local": {"steps": 2, "batch_size": 8, "lr": 0.1}},
    "stop": {"rounds": 6},
    "compute": {"engine": "sequential"},
    "record": {"report": False, "checkpoint": {"every_rounds": 2, "keep": 1}},
}
METHODS = {
    "scaffold": {},
    "fedamd": {"strategy": {**GIVEN["strategy"], "name": "fedamd", "p": 0.5}},
    "fedbuff": {
        "strategy": {"name": "fedbuff", "concurrency": 3, "buffer": 2, "local": GIVEN["strategy"]["local"]}
    },
    "fedadam": {"strategy": {**GIVEN["strategy"], "name": "fedadam"}},
    "choco": {"strategy": {"name": "choco", "local": GIVEN["strategy"]["local"]}, "topology": "ring"},
}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fedsim.run(GIVEN, out=tmp_path_factory.mktemp("runs")).path


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets the number of local updates of each batch."""
    counts: list[int] = []
    train = Sequential.train

    def counting(self: Sequential, jobs: Any) -> Any:
        counts.append(len(jobs))
        return train(self, jobs)

    monkeypatch.setattr(Sequential, "train", counting)
    return counts


@pytest.mark.parametrize("method", METHODS)
def test_every_update_is_found_again_and_equal_to_the_last_bit(method: str, tmp_path: Path) -> None:
    """What the run has left of it is what comes out: in its store, which has all of them."""
    store = tmp_path / "store"
    run = fedsim.run({**GIVEN, **METHODS[method]}, out=tmp_path, store=store).path
    held = jobs(run)
    for job in (held[0], held[len(held) // 2], held[-1]):
        found = redone(run, job.identity[:12], store)
        assert found.job == job
        assert found.found.place == (job.node, job.round, job.visit)
        [stored] = [one for one in found.compared if one.source == "the store"]
        assert set(stored.apart) == set(found.result)
        assert {far for one in found.compared for far in one.apart.values()} == {0.0}


def test_only_what_it_was_made_of_is_computed(path: Path, trained: list[int]) -> None:
    """An update of the first round reads the initial model alone; one of the last reads the model of the round before,
    which is no longer alive when the last checkpoint is made, and goes back to updates that are."""
    first, last = jobs(path)[0], jobs(path)[-1]
    found = redone(path, first.identity)
    assert sum(trained) == 1
    assert torch.equal(found.given["arrays"], found.found.call.learner.engine.task.initial)
    trained.clear()
    found = redone(path, last.identity)
    assert sum(trained) <= 15 + 1
    assert any("checkpoint" in one.source for one in found.compared)
    assert any("numbers that the run has read" in one.source for one in found.compared)


def test_without_checkpoints_and_store_the_run_is_trained_up_to_there(
    tmp_path: Path, trained: list[int]
) -> None:
    """An update of round 6 needs the fifteen of the five rounds before, of which all have gone into the model."""
    path = fedsim.run(GIVEN, out=tmp_path, record__checkpoint=None).path
    trained.clear()
    found = redone(path, jobs(path)[-1].identity)
    assert sum(trained) == 15 + 1
    [compared] = found.compared
    assert (compared.source, set(compared.apart)) == ("the numbers that the run has read", {"train_loss"})


def test_the_update_of_a_run_that_was_stopped(tmp_path: Path) -> None:
    def progress(now: fedsim.api.Progress) -> None:
        if now.round == 5:
            raise RunError("as if killed")

    with pytest.raises(RunError):
        fedsim.run(GIVEN, out=tmp_path, progress=progress)
    [path] = tmp_path.iterdir()
    before = sorted(file.read_bytes() for file in path.rglob("*") if file.is_file())
    assert jobs(path)[-1].round == 5
    assert all(
        far == 0 for one in redone(path, jobs(path)[-1].identity).compared for far in one.apart.values()
    )
    assert sorted(file.read_bytes() for file in path.rglob("*") if file.is_file()) == before


def test_the_update_that_broke_a_run_breaks_again(tmp_path: Path) -> None:
    """So it can be looked at under the debugger: the second node of the ring has a rate that no model survives."""
    rates = [0.1, 1e38, *[0.1] * 4]
    given = {**GIVEN, "strategy": {"name": "dpsgd", "local": {"steps": 3, "lr": rates}}, "topology": "ring"}
    with pytest.raises(RunError, match="NaN or infinity") as caught:
        fedsim.run(given, out=tmp_path)
    path: Path = caught.value.run_path  # type: ignore[attr-defined]
    [job] = [job for job in jobs(path) if job.node == 1 and job.round == 1]
    with pytest.raises(RunError, match=r"node 1, round 1.*NaN or infinity"):
        redone(path, job.identity)


def test_an_update_of_a_model_that_has_no_name_is_found_by_its_place(tmp_path: Path) -> None:
    """A lambda has no name that would be the same tomorrow; the run's own repetition calls it the same."""
    (tmp_path / "own_net.py").write_text(NET)
    file = tmp_path / "own.yaml"
    file.write_text(fedsim.load({**GIVEN, "model": "own_net:squared"}).dump())
    path = fedsim.run(file, out=tmp_path / "runs").path
    found = redone(path, jobs(path)[-1].identity)
    assert found.compared
    assert {far for one in found.compared for far in one.apart.values()} == {0.0}


NET = """
from torch import nn


class Squared(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.act = nn.Linear(64, 10), lambda x: x * x

    def forward(self, x):
        return self.layer(self.act(x.flatten(1)))


def squared() -> nn.Module:
    return Squared()
"""


def test_another_engine_may_have_computed_other_last_digits(tmp_path: Path) -> None:
    path = fedsim.run(GIVEN, out=tmp_path, compute__engine="stacked").path
    found = redone(path, jobs(path)[-1].identity)
    [other] = [one for one in found.compared if one.source == "the engine stacked, given the same"]
    assert set(other.apart) == {"arrays", "control", "scaffold.control", "train_loss"}
    assert all(far < 1e-5 for far in other.apart.values())


def test_a_difference_is_told(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that makes every model longer by a thousandth is caught by what the run has read and saved."""
    train = Sequential.train

    def wrong(self: Sequential, jobs: Any) -> Any:
        return [
            {name: value * 1.001 if name == "train_loss" else value for name, value in one.items()}
            for one in train(self, jobs)
        ]

    monkeypatch.setattr(Sequential, "train", wrong)
    found = redone(path, jobs(path)[0].identity)
    [compared] = [one for one in found.compared if "numbers" in one.source]
    assert compared.apart["train_loss"] == pytest.approx(float(found.result["train_loss"]) / 1001, rel=1e-3)
    assert str(compared).startswith(
        "the numbers that the run has read: differs in train_loss by at most 0.00"
    )


def test_the_command_line_takes_what_show_lists(path: Path, tmp_path: Path) -> None:
    line = next(line for line in happened(path, round=3) if ": job " in line)
    done = CliRunner().invoke(app, ["replay-job", str(path), line.split()[-1]])
    assert done.exit_code == 0, done.stderr
    job = named(path, line.split()[-1])
    lines = done.stdout.splitlines()
    assert lines[0] == f"job {job.identity}: node {job.node}, round 3, t = {job.time_us / 1e6:.6f} s"
    assert lines[1].startswith("update: Controlled on ")
    assert [one.split()[1] for one in lines if one.startswith("given")] == [
        "arrays",
        "control",
        "scaffold.control",
    ]
    assert any(one.startswith("the numbers that the run has read: equal to the last bit") for one in lines)


def test_under_the_debugger_it_stops_at_the_engine_first(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    id = jobs(path)[0].identity[:10]
    monkeypatch.setattr("sys.stdin", io.StringIO("p len(jobs)\nc\n"))
    assert replay_job(path, id, do=show.debugged).compared
    told = capsys.readouterr().out
    assert "sequential.py" in told
    assert "(Pdb) 1" in told
    monkeypatch.setattr("sys.stdin", io.StringIO("q\n"))
    with pytest.raises(KeyboardInterrupt):
        replay_job(path, id, do=show.debugged)


def test_the_debugger_stops_where_an_update_raises(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(number: int) -> float:
        return number / 0

    monkeypatch.setattr("sys.stdin", io.StringIO("c\np 40 + number\nq\n"))
    with pytest.raises(ZeroDivisionError):
        show.debugged(broken, 2)
    assert "(Pdb) 42" in capsys.readouterr().out


def test_what_is_no_update_is_told_in_one_line(path: Path, tmp_path: Path) -> None:
    timing = fedsim.run(GIVEN, out=tmp_path, timing_only=True).path
    for run, id, told in (
        (path, "xyz", "id: xyz: must be the first hexadecimal digits of a local update's identity"),
        (path, "0" * 64, "no local update of this run begins so; fedsim show"),
        (timing, "0", "no local update of this run begins so"),
        (tmp_path, "0", "holds no record.sqlite"),
    ):
        done = CliRunner().invoke(app, ["replay-job", str(run), id])
        assert (done.exit_code, told in done.stderr) == (2, True), done.stderr
    ids = [job.identity for job in jobs(path)]
    digit = next(digit for digit in "0123456789abcdef" if sum(id.startswith(digit) for id in ids) > 1)
    with pytest.raises(ConfigError, match="local updates of this run begin so; give more digits"):
        replay_job(path, digit)


def test_numbers_that_are_apart_are_told_as_such() -> None:
    one = {"arrays": torch.tensor([1.0, 2.0]), "train_loss": torch.tensor(0.5)}
    assert _apart(one, {"arrays": torch.tensor([1.0, 2.25]), "other": torch.zeros(1)}) == {"arrays": 0.25}
    assert math.isnan(_apart(one, {"train_loss": float("nan")})["train_loss"])
