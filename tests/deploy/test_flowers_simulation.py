"""Apps that fedsim has written run in Flower's own simulation, unchanged, every server strategy's."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from flwr.serverapp.strategy import Strategy
from safetensors.numpy import load_file

from fedsim import parts
from fedsim.flower.apps.app import run_app
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
FLWR = str(Path(sys.executable).parent / "flwr")
PLAIN = re.compile(r"\x1b\[[0-9;]*m")
SERVERS = {
    name: part
    for name in parts.names("strategies")
    if isinstance(part := parts.find("strategies", name), type) and issubclass(part, Strategy)
}
IN_REAL_TIME = {"fedasync", "fedbuff", "krum", "multikrum"}
"""Who was quicker in real time decides which model a client begins with, or which of equally good replies is taken."""


@pytest.fixture(scope="module")
def flower(tmp_path_factory):
    """Return the environment of ``flwr run``; what it has left running in the background is ended."""
    home = tmp_path_factory.mktemp("home")
    (home / "config.toml").write_text(SETTINGS)
    ports = {"FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": free_port(), "FLWR_LOCAL_CONTROL_API_PORT": free_port()}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    # An address of its own: Ray would wait for ever for a cluster that was here and has been killed.
    own = {"FLWR_HOME": str(home), "FLWR_TELEMETRY_ENABLED": "0", "RAY_ADDRESS": "local", "PATH": path}
    env = {**os.environ, **ports, **own}
    for _ in range(
        4
    ):  # a SuperLink of its own must be there within 15 s, which a busy machine may fail to do
        if not subprocess.run([FLWR, "list", "sim"], env=env, capture_output=True, check=False).returncode:
            break
    yield env
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended meanwhile
            if f"FLWR_HOME={home}\0".encode() in (place / "environ").read_bytes():
                os.kill(int(place.name), signal.SIGTERM)


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return str(one.getsockname()[1])


@pytest.mark.parametrize("strategy", SERVERS)
def test_a_written_app_runs_there_as_here(strategy, flower, tmp_path):
    """Equal bit for bit, but for those of Flower's own: they sum in the order in which replies come."""
    app = tmp_path / "app"
    write_app(app, strategy)
    changes = "num-server-rounds=2 num-nodes=3"
    quiet = {"record.report": False}
    run_app(
        app, nodes=3, run_config=f"{changes} save-as='{tmp_path / 'here'}'", overrides=quiet, out=tmp_path
    )
    command = [FLWR, "run", str(app), "sim", "--stream", "--run-config"]
    command.append(f"{changes} save-as='{tmp_path / 'there'}'")
    done = subprocess.run(command, env=flower, capture_output=True, text=True, timeout=500, check=False)
    output = PLAIN.sub("", done.stdout + done.stderr)
    assert "[ROUND 2/2]" in output, output
    assert (tmp_path / "there").exists(), output
    here, there = load_file(tmp_path / "here"), load_file(tmp_path / "there")
    assert {name: one.shape for name, one in here.items()} == {name: one.shape for name, one in there.items()}
    most = 1e-4 if SERVERS[strategy].__module__.startswith("flwr.") else 0.0
    for name in here if strategy not in IN_REAL_TIME else ():
        atol = (
            most * np.abs(here[name]).max()
        )  # what it says tells whether a busy machine has lost a reply there
        np.testing.assert_allclose(there[name], here[name], rtol=0, atol=atol, err_msg=output)
