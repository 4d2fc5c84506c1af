"""The page on studies is true: its rule, its study, its commands, its Python."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from fedsim.api import check
from fedsim.study.file import load
from fedsim.study.paper import find

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "studies.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write what the page says, with fewer rounds."""
    study = blocks("yaml")[0]
    (tmp_path / "mine.py").write_text(blocks("python")[0])
    (tmp_path / "study.yaml").write_text(
        study.replace("rounds: 60", "rounds: 2").replace("accuracy: 0.85", "accuracy: 0.1")
    )
    return tmp_path


def run(folder: Path, *words: str) -> str:
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_to_compare_with_joins_the_study(folder: Path) -> None:
    study, *_, more = (yaml.safe_load(block) for block in blocks("yaml"))
    study["methods"] |= more["methods"]
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    plan = load(folder / "study.yaml")
    found = {point.settings["method"]: plan.experiment(point).strategy for point in plan.points()}
    for name in more["methods"]:
        assert found[name].local == found["FedAvg"].local
        check({**study["base"], "strategy": found[name].model_dump()})


def test_its_claims_and_its_page_are_of_this_study(folder: Path) -> None:
    study, claims, _, page, _ = (yaml.safe_load(block) for block in blocks("yaml"))
    worlds = {"IID": {}}  # one of the texts names it
    (folder / "study.yaml").write_text(yaml.safe_dump(study | claims | {"worlds": worlds}))
    assert len(load(folder / "study.yaml").study.claims) == 3
    (folder / "roots.yaml").write_text(yaml.safe_dump(page))
    assert [file.name for file in find(str(folder / "roots.yaml")).studies(quick=False)] == ["study.yaml"]


def test_its_map_is_of_this_study_and_tuned_cell_by_cell(folder: Path) -> None:
    study, _, more, *_ = (yaml.safe_load(block) for block in blocks("yaml"))
    plan = load({**study, **more})
    cells, methods, seeds = 3 * 3, 5, 3
    assert len(plan.points()) == cells * methods * seeds
    assert len(plan.trials()) == cells * methods * len(more["tune"]["strategy.local.lr"])


@pytest.mark.slow
def test_the_commands_lead_to_the_table_and_the_python_to_the_same(folder: Path) -> None:
    commands = re.findall(r"^    (fedsim (?:sweep|compare) \S+)$", PAGE, re.MULTILINE)
    assert len(commands) == 2
    first, second = (run(folder, sys.executable, "-m", *command.split()) for command in commands)
    assert first.splitlines()[0] == "15 runs: 15 new, 0 done before, 0 failed"
    rows = second.splitlines()
    assert [row.split(" | ")[0] for row in rows[2:7]] == [
        "| mine",
        "| FedAvg",
        "| FedProx",
        "| SCAFFOLD",
        "| FedAMD",
    ]
    files = {file.suffix for file in (folder / "runs" / "study" / "comparison").iterdir()}
    assert files == {".md", ".tex", ".csv", ".html", ".png", ".svg", ".pdf"}
    (folder / "all.py").write_text(blocks("python")[1].replace("jobs=2", "jobs=1"))
    shown = run(folder, sys.executable, "all.py").splitlines()
    assert shown[:7] == rows[:7]
    assert shown[-1].startswith("Name: value")
    assert (folder / "curves.pdf").stat().st_size > 1000


def test_what_a_user_writes_fits_on_a_screen() -> None:
    rule, study = blocks("python")[0], blocks("yaml")[0]
    assert len([line for line in rule.splitlines() if line.strip()]) <= 12
    assert len(yaml.safe_load(study)["methods"]) == 5
    assert len(study.splitlines()) <= 16
