"""What a notebook user calls."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import yaml

import fedsim
from fedsim.errors import ConfigError, RunError
from fedsim.running.progress import Progress

SMALL: dict[str, Any] = {
    "name": "small",
    "data": {"clients": 6, "partition": {"name": "shards", "labels_per_client": 3}},
    "model": "softmax",
    "strategy": {"name": "fedavg", "fraction_train": 0.5, "fraction_evaluate": 0.0, "local": {"lr": 0.5}},
    "network": {"latency_ms": 10, "up_mbps": 1, "down_mbps": 1},
    "stop": {"rounds": 6},
    "record": {"report": False},
}
PEERS: dict[str, Any] = {**SMALL, "name": "peers", "strategy": "dpsgd", "topology": "ring"}

SUMMARY = {
    "name", "strategy", "seed", "rounds", "sim_time_s", "wall_time_s", "wall_total_s", "accuracy", "best_accuracy",
    "loss", "bytes_up", "bytes_down", "bytes_max_node", "bytes_min_node", "work_samples", "wasted_samples",
    "event_hash", "weights_hash", "run_hash", "time_to_target_s",
}  # fmt: skip


def test_a_run_leaves_a_complete_folder(tmp_path: Path) -> None:
    result = fedsim.run(SMALL, out=tmp_path, record__report=True)
    assert result.path.parent == tmp_path
    assert result.path.name.startswith("small-")
    names = {path.name for path in result.path.iterdir()}
    assert names >= {
        "experiment.yaml",
        "record.sqlite",
        "summary.json",
        "weights.safetensors",
        "report.html",
        "figures",
    }
    assert {path.suffix for path in (result.path / "figures").iterdir()} == {".png", ".svg"}
    assert json.loads((result.path / "summary.json").read_text()) == result.summary
    assert result.summary.keys() >= SUMMARY
    page = (result.path / "report.html").read_text()
    assert "<img" in page or "<svg" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert 'src="http' not in page


def test_the_resolved_file_gives_the_same_run(tmp_path: Path) -> None:
    first = fedsim.run(SMALL, out=tmp_path)
    again = fedsim.run(first.path / "experiment.yaml", out=tmp_path)
    assert again.summary["run_hash"] == first.summary["run_hash"]
    assert again.path.name == f"{first.path.name}-2"


def test_the_summary_agrees_with_the_record(tmp_path: Path) -> None:
    result = fedsim.run(SMALL, out=tmp_path)
    with sqlite3.connect(result.path / "record.sqlite") as database:
        up, down, lost = database.execute(
            "SELECT sum(bytes_up), sum(bytes_down), sum(bytes_lost) FROM nodes"
        ).fetchone()
        sent = database.execute("SELECT sum(size) FROM events WHERE kind = 'send'").fetchone()[0]
        links = database.execute("SELECT sum(bytes) FROM links").fetchone()[0]
        worked = database.execute("SELECT sum(size) FROM events WHERE kind = 'done'").fetchone()[0]
    database.close()
    total = result.summary
    assert (up, down, lost) == (total["bytes_up"], total["bytes_down"], total["bytes_lost"])
    assert sent == links == up  # on a star every byte crosses one link
    assert worked == total["work_samples"]


def test_metrics_are_columns_of_equal_length(tmp_path: Path) -> None:
    result = fedsim.run(SMALL, out=tmp_path, evaluate__every=2)
    columns = result.metrics()
    assert columns["round"].tolist() == [0, 2, 4, 6]
    assert {len(column) for column in columns.values()} == {4}
    assert columns["accuracy"][-1] == result.summary["accuracy"]
    assert np.all(np.diff(columns["time_s"]) > 0)
    assert np.all(np.diff(columns["bytes_up"]) > 0)


def test_the_last_round_is_always_measured(tmp_path: Path) -> None:
    result = fedsim.run(SMALL, out=tmp_path, evaluate__every=4)
    assert result.metrics()["round"].tolist() == [0, 4, 6]


def test_weights_have_the_models_names_and_shapes(tmp_path: Path) -> None:
    result = fedsim.run(SMALL, out=tmp_path)
    weights = result.weights()
    assert [array.shape for array in weights.values()] == [(10, 64), (10,)]
    stacked = np.concatenate([array.reshape(-1) for array in weights.values()])
    assert hashlib.sha256(stacked.tobytes()).hexdigest() == result.summary["weights_hash"]


def test_peers_keep_every_model_and_give_the_average(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    result = fedsim.run(PEERS, out=tmp_path)
    each = load_file(result.path / "weights.safetensors")["peers/weights"]
    assert each.shape == (6, 650)
    average = np.concatenate([array.reshape(-1) for array in result.weights().values()])
    assert np.allclose(each.mean(0), average, atol=1e-6)
    columns = result.metrics()
    assert np.all(columns["accuracy_min"] <= columns["accuracy"])
    assert np.all(columns["accuracy"] <= columns["accuracy_max"])
    assert columns["consensus_distance"][0] == 0.0 < columns["consensus_distance"][-1]


def test_overrides_as_keywords_and_by_path(tmp_path: Path) -> None:
    one = fedsim.run(SMALL, out=tmp_path, seed=4, strategy__local__lr=0.1)
    two = fedsim.run(SMALL, out=tmp_path, overrides={"seed": 4, "strategy.local.lr": 0.1})
    assert one.summary["run_hash"] == two.summary["run_hash"]
    assert one.summary["seed"] == 4


def test_a_file_and_a_dictionary_are_the_same(tmp_path: Path) -> None:
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(SMALL))
    from_file, from_dict = fedsim.run(file, out=tmp_path), fedsim.run(SMALL, out=tmp_path)
    assert from_file.summary["run_hash"] == from_dict.summary["run_hash"]


def test_progress_is_told_after_every_round(tmp_path: Path) -> None:
    seen: list[Progress] = []
    fedsim.run(SMALL, out=tmp_path, progress=seen.append)
    assert [p.round for p in seen] == list(range(7))
    assert seen[-1].clients == 18  # 3 of 6 clients in each of 6 rounds
    assert seen[-1].accuracy is not None
    assert all(a.sim_time_s < b.sim_time_s for a, b in itertools.pairwise(seen))


def test_runs_in_one_process_do_not_disturb_one_another(tmp_path: Path) -> None:
    alone = fedsim.run(SMALL, out=tmp_path).summary["run_hash"]
    fedsim.run(PEERS, out=tmp_path)
    assert fedsim.run(SMALL, out=tmp_path).summary["run_hash"] == alone


def test_the_global_generators_are_left_alone(tmp_path: Path) -> None:
    import random

    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    threads = torch.get_num_threads()
    fedsim.run(SMALL, out=tmp_path)
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before
    assert torch.get_num_threads() == threads


class Counting(torch.nn.Linear):
    """A softmax model that notes how many threads torch may use while it computes."""

    threads: ClassVar[set[int]] = set()

    def __init__(self) -> None:
        super().__init__(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.threads.add(torch.get_num_threads())
        return super().forward(x.flatten(1))


@pytest.mark.parametrize("threads", [1, 3])
def test_a_check_tries_a_model_out_with_as_many_threads_as_a_run(threads: int) -> None:
    Counting.threads.clear()
    fedsim.check({**SMALL, "model": f"{__name__}:Counting"}, compute__threads=threads)
    assert Counting.threads == {threads}


def test_the_state_of_the_global_generators_does_not_matter(tmp_path: Path) -> None:
    import random

    random.seed(1)
    one = fedsim.run(SMALL, out=tmp_path).summary["run_hash"]
    random.seed(2)
    assert fedsim.run(SMALL, out=tmp_path).summary["run_hash"] == one


def test_a_timing_only_run_has_its_own_folder_and_report(tmp_path: Path) -> None:
    result = fedsim.run(SMALL, out=tmp_path, timing_only=True, record__report=True)
    assert result.path.name.endswith("-timing")
    assert (result.path / "report.html").exists()
    assert not (result.path / "weights.safetensors").exists()
    assert result.summary["accuracy"] is None


BAD = [
    ({"strategy.fraction_train": 1.5}, "strategy.fraction_train: 1.5: must be between 0 and 1"),
    ({"strategy.min_train_nodes": 9}, "strategy.min_train_nodes: 9: at most 6, the number of clients"),
    ({"strategy.fraction": 0.5}, "strategy.fraction: unknown key; did you mean fraction_train?"),
    ({"strategy": {"name": "fedamd", "participants": 9, "local": {"steps": 2}}},
     "strategy.participants: 9: at most 6, the number of clients"),
    ({"strategy": {"name": "fedamd", "participants": 3, "p": 1.5, "local": {"steps": 2}}},
     "strategy.p: 1.5: must be at most 1"),
    ({"strategy": {"name": "fedamd", "participants": 3}},
     "strategy.local.steps: FedAMD counts local steps, not epochs; give local.steps"),
    ({"strategy.name": "fedavgg"}, "strategy.name: fedavgg: no such strategy; did you mean fedavg?"),
    ({"strategy.local.steps": 0}, "strategy.local.steps: 0: must be at least 1"),
    ({"topology": {"name": "random_regular", "degree": 3}}, "topology.degree: 3: nodes x degree must be even (7 x 3)"),
    ({"topology": "json:dumps"}, "topology.obj: is required"),
    ({"topology": "networkx:empty_graph"}, "topology: networkx:empty_graph: must return a connected graph"),
    ({"model": "lenet9"}, "model: lenet9: no such model; did you mean lenet5?"),
    ({"model": {"name": "mlp", "hidden": 0}}, "model.hidden: 0:"),
    ({"model": "torch.nn:Flatten"}, "model: Flatten: has no trainable parameters"),
    ({"data.partition": {"name": "dirichlet"}}, "data.partition.alpha: is required"),
    ({"data.partition": "natural"}, "data.partition"),
    ({"data.clients": 5000}, "data.clients: 5000"),
    ({"data.name": "mnist", "data.root": "nowhere"}, "data.name: mnist: its files were not found"),
    ({"churn": {"name": "exponential", "online_s": 0, "offline_s": 1}}, "churn.online_s: 0: must be greater than 0"),
    ({"churn": {"name": "exponential"}}, "churn.online_s: is required"),
    ({"faults": [{"name": "crash", "at_s": 1, "count": 7}]}, "faults.0.count: 7: at most 6"),
    ({"faults": [{"name": "crash", "at_s": 1}]}, "faults.0.nodes: give exactly one of nodes, count and fraction"),
    ({"faults": [{"name": "crsh", "at_s": 1}]}, "faults.0.name: crsh: no such fault; did you mean crash?"),
    ({"compute.device": "cuda:99"}, "compute.device"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "text"), BAD, ids=[text[:40] for _, text in BAD])
def test_a_mistake_is_one_clear_line_before_anything_runs(
    change: dict[str, Any], text: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        fedsim.run(SMALL, out=tmp_path / "runs", overrides=change)
    (problem,) = caught.value.problems
    assert str(dataclasses.replace(problem, source="")).startswith(text)
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_mistakes_in_several_parts_are_reported_together(tmp_path: Path) -> None:
    churn = {"name": "exponential", "online_s": -1, "offline_s": 1}
    faults = [{"name": "crash", "at": 1}, {"name": "crsh"}]
    with pytest.raises(ConfigError) as caught:
        fedsim.check(SMALL, {"topology": "rnig", "model": "lenet9", "churn": churn, "faults": faults})
    keys = [problem.key for problem in caught.value.problems]
    assert keys == ["topology", "model", "churn.online_s", "faults.0.at", "faults.1.name"]


def test_timing_only_is_refused_where_a_choice_depends_on_values(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"stop\.target: .*timing-only"):
        fedsim.run(SMALL, out=tmp_path, timing_only=True, overrides={"stop.target": {"accuracy": 0.5}})


def test_an_output_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        fedsim.run(SMALL, out=tmp_path / "file")


def test_a_run_that_breaks_keeps_its_record(tmp_path: Path) -> None:
    with pytest.raises(RunError) as caught:
        fedsim.run(SMALL, out=tmp_path, overrides={"strategy.local.lr": 1e38, "stop.rounds": 50})
    path: Path = caught.value.run_path  # type: ignore[attr-defined]
    with sqlite3.connect(path / "record.sqlite") as database:
        assert database.execute("SELECT count(*) FROM events").fetchone()[0] > 0
    database.close()
    assert "unfinished" in fedsim.report(path).read_text()


def test_control_c_keeps_what_was_recorded(tmp_path: Path) -> None:
    file = tmp_path / "long.yaml"
    file.write_text(yaml.safe_dump({**SMALL, "name": "long", "stop": {"rounds": 100_000}}))
    command = [sys.executable, "-m", "fedsim", "run", str(file), "--out", str(tmp_path / "runs")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    record = None
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and record is None:
        time.sleep(0.2)
        record = next((tmp_path / "runs").glob("*/record.sqlite-wal"), None)
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    _, text = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "fedsim report" in text
    assert "Traceback" not in text
    run = next((tmp_path / "runs").iterdir())
    with sqlite3.connect(run / "record.sqlite") as database:
        assert database.execute("SELECT max(round) FROM rounds").fetchone()[0] > 0
    database.close()


def test_a_user_can_bring_every_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_own_lab.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    experiment = {
        "data": {"name": "my_own_lab:blobs", "clients": 4, "partition": "my_own_lab:deal", "noise": 0.5},
        "model": {"name": "my_own_lab:Net", "width": 6},
        "strategy": {"name": "my_own_lab:Alone", "local": {"epochs": 2, "lr": 0.5}},
        "topology": {"name": "networkx:path_graph"},
        "churn": "my_own_lab:nap",
        "stop": {"rounds": 5},
        "record": {"report": False},
    }
    result = fedsim.run(experiment, out=tmp_path)
    assert result.summary["accuracy"] > 0.9
    assert list(result.weights()) == ["layer.weight", "layer.bias", "out.weight", "out.bias"]
    with sqlite3.connect(result.path / "record.sqlite") as database:
        assert database.execute("SELECT count(*) FROM presence WHERE online = 0").fetchone()[0] == 1
    database.close()


OWN = """
import numpy as np
import torch
from fedsim.learn.data.datasets import Dataset
from fedsim.learn.local import LocalSGD
from fedsim.methods.peer import PeerStrategy

def blobs(*, noise: float, seed: int):
    rng = np.random.default_rng(seed)
    def draw(n):
        y = rng.integers(0, 2, n)
        return torch.tensor(rng.normal(size=(n, 3)) * noise + 4 * y[:, None]).float(), torch.tensor(y)
    x, y = draw(80)
    x_test, y_test = draw(40)
    return Dataset("blobs", x, y, x_test, y_test, classes=2)

def deal(labels, clients):
    return [np.arange(len(labels))[client::clients] for client in range(clients)]

class Net(torch.nn.Module):
    def __init__(self, width: int, classes: int):
        super().__init__()
        self.layer, self.out = torch.nn.Linear(3, width), torch.nn.Linear(width, classes)
    def forward(self, x):
        return self.out(torch.tanh(self.layer(x)))

class Alone(PeerStrategy):
    def __init__(self, *, local):
        self.update = LocalSGD(local)
    def run(self, node):
        model = node.initial_model
        for round in node.rounds():
            model = yield from node.train(self.update, model, round)
            node.finish(round, model)

def nap(node):
    if node.id == 2:
        yield node.clock.timeout(10_000)
        node.set_online(False)
        yield node.clock.timeout(10_000)
        node.set_online(True)
    yield node.clock.timeout(0)
"""
