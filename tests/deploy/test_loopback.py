"""A generated app in a real deployment gives the weights of its simulation, bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from fedsim.flower import run_app
from fedsim.flower.deploy.loopback import deployed, is_open, members
from fedsim.flower.deploy.template import write_app

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(not Path("/proc").exists(), reason="looks for processes in /proc"),
]


@pytest.mark.parametrize(
    "strategy", ["fedamd", "fedrep"]
)  # one with two roles, one with a part that clients keep
def test_two_supernodes(tmp_path: Path, strategy: str) -> None:
    app, saved = tmp_path / "app", tmp_path / "weights.safetensors"
    write_app(app, strategy)
    simulated = run_app(app, nodes=2, out=tmp_path / "runs")
    with deployed(tmp_path / "deployment", 2) as deployment:
        done = deployment.flwr("run", str(app), "dep", "--stream", "--run-config", f'save-as="{saved}"')
        status = deployment.last_run()["status"]
        assert status == "finished:completed", f"{status}\n{done.stdout}\n{done.stderr}\n{deployment.logs()}"
    wanted, found = simulated.weights(), load_file(saved)
    assert sorted(wanted) == sorted(found)
    for name in wanted:
        np.testing.assert_array_equal(found[name], wanted[name])
    assert [port for port in deployment.ports if is_open(port)] == []
    assert [members(process.pid) for process in deployment.processes] == [[], [], []]
