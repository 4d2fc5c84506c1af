"""Exceptions: their texts, and that SimPy can rebuild them from their arguments."""

from __future__ import annotations

import inspect
import pickle

import pytest

from fedsim import errors
from fedsim.errors import MISSING, BadValue, ConfigError, FedsimError, Problem, RunError, did_you_mean

EXAMPLES = [
    BadValue("degree", 3, "must be even", "take 4"),
    ConfigError([Problem("a", 1, "must be 2", source="x.yaml:3")]),
    RunError("it broke", 3, 2, 1.5, "train"),
    errors.DiskError("summary.json cannot be written (No space left on device)"),
    errors.StalledError("nobody moves", None, 7, 2.0),
    errors.NotFiniteError("NaN in arrays", 1, 1, 0.0, "train"),
    errors.EndedError(),
    errors.ValueNeeded("no values"),
]


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_simpy_can_rebuild_it(error: FedsimError) -> None:
    twin = type(error)(*error.args)
    assert str(twin) == str(error)
    assert vars(twin) == vars(error)


def test_every_exception_has_an_example() -> None:
    every = {c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, FedsimError)}
    assert every - {FedsimError} == {type(error) for error in EXAMPLES}


@pytest.mark.parametrize(
    ("problem", "text"),
    [
        (Problem("k", 3, "must be even"), "k: 3: must be even"),
        (Problem("k", MISSING, "is required", "write it"), "k: is required; write it"),
        (Problem("k", "x" * 100, "is long", source="f.yaml:2"), f"f.yaml:2: k: {'x' * 57}...: is long"),
        (Problem("", MISSING, "is empty", source="f.yaml:1"), "f.yaml:1: is empty"),
        (Problem("k", "a\nb", "one line"), r"k: a\nb: one line"),
        (Problem("k", None, "must be text"), "k: null: must be text"),
        (Problem("k", True, "must be text"), "k: true: must be text"),
        (Problem("k", "0.7", "must be a number"), "k: '0.7': must be a number"),
        (Problem("k", "true", "must be a number"), "k: 'true': must be a number"),
        (Problem("k", "null", "must be a number"), "k: 'null': must be a number"),
        (Problem("k", "no", "must be a number"), "k: no: must be a number"),
        (Problem("k", MISSING, "one\n  two", "a\nb"), "k: one two; a b"),
    ],
)
def test_a_problem_is_one_line(problem: Problem, text: str) -> None:
    assert str(problem) == text


def test_a_problem_without_a_value_comes_from_another_process_as_it_is() -> None:
    error = pickle.loads(pickle.dumps(ConfigError([Problem("k", MISSING, "is required")])))
    assert error.problems[0].value is MISSING
    assert str(error) == "k: is required"


def test_a_run_error_names_its_place() -> None:
    assert str(RunError("it broke", 3, 2, 1.5, "train")) == "node 3, round 2, t = 1.500000 s, train: it broke"
    assert str(RunError("it broke")) == "run: it broke"
    assert str(RunError("it broke", 0, 0)) == "node 0, round 0: it broke"


def test_exit_codes() -> None:
    assert ConfigError([]).exit_code == 2
    assert errors.StalledError("x").exit_code == 3


def test_suggestions() -> None:
    assert did_you_mean("topolgy", ["topology", "stop"]) == "did you mean topology?"
    assert did_you_mean("qqq", []) == ""
    assert did_you_mean("qqq", ["b", "a"]) == "known: a, b"
