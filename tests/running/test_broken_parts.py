"""Parts that break while a file is checked: one line with their own line, and the traceback where it is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import fedsim
from fedsim.cli.app import app
from fedsim.errors import ConfigError, RunError
from fedsim.spec.experiment import Local


def place(marker: str) -> str:
    """Return this file's line with a marker, as messages name it."""
    text = Path(__file__).read_text(encoding="utf-8").splitlines()
    (number,) = (n for n, line in enumerate(text, 1) if line.endswith(f"# {marker}"))
    return f"{Path(__file__).name}:{number}"


def graph(n: int) -> Any:
    raise RuntimeError("no luck\nat all")  # graph


def quits(n: int) -> Any:
    raise SystemExit(0)  # quits


def dataset(*, seed: int) -> Any:
    return {}["x"]  # dataset


def split(labels: np.ndarray, clients: int) -> Any:
    return [labels[: 1 // (clients - clients)]]  # split


def moody(node: Any) -> Any:
    yield node.clock.timeout(0)
    raise SystemExit(0)  # moody


def restless(node: Any) -> Any:
    while True:
        yield node.clock.timeout(0)


def later(node: Any) -> Any:
    yield node.clock.timeout(2_500_000)
    raise SystemExit(0)


def fault(world: Any) -> Any:
    raise ValueError  # fault


def strategy(*, local: Local) -> Any:
    raise SystemExit(0)  # strategy


def experiment(**more: Any) -> dict[str, Any]:
    base = {"data": {"clients": 4}, "model": "softmax", "strategy": "dpsgd", "topology": "ring"}
    return {**base, "stop": {"rounds": 9}, "record": {"report": False}, **more}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"topology": f"{__name__}:graph"}, ("topology: ", "graph", "RuntimeError: no luck")),
        ({"topology": f"{__name__}:quits"}, ("topology: ", "quits", "SystemExit: 0")),
        (
            {"data": {"name": f"{__name__}:dataset", "clients": 4}},
            ("data.name: ", "dataset", "KeyError: 'x'"),
        ),
        (
            {"data": {"clients": 4, "partition": f"{__name__}:split"}},
            ("data.partition: ", "split", "ZeroDivisionError: "),
        ),
        ({"churn": f"{__name__}:moody"}, ("churn: ", "moody", "SystemExit: 0")),
        ({"faults": [f"{__name__}:fault"]}, ("faults.0: ", "fault", "ValueError")),
        ({"strategy": f"{__name__}:strategy"}, ("strategy: ", "strategy", "SystemExit: 0")),
    ],
)
def test_a_part_that_breaks_is_one_line_with_its_own(more, said):
    key, marker, words = said
    with pytest.raises(ConfigError) as caught:
        fedsim.check(experiment(**more))
    (problem,) = caught.value.problems
    assert str(problem).startswith(key)
    assert place(marker) in str(problem)
    assert words in str(problem)
    assert len(str(problem).splitlines()) == 1


def test_churn_that_stands_still_at_the_start_is_told(monkeypatch):
    monkeypatch.setattr("fedsim.world.clock.MOST_EVENTS", 1000)
    with pytest.raises(ConfigError, match=r"churn: .*time stands still: more than 1160 events"):
        fedsim.check(experiment(churn=f"{__name__}:restless"))


def test_churn_that_ends_the_program_later_ends_the_run(tmp_path):
    with pytest.raises(RunError, match="SystemExit: 0") as caught:
        fedsim.run(experiment(churn=f"{__name__}:later", devices={"seconds_per_sample": 1}), out=tmp_path)
    assert (caught.value.node, caught.value.sim_time_s, caught.value.exit_code) == (0, 2.5, 3)


def test_the_traceback_is_for_those_who_ask(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text(
        f"data: {{clients: 4}}\nstrategy: dpsgd\ntopology: '{__name__}:graph'\nstop: {{rounds: 1}}\n",
        encoding="utf-8",
    )
    short = CliRunner().invoke(app, ["check", str(file)])
    assert short.exit_code == 2
    assert len(short.output.strip().splitlines()) == 1
    assert f"a.yaml:3: topology: {__name__}:graph: breaks at " in short.output
    long = CliRunner().invoke(app, ["--debug", "check", str(file)])
    assert long.exit_code == 2
    assert "Traceback" in long.output
    assert 'raise RuntimeError("no luck' in long.output


def test_several_files_are_checked_as_they_will_run(tmp_path):
    base = "data: {clients: 4}\nmodel: softmax\nrecord: {report: false}\n"
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text(f"{base}strategy: dpsgd\ntopology: ring\nstop: {{rounds: 1}}\n", encoding="utf-8")
    second.write_text(
        f"{base}strategy: dpsgd\ntopology: ring\nstop: {{rounds: 1, target: {{accuracy: 0.9}}}}\n",
        encoding="utf-8",
    )
    out = tmp_path / "runs"
    done = CliRunner().invoke(
        app, ["run", str(first), str(second), "--timing-only", "--out", str(out), "--quiet"]
    )
    assert done.exit_code == 2
    assert "b.yaml:6: stop.target: a timing-only run has no accuracy" in done.output
    assert not out.exists()  # not even the first one has run
