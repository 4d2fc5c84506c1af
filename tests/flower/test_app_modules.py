"""An app that is written of an experiment takes along the modules that lie beside it."""

from __future__ import annotations

import subprocess
import sys

import pytest

import fedsim
from fedsim.errors import ConfigError
from fedsim.flower.apps.app import run_app
from fedsim.flower.deploy.template import write_app

EXPERIMENT = """
data: {clients: 2, partition: {name: dirichlet, alpha: 1.0}}
model: mymodel:Net
strategy: {name: fedavg, fraction_evaluate: 0.0, local: {steps: 2}}
compute: {engine: sequential}
stop: {rounds: 2}
record: {report: false}
"""
NET = """
from torch import nn
from helpers import WIDTH

def Net(*, shape: tuple[int, ...], classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, WIDTH), nn.ReLU(), nn.Linear(WIDTH, classes))
"""


@pytest.fixture
def experiment(tmp_path):
    folder = tmp_path / "lab"
    folder.mkdir()
    (folder / "e.yaml").write_text(EXPERIMENT)
    (folder / "mymodel.py").write_text(NET)
    (folder / "helpers.py").write_text("WIDTH = 3\n")
    (folder / "queue.py").write_text("raise RuntimeError('the queue beside the experiment was imported')\n")
    return folder / "e.yaml"


def test_the_app_has_its_modules_and_gives_the_same_weights(experiment, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    app = tmp_path / "paper-app"
    written = {path.relative_to(app).as_posix() for path in write_app(app, experiment=experiment)}
    assert {"mymodel.py", "helpers.py", "paper_app/client_app.py"} <= written
    assert not (app / "queue.py").exists()
    assert (app / "mymodel.py").read_text() == NET
    world = tmp_path / "world.yaml"
    world.write_text("record: {report: false}\n")
    found = run_app(app, nodes=2, world=world, run_config="num-server-rounds=2", out=tmp_path / "runs")
    wanted = fedsim.run(experiment, out=tmp_path / "runs").weights()
    assert [array.tolist() for array in found.weights().values()] == [a.tolist() for a in wanted.values()]


def test_an_app_cannot_have_the_name_of_such_a_module(experiment, tmp_path):
    with pytest.raises(ConfigError, match="called helpers, and so is a module of the experiment"):
        write_app(tmp_path / "helpers", experiment=experiment)
    assert not (tmp_path / "helpers").exists()


@pytest.mark.slow
def test_worker_processes_are_not_shadowed(experiment, tmp_path):
    app = tmp_path / "paper-app"
    write_app(app, experiment=experiment)
    with (app / "pyproject.toml").open("a") as file:
        file.write("\n[tool.fedsim]\nworkers = 1\n")
    start = tmp_path / "start"
    start.mkdir()
    for name in ("queue", "statistics", "torch", "numpy", "mymodel"):
        (start / f"{name}.py").write_text(f"raise RuntimeError('{name} was imported')\n")
    (start / "world.yaml").write_text("record: {report: false}\n")
    words = [sys.executable, "-m", "fedsim", "flower", "run", str(app), "--nodes", "2", "--quiet"]
    words += ["--run-config", "num-server-rounds=1", "--config", "world.yaml"]
    done = subprocess.run(words, cwd=start, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "was imported" not in done.stderr
