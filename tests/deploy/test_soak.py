"""A deployment that loses a node: FEDSIM_SOAK=1 runs it, because it takes minutes until a SuperLink notices."""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from fedsim.flower.template import write_app
from strategies.modest_sampling import order

sys.path.insert(0, str(Path(__file__).parent))
from loopback import deployed, is_open, members

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(os.environ.get("FEDSIM_SOAK") != "1", reason="FEDSIM_SOAK=1 runs it"),
]

RELAY = """
seed: 3
data: {name: digits, clients: 4}
model: softmax
strategy:
  name: modest_flower
  sample_size: 3
  success_fraction: 0.6
  ping_timeout_s: 90
  local: {steps: 5, batch_size: 32, lr: 0.05}
stop: {rounds: 2}
"""


def lose_one(folder: Path, app: Path, nodes: int, victim: int, rounds: int) -> dict[str, np.ndarray]:
    """Run an app, kill a SuperNode that has just been asked to train, and return the model of the finished run."""
    saved = folder / "weights.safetensors"
    config = f'num-nodes={nodes} num-server-rounds={rounds} round-timeout-s=300.0 save-as="{saved}"'
    with deployed(folder / "deployment", nodes) as deployment, ThreadPoolExecutor(1) as aside:
        run = aside.submit(
            deployment.flwr, "run", str(app), "dep", "--stream", "--run-config", config, timeout_s=1500.0
        )
        log, process = deployment.folder / f"node{victim}.log", deployment.processes[1 + victim]
        deployment.wait_until(lambda: "Receiving: train" in log.read_text(), "a node trains")
        deployment.processes.remove(process)
        deployment.kill(process)
        done = run.result()
        status = deployment.last_run()["status"]
        assert status == "finished:completed", f"{status}\n{done.stdout}\n{done.stderr}\n{deployment.logs()}"
    assert [port for port in deployment.ports if is_open(port)] == []
    assert [left for one in (*deployment.processes, process) for left in members(one.pid)] == []
    return load_file(saved)


def test_a_supernode_that_is_killed_in_the_middle_of_a_round(tmp_path: Path) -> None:
    write_app(tmp_path / "app", "fedamd")
    weights = lose_one(tmp_path, tmp_path / "app", nodes=3, victim=2, rounds=3)
    assert all(np.isfinite(array).all() for array in weights.values())


def test_modests_relay_goes_on_without_a_member_of_the_sample(tmp_path: Path) -> None:
    (tmp_path / "relay.yaml").write_text(RELAY)
    write_app(tmp_path / "app", experiment=tmp_path / "relay.yaml")
    first = order(["0", "1", "2", "3"], 1)[0]
    weights = lose_one(tmp_path, tmp_path / "app", nodes=4, victim=first, rounds=2)
    assert all(np.isfinite(array).all() for array in weights.values())
    assert any(array.any() for array in weights.values())
