"""What two runs differ in is found where it begins, and named."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import fedsim
from fedsim.api import differences
from fedsim.cli.app import app
from fedsim.errors import RunError
from fedsim.learn.engines.sequential import Sequential
from fedsim.record import read

GIVEN: dict[str, Any] = {
    "data": {"clients": 6},
    "model": "softmax",
    "strategy": {"name": "scaffold", "participants": 3, "local": {"steps": 2, "batch_size": 8, "lr": 0.1}},
    "network": {"up_mbps": 1},
    "stop": {"rounds": 4},
    "record": {"report": False},
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fedsim.run(GIVEN, out=tmp_path_factory.mktemp("plain")).path


def told(one: Path, two: Path) -> list[str]:
    return [line.strip() for line in differences(one, two)]


def changed(plain: Path, out: Path, given: dict[str, Any] = GIVEN, **changes: Any) -> list[str]:
    """Return what is told of a run and the same with changes."""
    return told(plain, fedsim.run(given, out=out, overrides=changes).path)


def test_a_run_and_itself_are_the_same(plain: Path, tmp_path: Path) -> None:
    assert changed(plain, tmp_path) == [
        "keys: the files say the same",
        f"events: all {len(read(plain, 'events')['kind'])} are the same",
        "local updates: all 12 are the same",
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "value", "said", "why"),
    [
        ("strategy.local.lr", 0.2, "strategy.local.lr: 0.1 | 0.2", "update.local.lr: 0.1 | 0.2"),
        ("strategy.local.steps", 3, "strategy.local.steps: 2 | 3", "update.local.steps: 2 | 3"),
        ("model", "mlp", "model: softmax | mlp", "model.layers: not the same"),
        (
            "data.partition",
            {"name": "dirichlet", "alpha": 1.0},
            "",
            "data: the clients have other numbers of samples",
        ),
        ("compute.engine", "stacked", "compute.engine: auto | stacked", "engine: Closed | Stacked"),
        (
            "compute.dtype",
            "float64",
            "compute.dtype: float32 | float64",
            "model.initial weights: not the same",
        ),
    ],
)
def test_a_key_is_found_among_the_inputs_of_the_first_update(
    key: str, value: Any, said: str, why: str, plain: Path, tmp_path: Path
) -> None:
    lines = changed(plain, tmp_path, **{key: value})
    assert any(said in line for line in lines)
    assert why in lines, lines
    assert any(
        line.startswith("the first that differs is that of node") and "in round 1" in line for line in lines
    )


def test_another_network_is_the_first_event_that_differs(plain: Path, tmp_path: Path) -> None:
    lines = changed(plain, tmp_path, **{"network.up_mbps": 0.5})
    assert lines[0] == "keys: network.up_mbps: 1.0 | 0.5"
    assert lines[-1] == "local updates: all 12 are the same"
    other = next(tmp_path.iterdir())
    rows = [[*zip(*read(run, "events").values(), strict=True)] for run in (plain, other)]
    place = next(place for place, (one, two) in enumerate(zip(*rows, strict=False)) if one != two)
    assert lines[2] == f"the first that differs is the {place + 1}. one"
    for line, which, row in zip(
        lines[3:5], ("first", "second"), (rows[0][place], rows[1][place]), strict=True
    ):
        assert line.startswith(f"{which} run:")
        assert f"{row[0] / 1e6:.6f} s, round {row[5]}, node {row[2]}: {row[1]}" in line


def test_runs_part_where_somebody_is_missing(plain: Path, tmp_path: Path) -> None:
    """Nobody but the clients 0 to 2 is there in the second round: others take part, or none in their place."""
    moment = float(read(plain, "rounds")["time_us"][1] / 1e6) + 1e-6
    lines = changed(plain, tmp_path, faults=[{"name": "crash", "at_s": moment, "nodes": [3, 4, 5]}])
    [first] = [line for line in lines if "the first that differs is that of node" in line]
    took = [{*read(run, "jobs", round=2)["node"].tolist()} for run in (plain, next(tmp_path.iterdir()))]
    assert took[0] != took[1]
    node = int(first.partition("node ")[2].split()[0])
    assert node in took[0] ^ took[1]
    assert "in round 2" in first
    assert f"only the {'first' if node in took[0] else 'second'} run has it" in first


def test_another_seed_is_told_where_both_have_the_same_update(tmp_path: Path) -> None:
    """All peers train in every round."""
    given = {**GIVEN, "strategy": {"name": "dpsgd", "local": GIVEN["strategy"]["local"]}, "topology": "ring"}
    one = fedsim.run(given, out=tmp_path)
    lines = changed(one.path, tmp_path, given, seed=3)
    assert "seed: 0 | 3" in lines
    assert "given: arrays: what the run begins with" in lines
    assert any("data: " in line for line in lines)


def test_vectors_are_followed_to_where_they_part(tmp_path: Path) -> None:
    """A peer whose link is gone takes the mean of fewer models."""
    local = GIVEN["strategy"]["local"]
    given = {**GIVEN, "strategy": {"name": "dpsgd", "local": local}, "topology": "ring"}
    one = fedsim.run(given, out=tmp_path)
    lines = changed(one.path, tmp_path, given, topology="complete")
    [line] = [line for line in lines if line.startswith("given: arrays")]
    assert line == "given: arrays: made of 3 vectors | 6"
    assert "keys: topology: ring | complete" in lines


def test_a_strategy_of_flowers_does_not_say_what_it_made_a_model_of(tmp_path: Path) -> None:
    given = {**GIVEN, "strategy": {**GIVEN["strategy"], "name": "fedadam"}}
    one = fedsim.run(given, out=tmp_path)
    lines = changed(one.path, tmp_path, given, **{"strategy.eta": 0.01})
    assert "given: arrays: made by code that does not say of what" in lines
    assert any("in round 2" in line for line in lines)


def test_nothing_is_trained_for_it(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = fedsim.run(GIVEN, out=tmp_path, strategy__local__lr=0.2).path
    monkeypatch.setattr(Sequential, "train", lambda *_: pytest.fail("something is trained"))
    assert "update.local.lr: 0.1 | 0.2" in told(plain, other)


def test_a_run_that_was_stopped_is_compared_as_far_as_it_goes(plain: Path, tmp_path: Path) -> None:
    def progress(now: fedsim.api.Progress) -> None:
        if now.round == 2:
            raise RunError("as if killed")

    for changes in ({}, {"strategy.local.lr": 0.2}):
        with pytest.raises(RunError) as caught:
            fedsim.run(GIVEN, out=tmp_path, progress=progress, overrides=changes)
        path: Path = caught.value.run_path  # type: ignore[attr-defined]
        lines = told(plain, path)
        assert any("the second one the first" in line for line in lines if line.startswith("events"))
        if changes:
            assert "update.local.lr: 0.1 | 0.2" in lines
        else:
            assert (
                "local updates: the first run has 12 local updates, and the second one the first 6 of them"
                in lines
            )


def test_runs_without_events_or_training_say_so(plain: Path, tmp_path: Path) -> None:
    silent = fedsim.run(GIVEN, out=tmp_path, timing_only=True, record__events=False).path
    assert told(plain, silent)[1:] == [
        "events: one of the runs, or both, has recorded none",
        "local updates: one of the runs, or both, has trained nothing",
    ]


def test_what_cannot_be_repeated_leaves_the_reason_open(plain: Path, tmp_path: Path) -> None:
    """The other run has lost the file in which its model was."""
    (tmp_path / "own_net.py").write_text(NET)
    file = tmp_path / "own.yaml"
    file.write_text(fedsim.load({**GIVEN, "model": "own_net:net"}).dump().replace("experiment", "own"))
    own = fedsim.run(file, out=tmp_path / "runs").path
    assert "model.layers: not the same" in told(plain, own)
    shutil.move(tmp_path / "own_net.py", tmp_path / "gone.py")
    lines = told(plain, own)
    assert lines[-1].startswith("why cannot be told: ") or "model.layers: not the same" in lines


NET = """
from torch import nn


def net() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Sigmoid())
"""


def test_the_command_line(plain: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["diff", str(plain), str(plain)])
    assert (done.exit_code, done.stdout.splitlines()[0]) == (0, "keys: the files say the same")
    done = CliRunner().invoke(app, ["diff", str(plain), str(tmp_path)])
    assert done.exit_code == 2
    assert "holds no run: there is no experiment.yaml in it" in done.stderr
