"""Long deployments, most of which lose a node: FEDSIM_SOAK=1 runs them; a SuperLink takes minutes to notice a loss."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from fedsim.flower import run_app
from fedsim.flower.deploy.loopback import deployed, is_open, members
from fedsim.flower.deploy.template import write_app
from strategies.modest.sampling import order

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

CURRICULUM = """
seed: 4
data: {name: digits, clients: 4, partition: {name: dirichlet, alpha: 0.5}}
model: softmax
strategy:
  name: fedprox
  mu: 0.1
  participants: 2
  timeout_s: 300
  select: {name: curriculum, rounds: 3, score: local, b: 0.5}
  local: {epochs: 2, batch_size: 16, lr: 0.05, curriculum: {score: both, floor: 16}}
stop: {rounds: 3}
"""


def lose_one(
    folder: Path, app: Path, nodes: int, victims: Sequence[int], rounds: int
) -> dict[str, np.ndarray]:
    """Run an app, kill that one of some SuperNodes that is asked to train first, and return the model in the end."""
    saved = folder / "weights.safetensors"
    config = f'num-nodes={nodes} num-server-rounds={rounds} round-timeout-s=300.0 save-as="{saved}"'
    with deployed(folder / "deployment", nodes) as deployment, ThreadPoolExecutor(1) as aside:
        run = aside.submit(
            deployment.flwr, "run", str(app), "dep", "--stream", "--run-config", config, timeout_s=1500.0
        )

        def training() -> list[int]:
            logs = {node: deployment.folder / f"node{node}.log" for node in victims}
            return [node for node, log in logs.items() if "Receiving: train" in log.read_text()]

        deployment.wait_until(training, "a node trains")
        process = deployment.processes[1 + training()[0]]
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
    weights = lose_one(tmp_path, tmp_path / "app", nodes=3, victims=[2], rounds=3)
    assert all(np.isfinite(array).all() for array in weights.values())


def test_modests_relay_goes_on_without_a_member_of_the_sample(tmp_path: Path) -> None:
    (tmp_path / "relay.yaml").write_text(RELAY)
    write_app(tmp_path / "app", experiment=tmp_path / "relay.yaml")
    first = order(["0", "1", "2", "3"], 1)[0]
    weights = lose_one(tmp_path, tmp_path / "app", nodes=4, victims=[first], rounds=2)
    assert all(np.isfinite(array).all() for array in weights.values())
    assert any(array.any() for array in weights.values())


def curriculum_app(folder: Path) -> Path:
    """Write an app whose clients order their samples, and whose server ranks its clients."""
    (folder / "curriculum.yaml").write_text(CURRICULUM)
    write_app(folder / "app", experiment=folder / "curriculum.yaml")
    return folder / "app"


def test_the_curriculum_goes_on_without_a_client_of_its_pool(tmp_path: Path) -> None:
    weights = lose_one(tmp_path, curriculum_app(tmp_path), nodes=4, victims=range(4), rounds=3)
    assert all(np.isfinite(array).all() for array in weights.values())
    assert any(array.any() for array in weights.values())


def test_the_curriculum_on_four_supernodes_is_that_of_the_simulation(tmp_path: Path) -> None:
    app, saved = curriculum_app(tmp_path), tmp_path / "weights.safetensors"
    wanted = run_app(app, nodes=4, out=tmp_path / "runs").weights()
    with deployed(tmp_path / "deployment", 4) as deployment:
        done = deployment.flwr("run", str(app), "dep", "--stream", "--run-config", f'save-as="{saved}"')
        status = deployment.last_run()["status"]
        assert status == "finished:completed", f"{status}\n{done.stdout}\n{done.stderr}\n{deployment.logs()}"
    found = load_file(saved)
    assert sorted(found) == sorted(wanted)
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array)
