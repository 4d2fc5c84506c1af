"""Study files: which runs they mean, and what is wrong with them."""

from __future__ import annotations

import itertools
import os
import textwrap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim.errors import ConfigError
from fedsim.running.build import prepare
from fedsim.study.asked import is_meant
from fedsim.study.file import Point, dump, load

BASE = {
    "data": {"clients": 4},
    "model": "softmax",
    "strategy": {"name": "fedprox", "participants": 2, "mu": 0.0, "local": {"lr": 0.25}},
    "stop": {"rounds": 1},
}


def study(**more):
    return {"base": BASE, **more}


def labels(plan):
    return [point.label for point in plan.points()]


def test_lists_are_combined_each_with_each_and_what_is_zipped_goes_in_step():
    plan = load(study(vary={"seed": [1, 2], "zip": {"data.clients": [4, 8], "stop.rounds": [1, 2]}}))
    assert labels(plan) == [
        "seed=1, data.clients=4, stop.rounds=1",
        "seed=1, data.clients=8, stop.rounds=2",
        "seed=2, data.clients=4, stop.rounds=1",
        "seed=2, data.clients=8, stop.rounds=2",
    ]
    last = plan.experiment(plan.points()[-1])
    assert (last.seed, last.data.clients, last.stop.rounds, last.strategy.local.lr) == (2, 8, 2, 0.25)


@given(
    st.dictionaries(
        st.sampled_from(["seed", "data.clients", "stop.rounds"]),
        st.lists(st.integers(1, 9), min_size=1, unique=True),
    )
)
def test_there_are_as_many_runs_as_combinations(vary):
    found = [tuple(point.settings.values()) for point in load(study(vary=vary)).points()]
    assert found == list(itertools.product(*vary.values()))


def test_what_the_command_sets_holds_for_all_runs_whatever_the_study_says():
    methods = {"plain": {"strategy": {"name": "fedavg", "participants": 2}}, "few": {"stop.rounds": 3}}
    worlds = {"w": {"data.clients": 6}}
    said = study(set={"stop.rounds": 2}, methods=methods, worlds=worlds, vary={"seed": [1, 2]})
    more = {"stop.rounds": "7", "strategy.participants": "5", "data.clients": "8"}
    plan = load(said, more)
    found = [plan.experiment(point) for point in plan.points()]
    assert [(one.stop.rounds, one.data.clients, one.strategy.params["participants"]) for one in found] == [
        (7, 8, 5)
    ] * 4
    assert [one.strategy.name for one in found] == ["fedavg", "fedavg", "fedprox", "fedprox"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"vary": {"seed": [1, 2]}}, "varies"),
        ({"vary": {"zip": {"seed": [1, 2], "data.clients": [4, 5]}}}, "varies"),
        ({"tune": {"seed": [1, 2]}}, "tunes"),
    ],
)
def test_what_differs_between_the_runs_cannot_be_set_for_all(more, said):
    with pytest.raises(ConfigError, match=rf"^--set seed=3: seed: is what the study {said}, "):
        load(study(**more), {"seed": "3"})


@given(st.sampled_from(["/data/run #3", "0123", "null", "a: b", "[", "'", '"', "\\", " x ", "é"]))
def test_text_of_a_study_is_text(text):
    for said in ({"set": {"data.root": text}}, {"vary": {"data.root": [text]}}):
        plan = load(study(**said))
        assert plan.experiment(plan.points()[0]).data.root == text


def test_null_chooses_null_alone():
    assert [is_meant(value, None) for value in (None, 5, "x", {"name": "ring"})] == [
        True,
        False,
        False,
        False,
    ]


def test_nothing_that_varies_is_one_run():
    assert labels(load(study())) == [""]


def test_a_method_changes_the_strategy_and_keeps_local_training_unless_it_says_its_own():
    methods = {
        "plain": {"strategy": "fedavg"},
        "own": {"strategy": {"name": "fedprox", "participants": 3, "mu": 0.5, "local": {"epochs": 2}}},
        "inner": {"strategy.mu": 0.75, "strategy.local.epochs": 5},
        "both": {"strategy.local.lr": 0.5, "strategy": {"name": "scaffold", "participants": 2}},
    }
    plan = load(study(methods=methods))
    plain, own, inner, both = map(plan.experiment, plan.points())
    assert (plain.strategy.name, plain.strategy.local.lr) == ("fedavg", 0.25)
    assert (own.strategy.params["mu"], own.strategy.local.epochs, own.strategy.local.lr) == (0.5, 2, 0.05)
    assert (inner.strategy.name, inner.strategy.params["mu"], inner.strategy.local.epochs) == (
        "fedprox",
        0.75,
        5,
    )
    assert (both.strategy.name, both.strategy.local.lr) == (
        "scaffold",
        0.5,
    )  # the block first, whatever the order
    assert labels(plan) == [f"method={name}" for name in methods]


def test_each_method_is_tuned_with_the_same_values_and_a_seed_of_its_own():
    plan = load(
        study(
            methods={"a": {}, "b": {"model": "mlp"}},
            tune={"strategy.local.lr": [0.1, 0.2]},
            vary={"seed": [1]},
        )
    )
    assert [point.label for point in plan.trials()] == [
        f"method={method}, strategy.local.lr={lr}, seed=0" for method in "ab" for lr in (0.1, 0.2)
    ]
    chosen = plan.tuned(plan.points()[1], {"strategy.local.lr": 0.2})
    assert chosen.label == "method=b, seed=1, strategy.local.lr=0.2"
    assert plan.experiment(chosen).strategy.local.lr == 0.2
    assert load(study()).trials() == []


def test_the_experiment_may_be_a_file_beside_the_study(tmp_path, monkeypatch):
    (tmp_path / "inner").mkdir()
    (tmp_path / "base.yaml").write_text("data: {clients: 3}\nstrategy: fedavg\nstop: {rounds: 2}\n")
    (tmp_path / "inner" / "all.yaml").write_text("base: ../base.yaml\nvary: {seed: [1, 2]}\n")
    monkeypatch.chdir(tmp_path)
    plan = load("inner/all.yaml", {"stop.rounds": "7"})
    assert (plan.study.name, plan.source) == ("all", "base.yaml")
    assert [plan.experiment(point).stop.rounds for point in plan.points()] == [7, 7]
    assert plan.experiment(plan.points()[0]).folder == tmp_path
    (tmp_path / "inner" / "whole.yaml").write_text(
        "base: {data: {clients: 3}, strategy: fedavg, stop: {rounds: 2}}\n"
    )
    whole = load("inner/whole.yaml")
    assert whole.experiment(Point({}, {})).folder == tmp_path / "inner"
    assert whole.experiment(Point({}, {})).name == "whole"


def test_what_is_written_down_can_be_read_again(tmp_path):
    given_ = study(
        methods={"a": {}}, vary={"seed": [1, 2]}, compare={"baseline": "a", "target": {"accuracy": 0.5}}
    )
    plan = load(given_)
    (tmp_path / "again.yaml").write_text(dump(plan.study))
    again = load(tmp_path / "again.yaml")
    assert again.study == plan.study
    assert labels(again) == labels(plan)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("vary: {sed: [1]}", "s.yaml:2: vary: sed: is no key of an experiment; did you mean seed?"),
        ("vary: {seed: 3}", "s.yaml:2: vary.seed: 3: must be a list of values"),
        ("vary: {seed: []}", "s.yaml:2: vary.seed: []: is empty, so that there is nothing to run"),
        ("vary: {zip: [1]}", "s.yaml:2: vary.zip: [1]: must be keys with lists of values"),
        (
            "vary: {zip: {seed: [1, 2], name: [a]}}",
            "s.yaml:2: vary.zip: {'seed': [1, 2], 'name': ['a']}: its lists go in step, and have different lengths: "
            "{'seed': 2, 'name': 1}",
        ),
        (
            "methods: {a: {stratgey: fedavg}}",
            "s.yaml:2: methods.a: stratgey: is no key of an experiment; did you mean strategy?",
        ),
        ("tune: {lr: [1]}", "s.yaml:2: tune: lr: is no key of an experiment"),
        (
            "tune: {strategy.local.lr: [0.1]}\nvary: {seed: [0, 1]}",
            "s.yaml:1: tune_seed: 0: is one of the seeds that are compared, which would favour what was tuned with it",
        ),
        ("tune: {strategy.local.lr: [0.1]}", "s.yaml:1: tune_seed: 0: is one of the seeds that are compared"),
        (
            "tune: {strategy.local.lr: [0.1]}\nvary: {zip: {seed: [0, 1], data.clients: [3, 4]}}",
            "s.yaml:1: tune_seed: 0: is one of the seeds that are compared",
        ),
        (
            "name: ../out",
            "s.yaml:2: name: ../out: may only contain letters, digits, dots, dashes and underscores",
        ),
        (
            "compare: {target: {accuracy: 0.8, loss: 1}}",
            "s.yaml:2: compare.target: {'accuracy': 0.8, 'loss': 1}: must be one metric and its value",
        ),
        ("compare: {x: []}", "s.yaml:2: compare.x: []: must have a length of at least 1, not 0"),
        ("tune_by: {metric: bytes, last: 3}", "s.yaml:2: tune_by.last: 3: is about what was measured"),
        ("name: ''", "s.yaml:2: name: : may only contain letters"),
        (
            "vary: {seed: [1, 2], zip: {seed: [1, 2]}}",
            "s.yaml:2: vary.seed: [1, 2]: is below zip, too; give it once",
        ),
        (
            "vary: {zip: {seed: [1, 2, 1], data.clients: [3, 3, 3]}}",
            "s.yaml:2: vary.zip: [1, 3]: is there twice; a run that counts twice makes intervals too narrow",
        ),
        (
            "vary: {seed: [1, 2]}\nmethods: {a: {seed: 5}}",
            "s.yaml:3: methods.a: seed: is what the study varies, which counts",
        ),
        (
            "tune: {strategy.local.lr: [0.1]}\nvary: {seed: [1]}\nset: {strategy.local.lr: 0.2}",
            "s.yaml:4: set: strategy.local.lr: is what the study tunes, which counts",
        ),
        ("methods: {a: {}}\ncompare: {baseline: b}", "s.yaml:3: compare.baseline: b: is no method"),
        ("compare: {x: [round]}", "s.yaml:2: compare.x.0: round: must be "),
        ("comapre: {}", "s.yaml:2: comapre: unknown key; did you mean compare?"),
    ],
)
def test_a_mistake_is_one_line(text, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.yaml").write_text(f"base: b.yaml\n{text}\n")
    (tmp_path / "b.yaml").write_text("data: {clients: 3}\nstrategy: fedavg\nstop: {rounds: 2}\n")
    with pytest.raises(ConfigError) as caught:
        load("s.yaml")
    assert str(caught.value).startswith(said), caught.value
    assert len(str(caught.value).splitlines()) == 1


def test_a_base_that_is_not_there_is_told_with_the_line_that_names_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"none\.yaml: no such file"):
        load({"base": str(tmp_path / "none.yaml")})
    (tmp_path / "s.yaml").write_text("name: s\nbase: none.yaml\n")
    with pytest.raises(ConfigError, match=r"^s\.yaml:2: base: none\.yaml: no such file"):
        load("s.yaml")


def test_a_mistake_of_the_base_has_its_own_file_and_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "b.yaml").write_text(
        "data: {clients: 3}\nstrategy: fedavg\nstratgy: fedavg\nstop: {rounds: 2}\n"
    )
    (tmp_path / "s.yaml").write_text("base: b.yaml\nvary: {seed: [1, -1]}\n")
    plan = load("s.yaml")
    with pytest.raises(ConfigError) as caught:
        plan.experiment(plan.points()[0])
    assert str(caught.value) == "s.yaml: seed=1: b.yaml:3: stratgy: unknown key; did you mean strategy?"
    (tmp_path / "b.yaml").write_text("data: {clients: 3}\nstrategy: fedavg\nstop: {rounds: 2}\n")
    plan = load("s.yaml")
    with pytest.raises(ConfigError) as caught:
        plan.experiment(plan.points()[1])
    assert str(caught.value) == "s.yaml: seed=-1: seed: -1: must be at least 0"


def test_a_mistake_of_one_run_says_which(tmp_path):
    file = tmp_path / "s.yaml"
    file.write_text(
        textwrap.dedent("""
        base: {data: {clients: 4}, strategy: fedavg, stop: {rounds: 1}}
        vary: {seed: [1, -1]}
    """)
    )
    plan = load(file)
    good, bad = plan.points()
    assert plan.experiment(good).seed == 1
    with pytest.raises(ConfigError, match=r"s\.yaml: seed=-1: seed: -1: must be at least 0"):
        plan.experiment(bad)


ROOT = Path(__file__).parents[2]
STUDIES = sorted((ROOT / "experiments" / "studies").glob("*.yaml"))
DATA = Path(os.environ.get("FEDSIM_DATA", ROOT.parent / "shared" / "data"))


@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.stem)
def test_our_own_studies_can_be_run(file, monkeypatch):
    if file.stem.startswith("mnist") and not (DATA / "MNIST").is_dir():
        pytest.skip("MNIST is not in the data folder")
    monkeypatch.setenv("FEDSIM_DATA", str(DATA))
    plan = load(file)
    first = {point.settings.get("method"): point for point in plan.points()}
    for point in first.values():
        prepare(plan.experiment(point), dry=True)
