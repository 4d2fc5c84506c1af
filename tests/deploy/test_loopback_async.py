"""An asynchronous strategy on a real SuperLink: it finishes, and its model has learned."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from fedsim.flower import run_app
from fedsim.flower.deploy.loopback import deployed
from fedsim.flower.deploy.template import write_app

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(not Path("/proc").exists(), reason="looks for processes in /proc"),
]

EXPERIMENT = {
    "data": {"clients": 2},
    "model": "softmax",
    "strategy": {"name": "fedbuff", "concurrency": 2, "buffer": 2, "local": {"steps": 5, "lr": 0.1}},
    "stop": {"rounds": 3},
}


def test_fedbuff_on_two_supernodes(tmp_path: Path) -> None:
    """Who answers first is up to the machine, so the weights are near those of the simulation, and not the same."""
    app, saved, file = tmp_path / "app", tmp_path / "weights.safetensors", tmp_path / "experiment.yaml"
    file.write_text(yaml.safe_dump(EXPERIMENT))
    write_app(app, experiment=file)
    simulated = run_app(app, nodes=2, out=tmp_path / "runs").weights()
    with deployed(tmp_path / "deployment", 2) as deployment:
        done = deployment.flwr("run", str(app), "dep", "--stream", "--run-config", f'save-as="{saved}"')
        status = deployment.last_run()["status"]
        assert status == "finished:completed", f"{status}\n{done.stdout}\n{done.stderr}\n{deployment.logs()}"
    found = load_file(saved)
    for name, wanted in simulated.items():
        assert 0 < np.linalg.norm(found[name] - wanted) + 1e-12 < np.linalg.norm(wanted)
