"""The project that `fedsim init` writes runs as it is."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
import yaml
from jsonschema import Draft7Validator
from typer.testing import CliRunner

import fedsim
from fedsim.cli.app import app
from fedsim.study.file import load

FILES = {"README.md", "experiment.yaml", "mine.py", "study.yaml", "test_mine.py"}
SCHEMAS = {"experiment": "experiment.schema.json", "study": "study.schema.json"}


@pytest.fixture
def project(tmp_path):
    folder = tmp_path / "starter"
    done = CliRunner().invoke(app, ["init", str(folder)])
    assert done.exit_code == 0, done.output
    assert {file.name for file in folder.iterdir()} == FILES | set(SCHEMAS.values())
    assert str(folder / "mine.py") in done.output.splitlines()
    return folder


def test_its_files_fit_its_schemas_which_editors_find(project):
    for stem, name in SCHEMAS.items():
        text = (project / f"{stem}.yaml").read_text(encoding="utf-8")
        assert text.startswith(f"# yaml-language-server: $schema={name}\n")
        found = json.loads((project / name).read_text(encoding="utf-8"))
        assert not list(Draft7Validator(found).iter_errors(yaml.safe_load(text)))


def test_its_experiment_is_checked_where_it_lies(project):
    assert fedsim.check(project / "experiment.yaml").strategy.name == "mine:RootAvg"


def test_its_study_means_four_methods_and_three_seeds(project):
    plan = load(project / "study.yaml")
    assert len(plan.points()) == 12
    assert {plan.experiment(point).strategy.local.steps for point in plan.points()} == {10}


@pytest.mark.parametrize("words", [["check", "--quiet"], ["format", "--check", "--quiet"]])
def test_its_code_is_tidy(words, project):
    subprocess.run([sys.executable, "-m", "ruff", *words, str(project)], check=True)


@pytest.mark.slow
def test_its_own_tests_pass(project):
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q"], cwd=project, capture_output=True, text=True, check=False
    )
    assert "2 passed" in done.stdout, done.stdout + done.stderr


def test_a_folder_with_files_in_it_is_left_alone(tmp_path):
    (tmp_path / "mine.py").write_text("precious")
    done = CliRunner().invoke(app, ["init", str(tmp_path)])
    assert done.exit_code == 2
    assert re.fullmatch(r"DIR: .*: must be new or empty\n", done.output)
    assert (tmp_path / "mine.py").read_text() == "precious"
