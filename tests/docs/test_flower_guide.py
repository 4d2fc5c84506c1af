"""What docs/flower.md shows works: its commands in their order, its files, its Python."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedsim.cli.app import app as cli
from fedsim.spec.app import App

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "flower.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", GUIDE, re.DOTALL)


def test_the_commands_run_one_after_the_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (world,) = blocks("yaml")
    (tmp_path / "world.yaml").write_text(world)
    lines = "".join(blocks("bash")).strip().splitlines()
    for line in lines:
        program, *arguments = shlex.split(line)
        assert program == "fedsim"
        quick = ["--set", "record.report=false", "--quiet"] if arguments[1] == "run" else []
        done = CliRunner().invoke(cli, [*arguments, *quick])
        assert done.exit_code == 0, f"{line}\n{done.output}"
    runs = [line for line in lines if line.startswith("fedsim flower run")]
    assert len(list((tmp_path / "runs").iterdir())) == len(runs) - 1 == 3
    (kept,) = (tmp_path / "kept").iterdir()
    (kept / "summary.json").unlink()
    assert CliRunner().invoke(cli, ["resume", str(kept), "--quiet"]).exit_code == 0


@pytest.mark.slow
def test_the_python_prints_what_the_page_says(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("python")
    exec(compile(code, "flower.md", "exec"), {})
    assert capsys.readouterr().out == "True\n"


def test_the_settings_are_the_settings():
    own = tomllib.loads(blocks("toml")[0])["tool"]["fedsim"]
    assert App.model_validate(own).workers == 2
    assert set(own) == set(App.model_fields)


@pytest.mark.parametrize("program", ["flower-superlink", "flower-supernode", "flwr run"])
def test_the_deployments_options_exist(program):
    """The options shown are those that the deployment test uses."""
    used = (ROOT / "fedsim" / "flower" / "deploy" / "loopback.py").read_text()
    shown = [
        line for line in "".join(blocks("text")).replace("\\\n", "").splitlines() if line.startswith(program)
    ]
    assert shown
    for option in re.findall(r"--[a-z-]+", " ".join(shown)):
        assert option in used, option
