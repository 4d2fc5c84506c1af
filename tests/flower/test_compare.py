"""An app here and in Flower's own engine: what is said of two sides, and that they agree."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from fedsim.cli.app import app as cli
from fedsim.flower.compare.compare import Agreement, Comparison, compare_app
from fedsim.flower.deploy.template import write_app

APPS = Path(__file__).parent / "apps"
HAS_ENGINE = importlib.util.find_spec("ray") is not None
needs_engine = pytest.mark.skipif(not HAS_ENGINE, reason="needs flwr[simulation]")
EQUAL = Agreement(2, (), 0.0, "")


def call(*arguments):
    return CliRunner().invoke(cli, ["flower", "compare", *map(str, arguments)])


@pytest.mark.parametrize(
    ("one", "two", "text", "close"),
    [
        ({}, {}, "none to compare", True),
        ({"a": 1.0}, {"a": 1.0}, "equal, bit for bit (1)", True),
        ({"a": math.nan}, {"a": math.nan}, "equal, bit for bit (1)", True),
        ({"a": 0.0}, {"a": 0.0, "b": 1.0}, "differ: only one side has b", False),
        ({"a": 4.0}, {"a": 5.0}, "differ, by 2.0e-01 of the largest, in a", False),
        ({"a": 1.0}, {"a": math.nan}, "differ, by inf of the largest, in a", False),
        ({"a": 1e9}, {"a": 1e9 + 1}, "equal but for the last digits, by 1.0e-09 of the largest, in a", True),
        ({"a": -2.0}, {"a": 2.0}, "differ, by 2.0e+00 of the largest, in a", False),
    ],
)
def test_numbers_agree_or_not(one, two, text, close):
    found = Agreement.of(one, two)
    assert (str(found), found.close) == (text, close)


def test_arrays_differ_by_a_share_of_their_largest():
    """The second differs by 2 of 8; the first not at all."""
    one = {"w": np.ones(3), "v": np.array([[8.0, 1.0]])}
    two = {"w": np.ones(3), "v": np.array([[8.0, -1.0]])}
    assert Agreement.of(one, two) == Agreement(2, (), 0.25, "v")


@pytest.mark.parametrize("other", [np.ones(4), np.ones(3, np.float32), np.full(3, np.nan)])
def test_arrays_of_another_shape_or_type_or_that_are_no_numbers_differ(other):
    assert not Agreement.of({"w": np.ones(3)}, {"w": other}).close


def test_only_the_first_of_many_names_are_told():
    many = {f"n{number}": 1.0 for number in range(9)}
    assert str(Agreement.of(many, {})) == "differ: only one side has n0, n1, n2, n3, n4"


def test_as_many_error_replies_on_both_sides_are_a_part_of_it():
    times = {"fedsim": 1.0, "flwr": 2.0}
    assert Comparison(EQUAL, EQUAL, times, times, {"fedsim": 1, "flwr": 1}).close
    assert not Comparison(EQUAL, EQUAL, times, times, {"fedsim": 0, "flwr": 1}).close


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([APPS / "plain", "--nodes", 0], "--nodes: 0: must be at least 1"),
        ([APPS / "plain", "--nodes", 2, "--run-config", "lrr=1"], "did you mean lr?"),
        ([APPS, "--nodes", 2], "name the folder of a Flower app"),
    ],
)
def test_mistakes_are_told_before_anything_runs(arguments, message):
    done = call(*arguments)
    assert done.exit_code == 2
    assert message in done.output


def test_without_the_engine_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    done = call(APPS / "plain", "--nodes", 2)
    assert done.exit_code == 2
    assert done.output == (
        "ray: is not installed, and Flower's own engine needs it; pip install 'flwr[simulation]'\n"
    )


@needs_engine
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "config"),
    [
        *((path.name, "") for path in sorted(APPS.iterdir())),
        ("rows", "strategy='FedXgbBagging'"),
        ("rows", "strategy='DifferentialPrivacyClientSideFixedClipping' mod='fixed'"),
    ],
)
def test_every_app_gives_the_same_here_and_there(name, config):
    found = compare_app(APPS / name, nodes=4, run_config=config)
    assert found.weights.names + found.metrics.names > 0
    assert (found.weights.worst, found.metrics.worst, found.close) == (0.0, 0.0, True)


@needs_engine
@pytest.mark.slow
def test_a_written_app_does_too(tmp_path):
    write_app(tmp_path / "amd", "fedamd")
    found = compare_app(tmp_path / "amd", nodes=2, run_config="num-server-rounds=2")
    assert (found.weights.names, found.weights.worst, found.close) == (2, 0.0, True)


@needs_engine
@pytest.mark.slow
def test_an_app_that_breaks_says_where_and_why(app):
    folder = app(
        "plain", {"server.py": ("\n    config", '\n    raise KeyError("no such thing")\n    config')}
    )
    done = call(folder, "--nodes", 2)
    assert done.exit_code == 3
    assert "fedsim: the app has failed with exit code 1" in done.output
    assert "no such thing" in done.output


@needs_engine
@pytest.mark.slow
def test_one_that_knows_where_it_is_differs(app):
    old = '    target = float(context.node_config["partition-id"])'
    new = '    import sys\n    target = float(context.node_config["partition-id"]) + ("ray" in sys.modules)'
    done = call(app("plain", {"client.py": (old, new)}), "--nodes", 2)
    assert done.exit_code == 1, done.output
    assert "weights: differ, by " in done.output
