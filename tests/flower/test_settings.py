"""What a simulation is told of an app: in its pyproject.toml, in the world, by the command; the last one counts."""

from __future__ import annotations

import json
import sys
from types import ModuleType

import pytest
from typer.testing import CliRunner

from fedsim.cli.app import app as cli
from fedsim.errors import ConfigError, RunError
from fedsim.flower import run_app
from fedsim.flower.apps.project import importable, read_project
from fedsim.flower.apps.worldfile import read_world
from fedsim.spec.experiment import load

QUIET = {"record.report": False}
RAISES = ("    target = float", '    raise ZeroDivisionError("no data")\n    target = float')


def told(folder, world=None, nodes=2, **overrides):
    """Return what comes of all places together."""
    given = {f"app.{key}": value for key, value in overrides.items()}
    return read_world(read_project(folder), nodes, world, given)[1]


def test_the_command_replaces_the_world_which_replaces_the_apps_own(app, tmp_path):
    folder = app("plain", fedsim='workers = 1\non_failure = "stop"\nsamples_per_message = 5')
    world = tmp_path / "world.yaml"
    world.write_text("seed: 3\napp: {workers: 2, on_failure: drop}\n")
    assert told(folder).model_dump(exclude={"node_config"}) == {
        "workers": 1,
        "samples_per_message": 5,
        "on_failure": "stop",
    }
    found = told(folder, world, workers=0)
    assert (found.workers, found.on_failure, found.samples_per_message) == (0, "drop", 5)
    assert read_world(read_project(folder), 2, world, {})[0].seed == 3


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ("app: {worker: 1}", "world.yaml:2: app.worker: unknown key; did you mean workers?"),
        ("app:\n  workers: -1", "world.yaml:3: app.workers: -1: must be at least 0"),
        ("app:\n  on_failure: go", "world.yaml:3: app.on_failure: go: must be"),
        (
            "app:\n  node_config:\n    path: [a]",
            "world.yaml:4: app.node_config.path: ['a']: has 1 values for 2",
        ),
        ("app:\n  node_config:\n    path: {a: 1}", "world.yaml:4: app.node_config.path"),
    ],
)
def test_a_mistake_in_the_world_names_its_line(block, message, app, tmp_path):
    world = tmp_path / "world.yaml"
    world.write_text(f"seed: 1\n{block}\n")
    with pytest.raises(ConfigError) as caught:
        told(app("plain"), world)
    assert message in str(caught.value)


def test_other_experiments_have_no_app():
    with pytest.raises(ConfigError, match="app: unknown key"):
        load({"data": {"clients": 2}, "strategy": "fedavg", "stop": {"rounds": 1}, "app": {"workers": 1}})


def test_an_app_may_bring_its_world(app, tmp_path):
    """Latencies of 50 ms both ways, and 10 samples at 1 ms: four messages and two computations."""
    folder = app("plain", **{"fedsim.world": "seed = 4\nnetwork = {latency_ms = 50, header_bytes = 0}"})
    config = {"nodes": 1, "run_config": "fraction-train=1.0 num-server-rounds=1", "out": tmp_path}
    server = folder / "plain_app" / "server.py"
    server.write_text(
        server.read_text().replace("FedAvg(", "FedAvg(min_train_nodes=1, min_evaluate_nodes=1, ")
    )
    server.write_text(server.read_text().replace("FedAvg(", "FedAvg(min_available_nodes=1, "))
    result = run_app(folder, overrides=QUIET, **config)
    assert (result.summary["seed"], result.summary["sim_time_s"]) == (4, pytest.approx(0.2 + 0.010 + 0.004))
    world = tmp_path / "world.yaml"
    world.write_text("seed: 5\n")
    assert run_app(folder, world=world, overrides=QUIET, **config).summary["sim_time_s"] < 0.1


def test_a_mistake_in_the_apps_world_names_the_file(app, tmp_path):
    folder = app("plain", **{"fedsim.world": "sede = 4"})
    with pytest.raises(ConfigError, match=r"pyproject.toml: sede: unknown key; did you mean seed\?"):
        run_app(folder, nodes=2, out=tmp_path)


LOOKS = """    import json
    config = dict(sorted(context.node_config.items()))
    with open(context.run_config["file"], "a") as file:
        file.write(json.dumps(config) + "\\n")
    target = float"""


def test_clients_find_their_values(app, tmp_path):
    seen = tmp_path / "seen"
    folder = app("plain", {"client.py": ("    target = float", LOOKS)})
    with (folder / "pyproject.toml").open("a") as file:
        file.write(f'file = "{seen}"\n')
    world = tmp_path / "world.yaml"
    world.write_text("app: {node_config: {dataset-path: [a.csv, b.csv], limit: 5}}\n")
    run_app(
        folder,
        nodes=2,
        world=world,
        node_config="limit=7 a.b=true name='x y'",
        run_config="fraction-train=1.0 num-server-rounds=1",
        overrides=QUIET,
        out=tmp_path / "runs",
    )
    common = {"limit": 7, "a.b": True, "name": "x y", "num-partitions": 2}
    found = {one["partition-id"]: one for one in map(json.loads, seen.read_text().splitlines())}
    assert found == {
        node: {**common, "dataset-path": path, "partition-id": node}
        for node, path in enumerate(["a.csv", "b.csv"])
    }


@pytest.mark.parametrize("text", ["path", "path=x.csv"])
def test_a_wrong_node_config_is_one_line(text, app, tmp_path):
    with pytest.raises(
        ConfigError, match=f"--node-config: {text}: must be key=value pairs as in TOML"
    ) as caught:
        run_app(app("plain"), nodes=2, node_config=text, out=tmp_path)
    assert str(caught.value).endswith("text stands in quotes of its own: name='x y'")


def test_failures_are_shown_and_stopping_is_an_option(app, tmp_path):
    folder = app("plain", {"client.py": RAISES})
    out = ["--nodes", "2", "--out", str(tmp_path / "runs"), "--set", "record.report=false", "--quiet"]
    done = CliRunner().invoke(cli, ["flower", "run", str(folder), *out])
    assert done.exit_code == 0
    assert "error_replies" in done.output
    with pytest.raises(RunError, match="ZeroDivisionError"):
        run_app(folder, nodes=2, overrides={**QUIET, "app.on_failure": "stop"}, out=tmp_path / "runs")


def test_a_module_may_have_anything_for_a_path(tmp_path):
    """TensorBoard puts one in ``sys.modules`` whose ``__path__`` is a number."""
    with importable(tmp_path):
        for number, (file, path) in enumerate([(None, 1), (3, None), (str(tmp_path / "own.py"), 1)]):
            odd = ModuleType(f"odd_{number}")
            odd.__file__, odd.__path__ = file, path
            sys.modules[odd.__name__] = odd
    assert "odd_2" not in sys.modules
    assert sys.modules.pop("odd_0") is not sys.modules.pop("odd_1")
