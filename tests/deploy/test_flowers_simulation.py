"""Apps that fedsim has written run in Flower's own simulation, unchanged."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from fedsim.flower.deploy.template import write_app

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(find_spec("ray") is None, reason="needs flwr[simulation]"),
]

SETTINGS = """[superlink]
default = "sim"

[superlink.sim]
options.num-supernodes = 3
options.backend.client-resources.num-cpus = 1
"""
PLAIN = re.compile(r"\x1b\[[0-9;]*m")


@pytest.mark.parametrize("strategy", ["fedavg", "fedamd", "scaffold"])
def test_a_written_app_runs_there(strategy, tmp_path):
    app, home = tmp_path / "app", tmp_path / "home"
    write_app(app, strategy)
    home.mkdir()
    (home / "config.toml").write_text(SETTINGS)
    folder = Path(sys.executable).parent
    env = {**os.environ, "FLWR_HOME": str(home), "FLWR_TELEMETRY_ENABLED": "0"}
    env["PATH"] = f"{folder}{os.pathsep}{env['PATH']}"
    changes = f"num-server-rounds=2 num-nodes=3 save-as='{tmp_path / 'model'}'"
    command = [str(folder / "flwr"), "run", str(app), "sim", "--stream", "--run-config", changes]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=500, check=False)
    output = PLAIN.sub("", done.stdout + done.stderr)
    assert "[ROUND 2/2]" in output, output
    assert (tmp_path / "model").exists(), output
