"""What runs leave for each other: used where it is the same, and never where it is not."""

from __future__ import annotations

import json
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import fedsim
from fedsim.api import retime
from fedsim.cli.app import app
from fedsim.errors import ConfigError, RunError
from fedsim.learn.identity import identity
from fedsim.record import read
from fedsim.running.store import MARK, Store

GIVEN: dict[str, Any] = {
    "data": {"clients": 6},
    "model": "softmax",
    "strategy": {"name": "scaffold", "participants": 3, "local": {"steps": 2, "batch_size": 8, "lr": 0.1}},
    "network": {"up_mbps": 1},
    "stop": {"rounds": 6},
    "record": {"report": False},
}


def run(
    out: Path, store: Path | None = None, given: dict[str, Any] = GIVEN, **changes: Any
) -> dict[str, Any]:
    return fedsim.run(given, out=out, store=store, overrides=changes).summary


def test_a_warm_store_trains_nothing_and_changes_nothing(tmp_path: Path) -> None:
    store = tmp_path / "store"
    plain, cold, warm = (run(tmp_path / "runs", one) for one in (None, store, store))
    assert plain["run_hash"] == cold["run_hash"] == warm["run_hash"]
    assert "jobs" not in plain
    assert (cold["jobs"], cold["jobs_reused"], cold["gradients_saved"]) == (18, 0, 0)
    assert (warm["jobs"], warm["jobs_reused"], warm["gradients_saved"]) == (0, 18, 18 * 2 * 8)


def test_a_network_that_nobody_waits_for_in_vain_is_simulated_without_training(tmp_path: Path) -> None:
    store = tmp_path / "store"
    first = run(tmp_path, store)
    for mbps in (0.01, 0.1, 10):
        found = run(tmp_path, store, **{"network.up_mbps": mbps})
        assert found["jobs"] == 0
        assert found["weights_hash"] == first["weights_hash"]
        assert found["sim_time_s"] != first["sim_time_s"]


def test_two_runs_that_part_share_what_came_before(tmp_path: Path) -> None:
    """The crash is in the fourth round: three are shared."""
    store = tmp_path / "store"
    first = run(tmp_path, store)
    moment = read(next(tmp_path.glob("experiment-*")), "rounds")["time_us"][3] / 1e6
    crash = {"faults": [{"name": "crash", "at_s": float(moment) + 1e-6, "fraction": 0.5}]}
    found = run(tmp_path, store, **crash)
    assert found["jobs_reused"] == 9
    assert found["jobs"] > 0
    assert found["weights_hash"] != first["weights_hash"]
    assert found["weights_hash"] == run(tmp_path, **crash)["weights_hash"]


@pytest.mark.parametrize("name", ["dpsgd", "choco", "gossip"])
def test_peers_use_it_too(name: str, tmp_path: Path) -> None:
    strategy = {"name": name, "local": GIVEN["strategy"]["local"]}
    given, store = {**GIVEN, "strategy": strategy, "topology": "ring"}, tmp_path / "store"
    cold, warm = run(tmp_path, store, given), run(tmp_path, store, given)
    assert (cold["run_hash"], warm["jobs"]) == (warm["run_hash"], 0)


def test_flowers_own_strategies_use_it_too(tmp_path: Path) -> None:
    given, store = {**GIVEN, "strategy": {**GIVEN["strategy"], "name": "fedadam"}}, tmp_path / "store"
    cold, warm = run(tmp_path, store, given), run(tmp_path, store, given)
    assert (cold["run_hash"], warm["jobs"], warm["jobs_reused"]) == (warm["run_hash"], 0, 18)


def test_a_run_that_goes_on_uses_it_too(tmp_path: Path) -> None:
    """Of the six rounds, the whole run has left all in the store; the one that was stopped takes the last two."""
    store, record = tmp_path / "store", {"report": False, "checkpoint": {"every_rounds": 2}}
    given = {**GIVEN, "record": record}

    def progress(now: fedsim.api.Progress) -> None:
        if now.round == 4:
            raise RunError("as if killed")

    with pytest.raises(RunError) as caught:
        fedsim.run(given, out=tmp_path, progress=progress)
    path: Path = caught.value.run_path  # type: ignore[attr-defined]
    whole = run(tmp_path, store, given)
    (tmp_path / "file").write_text("dear")
    with pytest.raises(ConfigError, match=r"store: .* cannot be used"):
        fedsim.resume(path, store=tmp_path / "file")
    found = fedsim.resume(path, store=store).summary
    assert (found["jobs"], found["run_hash"]) == (0, whole["run_hash"])
    assert 2 * 3 <= found["jobs_reused"] <= 4 * 3
    longer = fedsim.resume(path, extend={"rounds": 1}, store=store).summary
    assert (longer["jobs"], longer["jobs_reused"]) == (3, 0)


def test_a_damaged_entry_is_dropped_and_computed_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = tmp_path / "store"
    first = run(tmp_path, store)
    entries = sorted(store.glob("*/*/*.safetensors"))
    for number, entry in enumerate(entries):
        data = bytearray(entry.read_bytes())
        data[-1] ^= 1
        entry.write_bytes(data if number % 2 else data[:-3])
    found = run(tmp_path, store)
    assert (found["run_hash"], found["jobs"]) == (first["run_hash"], 18)
    assert "of the store is not used: it is damaged" in caplog.text
    assert run(tmp_path, store)["jobs"] == 0


def test_what_was_not_used_for_the_longest_time_goes_first(tmp_path: Path) -> None:
    names = [identity(number) for number in range(10)]
    store = Store(tmp_path, "cpu", limit_bytes=10 * 1500)
    for number, name in enumerate(names):
        store.put(name, torch.full((250,), float(number)))
        [path] = tmp_path.glob(f"*/*/{name.hex()}*")
        os.utime(path, (number, number))
    assert torch.equal(store.get(names[0]), torch.zeros(250))  # now it has been used
    store.put(identity("more"), torch.zeros(1000))
    kept = [number for number, name in enumerate(names) if store.get(name) is not None]
    assert kept[0] == 0
    assert kept[1:] == list(range(10))[-len(kept) + 1 :]
    assert sum(path.stat().st_size for path in tmp_path.glob("*/*/*")) <= 15_000


def test_several_processes_share_one_store(tmp_path: Path) -> None:
    with ProcessPoolExecutor(2, mp_context=get_context("fork")) as pool:
        jobs = [pool.submit(run, tmp_path / str(number), tmp_path / "store") for number in range(2)]
        found = [job.result() for job in jobs]
    assert found[0]["run_hash"] == found[1]["run_hash"]
    assert run(tmp_path / "after", tmp_path / "store")["jobs"] == 0


def test_a_part_without_a_name_leaves_nothing(tmp_path: Path) -> None:
    """A model with a lambda in it has no name that would be the same tomorrow."""
    (tmp_path / "own_net.py").write_text(NET)
    file = tmp_path / "own.yaml"
    file.write_text(json.dumps({**GIVEN, "model": "own_net:squared"}))
    for _ in range(2):
        found = fedsim.run(file, out=tmp_path / "runs", store=tmp_path / "store").summary
        assert (found["jobs"], found["jobs_reused"]) == (18, 0)
        assert found["unnamed"] == "a lambda in own_net has no name"
    assert not list((tmp_path / "store").glob("*/*/*"))


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


def test_a_folder_that_is_no_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "a.txt").write_text("dear")
    with pytest.raises(ConfigError, match=r"store: .* is no store: it holds other files"):
        run(tmp_path / "runs", tmp_path / "letters")
    (tmp_path / "file").write_text("dear")
    with pytest.raises(ConfigError, match=r"store: .* cannot be used"):
        run(tmp_path / "runs", tmp_path / "file")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / MARK).write_text("[]")
    with pytest.raises(ConfigError, match=r"store: .* cannot be read"):
        run(tmp_path / "runs", tmp_path / "odd")
    assert not (tmp_path / "runs").exists()


def test_another_world_is_timed_without_training(tmp_path: Path) -> None:
    store = tmp_path / "store"
    first = fedsim.run(GIVEN, out=tmp_path, store=store)
    found = retime(first.path, store=store, out=tmp_path, overrides={"network.up_mbps": 0.02})
    assert found.summary["jobs"] == 0
    assert found.summary["weights_hash"] == first.summary["weights_hash"]
    assert found.summary["sim_time_s"] > first.summary["sim_time_s"]


def test_a_world_with_other_choices_is_refused_where_they_are_made(tmp_path: Path) -> None:
    store = tmp_path / "store"
    first = fedsim.run(GIVEN, out=tmp_path, store=store, evaluate__every=6)
    for change, round in (({"strategy.local.lr": 0.2}, 1), ({"stop.rounds": 8}, 7)):
        with pytest.raises(RunError, match="no run has left this update in the store") as caught:
            retime(first.path, store=store, out=tmp_path, overrides=change)
        assert caught.value.round == round


def test_the_command_line_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEDSIM_STORE", raising=False)
    first = fedsim.run(GIVEN, out=tmp_path)
    done = CliRunner().invoke(app, ["retime", str(first.path)])
    assert done.stderr.startswith("store: must be the folder in which the run has left its values")
    done = CliRunner().invoke(app, ["retime", str(tmp_path)])
    assert done.exit_code == 2
    assert "holds no run" in done.stderr
