"""A run that is killed again and again ends as one that is not: the same events, the same weights, to the last bit."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import fedsim
import fedsim.flower
from fedsim.record import read
from fedsim.record.tape import Tape

SOAK = bool(os.environ.get("FEDSIM_SOAK"))
LOCAL = {"steps": 4, "batch_size": 8, "lr": 0.1}
RESTLESS: dict[str, Any] = {
    "name": "killed",
    "data": {"clients": 8, "partition": {"name": "dirichlet", "alpha": 1.0}},
    "model": "softmax",
    "network": {"latency_ms": 20, "up_mbps": 0.05, "down_mbps": 0.1, "detect_s": 1},
    "churn": {"name": "exponential", "online_s": 60, "offline_s": 10},
    "faults": [{"name": "message_loss", "probability": 0.03}],
    "stop": {"rounds": 40 if SOAK else 12},
    "evaluate": {"every": 3},
    "record": {"report": False, "checkpoint": {"every_rounds": 2}},
}
CALM = {"churn": "always", "faults": []}
GRAPH = {"name": "random_regular", "degree": 4}


def experiment(
    name: str, topology: Any = "star", changes: Mapping[str, Any] | None = None, **params: Any
) -> Any:
    """Return an experiment in a world in which much goes wrong."""
    strategy = {"name": name, "local": LOCAL, **params}
    return {**RESTLESS, "strategy": strategy, "topology": topology, **(changes or {})}


PACED = {"local": {**LOCAL, "curriculum": {"score": "local"}}}
NAN = {"faults": [{"name": "corrupt", "kind": "nan", "nodes": [1, 2]}]}
OFTEN = {"record": {"report": False, "checkpoint": {"every_wall_s": 0.001}}}
"""Save in the middle of rounds, too."""

CRASHES = {**CALM, "faults": [{"name": "crash", "at_s": 9.0, "count": 1}]}
ROWS = {
    "fedamd": experiment("fedamd", participants=4, p=0.5),
    "fedamd-disk": experiment("fedamd", participants=4, p=0.5, caches_on="disk", caches="lazy"),
    "curriculum": experiment(
        "fedprox", participants=3, mu=0.1, select={"name": "curriculum", "rounds": 12}, **PACED
    ),
    "scaffold": experiment("scaffold", "star", NAN, participants=4, on_failure="drop"),
    "fedbuff": experiment("fedbuff", "star", OFTEN, concurrency=5, buffer=3),
    "dpsgd": experiment("dpsgd", GRAPH, timeout_s=20),
    "choco": experiment("choco", GRAPH, OFTEN, timeout_s=20),
    "modest": experiment(
        "modest", "complete", CRASHES, sample_size=3, success_fraction=0.6, ping_timeout_s=1.0
    ),
    "fedadam": experiment("fedadam", participants=4, around=[{"name": "central_noise", "std": 0.01}]),
    "krum": experiment("krum", participants=5, num_malicious_nodes=1),
    "dpsgd-curriculum": experiment("dpsgd_curriculum", GRAPH, timeout_s=20, rounds=12),
    "adpsgd": experiment("adpsgd", GRAPH, timeout_s=20),
}
LONG = {"dpsgd-curriculum", "adpsgd", "krum"}
"""Run with the slow ones."""


@pytest.fixture(scope="module", autouse=True)
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Run once here, so that all child processes have everything in memory."""
    return fedsim.run(ROWS["fedadam"], out=tmp_path_factory.mktemp("loaded"), stop__rounds=1)


def killed(act: Any, after_s: float) -> bool:
    """Do something in a process of its own, kill it after a while, and return whether it had ended by then."""
    process = os.fork()
    if not process:
        sys.stderr = sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - until the process ends
        try:
            act()
            os._exit(0)
        except BaseException:
            os._exit(1)
    time.sleep(after_s)
    os.kill(process, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0


def folder(out: Path) -> Path | None:
    """Return the folder of the run, if it has one in which anything can be found again."""
    return next((path for path in out.glob("*") if (path / "experiment.yaml").exists()), None)


def finished(given: Any, out: Path, seed: int, kills: int, most_s: float) -> fedsim.Result:
    """Return what a run leaves that is killed a few times before it may end, each time after at most so long."""
    rng = random.Random(seed)
    for _ in range(kills):
        path = folder(out)
        if path is None:
            shutil.rmtree(out, ignore_errors=True)
            killed(lambda: fedsim.run(given, out=out), rng.uniform(0.3, 1.0) * most_s)
        else:
            (path / "summary.json").unlink(missing_ok=True)  # it was quicker than the kill
            killed(lambda path=path: fedsim.resume(path), rng.uniform(0.3, 1.0) * most_s)
    path = folder(out)
    if path is None:
        return fedsim.run(given, out=out)
    (path / "summary.json").unlink(missing_ok=True)
    return fedsim.resume(path)


@pytest.mark.parametrize("seed", range(20 if SOAK else 1))
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in LONG else ()) for name in ROWS]
)
def test_a_run_that_is_killed_ends_as_one_that_is_not(name: str, seed: int, tmp_path: Path) -> None:
    given = ROWS[name]
    whole = fedsim.run(given, out=tmp_path / "whole")
    assert whole.summary["rounds"] == given["stop"]["rounds"]
    most_s = min(whole.summary["wall_total_s"], 1.0)
    found = finished(given, tmp_path / "killed", seed, 6 if SOAK else 2, most_s)
    changing = {"wall_time_s", "wall_total_s"}
    for key in whole.summary.keys() - changing:
        assert found.summary[key] == whole.summary[key], key
    for table in ("metrics", "rounds", "presence", "nodes", "links", "events", "jobs"):
        one, two = (
            [repr(column.tolist()) for column in read(path, table).values()]
            for path in (found.path, whole.path)
        )
        assert one == two, table
    one, two = ({*zip(*read(path, "journal").values(), strict=True)} for path in (found.path, whole.path))
    assert one == two


APP = Path(__file__).parents[1] / "flower" / "apps" / "plain"
WORLD = {
    "seed": 3,
    "network": {"latency_ms": 5, "detect_s": 0.1},
    "churn": {"name": "exponential", "online_s": 0.2, "offline_s": 0.02},
    "faults": [{"name": "message_loss", "probability": 0.03}],
    "record": {"report": False, "checkpoint": {}},
}


def run_app(out: Path) -> fedsim.Result:
    """Run a Flower app in a world in which much goes wrong."""
    rounds = f"num-server-rounds={200 if SOAK else 60}"
    return fedsim.flower.run_app(APP, nodes=8, world=WORLD, run_config=rounds, out=out)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20 if SOAK else 1))
def test_an_app_that_is_killed_ends_as_one_that_is_not(seed: int, tmp_path: Path) -> None:
    whole, out, rng = run_app(tmp_path / "whole"), tmp_path / "killed", random.Random(seed)
    most_s = min(whole.summary["wall_total_s"], 1.0)

    def begun() -> Path | None:
        return next((path.parent for path in out.glob("*/replies.tape") if path.stat().st_size), None)

    def go_on() -> fedsim.Result:
        path = begun()
        if path is None:
            shutil.rmtree(out, ignore_errors=True)
            return run_app(out)
        (path / "summary.json").unlink(missing_ok=True)
        return fedsim.resume(path)

    for _ in range(8 if SOAK else 4):
        killed(go_on, rng.uniform(0.1, 1.0) * most_s)
    found = go_on()
    for key in whole.summary.keys() - {"wall_time_s", "wall_total_s"}:
        assert found.summary[key] == whole.summary[key], key
    for table in ("metrics", "rounds", "presence", "nodes", "links", "events"):
        one, two = (
            [repr(column.tolist()) for column in read(path, table).values()]
            for path in (found.path, whole.path)
        )
        assert one == two, table
    logs = [(path / "app.log").read_text().splitlines() for path in (found.path, whole.path)]
    one, two = ([line for line in log if "execution finished in" not in line] for log in logs)
    assert one == two
    kept = []
    for path in (found.path, whole.path):
        with Tape(path / "replies.tape") as tape:
            kept.append(list(iter(tape.read, None))[1:])  # the first says where the app is run
    assert kept[0] == kept[1]
