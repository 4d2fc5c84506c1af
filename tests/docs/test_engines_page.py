"""What the page of engines shows is done here as it stands."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

import fedsim
from fedsim.cli.app import app
from fedsim.learn.engines.ray import Cluster

PAGE = (Path(__file__).parents[2] / "docs" / "engines.md").read_text(encoding="utf-8")
STUDY = {
    "name": "study",
    "base": {
        "data": {"clients": 4},
        "model": "softmax",
        "strategy": {"name": "fedavg", "local": {"steps": 1}},
        "stop": {"rounds": 1},
        "record": {"report": False},
    },
    "methods": {"slow": {"strategy.local.lr": 0.01}, "fast": {"strategy.local.lr": 0.1}},
    "vary": {"seed": [1, 2]},
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def said(block: str) -> list[str]:
    """Return what each command of a block prints."""
    found = []
    for line in block.splitlines():
        program, *words = shlex.split(line)
        assert program == "fedsim"
        words += ["--jobs", "1"] if words[0] == "sweep" else []
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, done.output
        found.append(done.output)
    return found


def test_a_check_tells_of_the_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text, _ = blocks("yaml")
    (tmp_path / "engines.yaml").write_text(text)
    lenet, mlp = said(blocks("sh")[0])
    assert re.search(r"engine: lean, .*; the closed engine does not fit this model", lenet)
    assert re.search(r"engine: closed, .*; the model is a chain of plain layers, whose gradients", mlp)
    assert "memory: " in lenet


def test_the_number_of_processes_is_in_no_number() -> None:
    [code] = blocks("python")
    exec(compile(code, "engines.py", "exec"), {})


def test_a_run_and_a_study_on_a_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cluster.yaml").write_text(blocks("yaml")[1])
    engine = fedsim.load("cluster.yaml").compute.engine
    assert engine.name == "ray"
    assert Cluster(**engine.params) == Cluster("auto", "10.0.0.1:6379", None)
    (tmp_path / "study.yaml").write_text(json.dumps(STUDY))
    address, program, *words = shlex.split(blocks("text")[0].splitlines()[-1])
    assert (address, program) == ("RAY_ADDRESS=10.0.0.1:6379", "fedsim")
    done = CliRunner().invoke(app, words, env={"RAY_ADDRESS": "nowhere"})
    assert done.exit_code == 2
    assert re.match(
        r"RAY_ADDRESS: nowhere: must be HOST:PORT; .*\n$|ray: true: needs ray, .*\n$", done.stderr
    )


def test_the_parts_of_a_study_are_compared_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "study.yaml").write_text(json.dumps(STUDY))
    *_, table = said(blocks("sh")[1])
    assert re.search(r"\| slow \| 0\.\d+ \[", table)  # a mean of two seeds has an interval
    assert re.search(r"\| fast \| 0\.\d+ \[", table)
