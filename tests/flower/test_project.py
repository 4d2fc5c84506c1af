"""Reading apps: what may be written in a pyproject.toml, and what every mistake is answered with."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from fedsim.errors import ConfigError
from fedsim.flower import check_version
from fedsim.flower.apps.project import importable, load_client, load_server, read_project

APPS = Path(__file__).parent / "apps"


def test_a_project():
    project = read_project(APPS / "plain", "lr=1 num-server-rounds=7")
    assert (project.name, project.serverapp) == ("plain", "plain_app.server:app")
    assert project.run_config == {"num-server-rounds": 7, "fraction-train": 0.5, "lr": 1.0}
    assert type(project.run_config["lr"]) is float
    assert (project.settings.workers, project.settings.on_failure) == (None, "drop")


def test_values_are_those_of_toml(app):
    folder = app("rows")
    project = read_project(folder, """strategy="Fed Avg" mod='x=y'""")
    assert project.run_config == {"strategy": "Fed Avg", "mod": "x=y"}


def test_nested_tables_have_dotted_keys(app):
    folder = app("plain", **{"flwr.app.config.train": "lr = 0.5\nsteps = 3"})
    project = read_project(folder, "train.lr=0.25")
    assert (project.run_config["train.lr"], project.run_config["train.steps"]) == (0.25, 3)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("num-server-round=3", "the app has no such key; did you mean num-server-rounds?"),
        ("num-server-rounds=three", "must be key=value pairs as in TOML"),
        ("num-server-rounds=true", "must be of the kind of the app's own value, 3"),
        ("lr='fast'", "must be of the kind of the app's own value, 0.1"),
        ("lr=[1]", "must be of the kind of the app's own value, 0.1"),
        ("num-server-rounds", "must be key=value pairs as in TOML"),
        ("lr='x", "must be key=value pairs as in TOML"),
    ],
)
def test_a_wrong_run_config(config, message):
    with pytest.raises(ConfigError) as caught:
        read_project(APPS / "plain", config)
    assert message in str(caught.value)


@pytest.mark.parametrize("part", ["serverapp", "clientapp"])
def test_a_missing_component(part, app):
    folder = app("plain", {"pyproject.toml": (f"{part} = ", f"# {part} = ")})
    with pytest.raises(
        ConfigError, match=rf"tool.flwr.app.components.{part}: is missing; write {part} = "
    ) as caught:
        read_project(folder)
    assert str(caught.value).startswith(str(folder / "pyproject.toml"))


def test_a_component_without_an_attribute(app):
    folder = app("plain", {"pyproject.toml": ("plain_app.server:app", "plain_app.server")})
    with pytest.raises(ConfigError, match="must be module:attribute"):
        read_project(folder)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("worker = 2", "tool.fedsim.worker: unknown key; did you mean workers?"),
        ("workers = -1", "tool.fedsim.workers: -1: must be at least 0"),
        ('on_failure = "ignore"', "tool.fedsim.on_failure: ignore: must be"),
        ("samples_per_message = 0", "tool.fedsim.samples_per_message: 0: must be at least 1"),
    ],
)
def test_wrong_settings(lines, message, app):
    with pytest.raises(ConfigError) as caught:
        read_project(app("plain", fedsim=lines))
    assert message in str(caught.value)


def test_folders_that_are_no_apps(tmp_path, app):
    with pytest.raises(ConfigError, match=r"pyproject.toml: cannot be read \(No such file"):
        read_project(tmp_path)
    folder = app("plain")
    (folder / "pyproject.toml").write_text("[project]\nname = 1e\n")
    with pytest.raises(ConfigError, match=r"pyproject.toml:2: is not valid TOML \(") as caught:
        read_project(folder)
    assert "name the folder" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[tool]\nflwr = 3", "pyproject.toml: tool.flwr: 3: must be a table"),
        ("[tool.flwr.app]\nconfig = 'a'", "tool.flwr.app.config: a: must be a table"),
        ("project = 'x'", "project: x: must be a table"),
    ],
)
def test_tables_that_are_none(text, message, tmp_path):
    parts = "" if "tool" in text else "\n[tool.flwr.app.components]\nserverapp = 'a:b'\nclientapp = 'a:b'"
    parts = "\ncomponents = {serverapp = 'a:b', clientapp = 'a:b'}" if "app]" in text else parts
    (tmp_path / "pyproject.toml").write_text(text + parts)
    with pytest.raises(ConfigError) as caught:
        read_project(tmp_path)
    assert message in str(caught.value)


def test_a_run_config_may_be_a_file(tmp_path):
    file = tmp_path / "quick.toml"
    file.write_text("num-server-rounds = 9\nlr = 1\n")
    assert read_project(APPS / "plain", str(file)).run_config["num-server-rounds"] == 9
    file.write_text("lr = 1\nlrr = 1\n")
    with pytest.raises(ConfigError, match="--run-config lrr: 1: the app has no such key; did you mean lr"):
        read_project(APPS / "plain", str(file))
    file.write_text("lr = 1\nlrr\n")
    with pytest.raises(ConfigError, match=r"quick.toml:2: is not valid TOML"):
        read_project(APPS / "plain", str(file))
    with pytest.raises(ConfigError, match=r"none.toml: cannot be read \(No such file"):
        read_project(APPS / "plain", "none.toml")
    with pytest.raises(ConfigError, match="or one TOML file and nothing else"):
        read_project(APPS / "plain", f"lr=1 {file}")


@pytest.mark.parametrize("part", ["client", "server"])
@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("1 / 0", "ZeroDivisionError"),
        ("1 /", "SyntaxError"),
        ("import nosuch", "nosuch"),
        ("exit(3)", "SystemExit: 3"),
    ],
)
def test_an_import_that_fails_names_the_line(part, line, reason, app):
    folder = app("plain", {f"{part}.py": ("app =", f"{line}\napp =")})
    number = (folder / "plain_app" / f"{part}.py").read_text().splitlines().index(line) + 1
    project = read_project(folder)
    with (
        importable(project.root),
        pytest.raises(ConfigError, match=rf"cannot be imported .*{reason}") as caught,
    ):
        (load_client if part == "client" else load_server)(project)
    assert str(caught.value).startswith(
        f"{project.root / 'plain_app' / part}.py:{number}: tool.flwr.app.comp"
    )


def test_two_apps_may_have_modules_of_the_same_names(app, tmp_path):
    one = read_project(app("plain"))
    (tmp_path / "plain").rename(tmp_path / "first")
    one = read_project(tmp_path / "first")
    two = read_project(app("plain", {"server.py": ('"accuracy": 0.5', '"accuracy": 0.25')}))
    scores = []
    for project in (one, two):
        with importable(project.root):
            assert isinstance(load_server(project), ServerApp)
            assert isinstance(load_client(project), ClientApp)
            module = sys.modules["plain_app.server"]
            scores.append(module.score(0, ArrayRecord({"w": Array(np.zeros(1))}))["accuracy"])
        assert not [name for name in sys.modules if name.startswith("plain_app")]
        assert str(project.root) not in sys.path
    assert scores == [0.5, 0.25]


# Flower itself


def test_flower_must_be_there():
    with pytest.raises(ConfigError, match=r"flwr: is not installed.*pip install 'flwr>=1.33'"):
        check_version(None)


@pytest.mark.parametrize("old", ["1.0.0", "1.32.1", "1.9.0"])
def test_flower_must_be_young_enough(old):
    with pytest.raises(ConfigError, match=rf"{old}: must be at least 1.33"):
        check_version(old)


@pytest.mark.parametrize("new", ["1.33.0", "1.41.0", "1.100", "2.0"])
def test_younger_flowers_are_welcome(new):
    check_version(new)


WITHOUT = """
import importlib.metadata as metadata, sys
real = metadata.version

def version(name):
    if name == "flwr":
        raise metadata.PackageNotFoundError(name)
    return real(name)

metadata.version, sys.modules["flwr"] = version, None
sys.argv = ["fedsim", *sys.argv[1:]]
from fedsim.cli.app import main
main()
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["flower", "run", str(APPS / "plain"), "--nodes", "2"],
        ["check", "experiments/quickstart.yaml", "--set", "strategy=fedavg"],
    ],
)
def test_without_flower_the_message_names_the_extra(arguments):
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, *arguments], capture_output=True, text=True, cwd=root, check=False
    )
    assert done.returncode == 2, done.stderr
    assert "flwr>=1.33" in done.stderr
    assert "Traceback" not in done.stderr
