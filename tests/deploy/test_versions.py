"""One and the same app under several versions of Flower, each in an environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from functools import cache
from importlib.metadata import version
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
APPS = ROOT / "tests" / "flower" / "apps"
OLDEST = "1.33.0"

RUN = """
import json, sys
from importlib.metadata import version
from pathlib import Path

import fedsim
from fedsim.flower import run_app
from fedsim.flower.deploy.template import write_app

apps, out = Path(sys.argv[1]), Path(sys.argv[2])
world = {"seed": 3, "network": {"latency_ms": 5}, "record": {"report": False}}
churn = {"name": "exponential", "online_s": 0.05, "offline_s": 0.02}
found = {"flwr": version("flwr")}


def keep(name, result):
    found[name] = [result.summary[key] for key in ("event_hash", "weights_hash")]


keep("messages", run_app(apps / "plain", nodes=6, world={**world, "churn": churn}, out=out))
keep("workers", run_app(apps / "plain", nodes=6, world={**world, "app": {"workers": 1}}, out=out))
keep("former API", run_app(apps / "legacy", nodes=3, world=world, out=out))
write_app(out / "amd", "fedamd")
keep("written app", run_app(out / "amd", nodes=3, world=world, run_config="num-server-rounds=2", out=out))
local = {"steps": 2, "batch_size": 8, "lr": 0.1}
data = {"name": "digits", "clients": 6, "partition": {"name": "dirichlet", "alpha": 1.0}}
for name in ("fedadam", "krum", "qfedavg"):
    strategy = {"name": name, "participants": 5, "local": local}
    given = {**world, "data": data, "model": "softmax", "strategy": strategy, "stop": {"rounds": 2}}
    keep(name, fedsim.run(given, out=out))
print(json.dumps(found))
"""


def found(python: Path | str, folder: Path) -> dict[str, object]:
    """Return what an interpreter's version of Flower makes of the apps."""
    folder.mkdir(exist_ok=True)
    command = [str(python), "-c", RUN, str(APPS), str(folder)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "FLWR_TELEMETRY_ENABLED": "0", "FEDSIM_WORKERS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=folder, check=False)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


@cache
def here() -> str:
    """Return the site-packages of the environment that the tests run in."""
    return sysconfig.get_path("purelib")


def environment(wanted: str, folder: Path) -> Path:
    """Make an environment with a version of Flower, and what is installed here for all that it lets be."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = folder / "bin" / "python"
    own = subprocess.run(
        [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    (Path(own) / "here.pth").write_text(f"{here()}\n")  # after its own, so that its own come first
    command = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", f"flwr=={wanted}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"flwr {wanted} cannot be installed: {done.stderr.strip().splitlines()[-1]}")
    return python


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    return found(sys.executable, tmp_path_factory.mktemp("here") / "runs")


@pytest.mark.parametrize("wanted", [OLDEST, "1.38.0", "1.41.0", "1.42.0", "1.43.0"])
def test_every_version_gives_the_same_events_and_weights(wanted, usual, tmp_path):
    """What is installed here is one of them; a version that the index lacks, or refuses, is skipped."""
    other = found(environment(wanted, tmp_path / "env"), tmp_path / "runs")
    assert other.pop("flwr") == wanted
    assert other == {name: one for name, one in usual.items() if name != "flwr"}


def test_the_oldest_version_tried_is_the_oldest_that_setup_allows(usual):
    text = (ROOT / "setup.cfg").read_text(encoding="utf-8")
    assert f"flwr>={OLDEST.removesuffix('.0')}" in text
    assert usual["flwr"] == version("flwr")
