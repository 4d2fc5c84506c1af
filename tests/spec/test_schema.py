"""The JSON schemas know every experiment and study that runs, and see mistakes that editors should see."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft7Validator
from typer.testing import CliRunner

import fedsim
from fedsim import parts
from fedsim.cli.app import app
from fedsim.errors import ConfigError
from fedsim.spec import about, schema

ROOT = Path(__file__).parents[2]
PAPERS = ROOT / "fedsim" / "study" / "papers"
FILES = [*(ROOT / "experiments").rglob("*.yaml"), *PAPERS.rglob("*.yaml")]
GIVEN = {
    "data": {"name": "digits", "clients": 5, "partition": {"name": "dirichlet", "alpha": 0.5}},
    "model": {"name": "mlp", "hidden": 8},
    "strategy": {"name": "fedamd", "participants": 2, "p": 0.5, "local": {"steps": 2}},
    "topology": "star",
    "faults": [{"name": "crash", "at_s": 3, "count": 1}],
    "stop": {"rounds": 1},
}


@pytest.fixture(scope="module")
def experiment():
    found = schema.experiment()
    Draft7Validator.check_schema(found)
    return Draft7Validator(found)


@pytest.fixture(scope="module")
def study():
    found = fedsim.schema("study")
    Draft7Validator.check_schema(found)
    return Draft7Validator(found)


def changed(path, value):
    given = copy.deepcopy(GIVEN)
    *steps, last = path.split(".")
    block = given
    for step in steps:
        block = block[int(step) if isinstance(block, list) else step]
    block[last] = value
    return given


@pytest.mark.parametrize(
    "file",
    sorted(file for file in FILES if file.name != "page.yaml"),
    ids=lambda file: f"{file.parent.name}-{file.stem}",
)
def test_every_file_here_is_fine(file, experiment, study):
    given = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert not list((study if "base" in given else experiment).iter_errors(given))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("sede", 3),
        ("seed", "three"),
        ("seed", -1),
        ("data.client", 3),
        ("data.clients", 0),
        ("data.partition", "dirichlet"),  # alpha is missing
        ("data.partition", {"name": "dirichlet", "alfa": 0.5}),
        ("model.hiden", 8),
        ("model", "mlpp"),
        ("strategy.p", "half"),
        ("strategy.q", 0.5),
        ("strategy.local.step", 2),
        ("strategy.select", "unifrom"),
        ("strategy.local.optimizer", "adm"),
        ("topology", {"name": "ring", "degree": 2}),
        ("network", {"latency_ms": "fast"}),
        ("faults.0.at_s", "soon"),
        ("stop.round", 1),
    ],
)
def test_a_mistake_is_seen_by_the_schema_and_by_the_check(path, value, experiment):
    given = changed(path, value)
    assert list(experiment.iter_errors(given))
    with pytest.raises(ConfigError):
        fedsim.check(given)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("name", "mine"),
        ("model", "mlp"),
        ("model", "mine.nets:Net"),
        ("model", {"name": "mine.nets:Net", "anything": 3}),
        ("data", {"clients": 3}),
        ("data", {"name": "mine:data", "clients": 3, "anything": 3}),
        ("data.partition", "iid"),
        ("strategy.select", {"name": "power_of_choice", "candidates": 3}),
        ("strategy.around", [{"name": "clip", "max_norm": 1.0}, "mine:around"]),
        ("strategy.local.lr", [0.1] * 5),
        ("strategy.local.schedule", {"name": "cosine", "rounds": 5}),
        ("network", {"latency_ms": {"distribution": "uniform", "low": 1, "high": 2}, "up_mbps": 5}),
        ("evaluate", {"metrics": ["macro_f1", {"name": "top_k", "k": 3}]}),
        ("loss", {"name": "cross_entropy", "label_smoothing": 0.1}),
    ],
)
def test_what_may_be_written_is_fine(path, value, experiment):
    assert not [error.message for error in experiment.iter_errors(changed(path, value))]


@pytest.mark.parametrize("kind", about.BLOCKS)
def test_the_example_of_every_part_is_fine(kind, experiment):
    """Those of `fedsim list KIND NAME`, alone in the place where they stand."""
    for name in parts.names(kind):
        block = yaml.safe_load(about.example(kind, name))
        whole = {"data": {"clients": 10}, "strategy": "fedavg", "stop": {"rounds": 1}, **block}
        wrong = [error.json_path for error in experiment.iter_errors(whole)]
        if "data" in block:
            wrong = [one for one in wrong if block["data"].get("clients")]  # the block is a part of data
        if "strategy" in block and "name" not in block["strategy"]:
            wrong = [one for one in wrong if not one.startswith("$.strategy")]
        assert not wrong, (name, block)


def test_a_study_may_leave_to_its_methods_what_its_base_lacks(study):
    base = {key: value for key, value in GIVEN.items() if key != "strategy"}
    given = {"base": base, "methods": {"a": {"strategy": "fedavg"}}, "vary": {"seed": [1, 2]}}
    assert not list(study.iter_errors(given))
    assert list(study.iter_errors({**given, "base": {**base, "sede": 3}}))
    assert list(study.iter_errors({**given, "compare": {"target": {"accuracy": "high"}}}))
    assert list(study.iter_errors({**given, "claims": [{"text": "x", "beter": ["a"]}]}))
    assert list(study.iter_errors({key: value for key, value in given.items() if key != "base"}))


def test_every_key_of_the_file_is_described(experiment):
    for key, found in experiment.schema["properties"].items():
        assert found.get("description") or "$ref" in found, key


@pytest.mark.parametrize("kind", ["experiment", "study"])
def test_the_command_prints_it(kind):
    done = CliRunner().invoke(app, ["schema", kind])
    assert done.exit_code == 0
    assert json.loads(done.output) == fedsim.schema(kind)


def test_another_kind_is_one_line():
    done = CliRunner().invoke(app, ["schema", "world"])
    assert (done.exit_code, done.output) == (2, "schema: world: must be experiment or study\n")
