"""What the page of engines shows is done here as it stands."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedsim.cli.app import app

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
    [text] = blocks("yaml")
    (tmp_path / "engines.yaml").write_text(text)
    lenet, mlp = said(blocks("sh")[0])
    assert re.search(r"engine: lean, .*; the closed engine does not fit this model", lenet)
    assert re.search(r"engine: closed, .*; the model is a chain of plain layers, whose gradients", mlp)
    assert "memory: " in lenet


def test_the_number_of_processes_is_in_no_number() -> None:
    [code] = blocks("python")
    exec(compile(code, "engines.py", "exec"), {})


def test_the_parts_of_a_study_are_compared_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "study.yaml").write_text(json.dumps(STUDY))
    *_, table = said(blocks("sh")[1])
    assert re.search(r"\| slow \| 0\.\d+ \[", table)  # a mean of two seeds has an interval
    assert re.search(r"\| fast \| 0\.\d+ \[", table)
