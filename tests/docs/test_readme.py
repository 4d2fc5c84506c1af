"""What the README shows is true: its experiment, its Python, its commands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

import fedsim
from fedsim.spec.experiment import load

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_yaml_runs(tmp_path: Path) -> None:
    (text,) = blocks("yaml")
    file = tmp_path / "readme.yaml"
    file.write_text(text)
    result = fedsim.run(file, out=tmp_path, overrides={"stop.rounds": 3}, record__report=False)
    assert result.summary["rounds"] == 3


@pytest.mark.slow
def test_the_python_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code = blocks("python")[0].replace('"rounds": 30', '"rounds": 2')
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert len(names["columns"]["round"]) == 3  # type: ignore[index]


def test_the_strategies_shown_are_the_strategies() -> None:
    whole = (ROOT / "strategies" / "server" / "fedavg.py").read_text(encoding="utf-8")
    assert blocks("python")[1] == whole
    shown = [line.strip() for line in blocks("python")[2].splitlines() if line.strip()]
    source = (ROOT / "strategies" / "peer" / "dpsgd.py").read_text(encoding="utf-8")
    wanted = [line for line in shown if not line.startswith(("class", "def"))]
    assert all(line in source for line in wanted)


def test_the_demo_is_as_long_as_it_says() -> None:
    lines = blocks("python")[0].strip().splitlines()
    assert len(lines) <= 16


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_every_committed_experiment_loads() -> None:
    studies = set((ROOT / "experiments" / "studies").iterdir())
    for file in set((ROOT / "experiments").rglob("*.yaml")) - studies:
        experiment = load(file)
        assert yaml.safe_load(experiment.dump())["name"] == experiment.name
