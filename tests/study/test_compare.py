"""What a comparison says, against numbers worked out by hand; and the files it leaves."""

from __future__ import annotations

import csv
import io
import math
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

import fedsim
from fedsim.cli.app import app
from fedsim.errors import ConfigError
from fedsim.study.compare import Comparison, compare
from fedsim.study.figure import band, held
from fedsim.study.figure import draw as figure
from fedsim.study.interval import mean
from fedsim.study.page import Shown, page, write
from fedsim.study.ran import Ran
from fedsim.study.results import results, runs
from fedsim.study.tables import as_csv, grid, latex, markdown

STUDY = {
    "name": "two",
    "base": {
        "data": {"clients": 4},
        "model": "softmax",
        "strategy": {"name": "fedprox", "participants": 2, "mu": 0.0, "local": {"steps": 2}},
        "network": {"up_mbps": 1.0},
        "stop": {"rounds": 6},
        "record": {"report": False, "events": False},
    },
    "methods": {"near": {"strategy.mu": 10.0}, "free": {}},
    "vary": {"seed": [1, 2]},
    "compare": {"baseline": "free", "target": {"accuracy": 0.5}, "x": ["rounds", "bytes"]},
}


def ran(values, seed=1, method="a", metric="accuracy", time_us=1_000_000, size=10**6, work=1000, joules=6.0):
    """Return a run that was evaluated at the start and at the end of each round."""
    count = len(values)
    rounds = np.arange(1, count)
    return Ran(
        Path(f"{method}-{seed}"),
        {"method": method, "seed": seed},
        {"run_hash": "0" * 64},
        {
            "round": np.arange(count),
            "time_us": np.arange(count) * time_us,
            "node": np.full(count, -1),
            "name": np.array([metric] * count),
            "value": np.array(values, float),
        },
        {
            "round": rounds,
            "time_us": rounds * time_us,
            "bytes_up": rounds * size,
            "work": rounds * float(work),
            "clients": rounds * 2,
        },
        {
            "role": np.array(["client", "client", "server"]),
            "bytes_up": np.array([10**6, 2 * 10**6, 99]),
            "bytes_down": np.array([0, 2 * 10**6, 99]),
            "joules": np.array([joules, 0.0, 0.0]),
        },
    )


AXES = ("rounds", "sim_time", "bytes", "gradients", "energy")


def test_what_a_target_took_is_what_had_been_spent_when_it_was_first_reached():
    curve = [0.1, 0.4, 0.6, 0.5]
    [row] = compare([ran(curve, time_us=2_500_000, size=3 * 10**6, work=4000)], target=0.55, axes=AXES).rows()
    assert (row.runs, row.reached) == (1, 1)
    # Round 2: 5 s, 6 MB, 8,000 gradients, and two thirds of 6 J.
    assert [row.costs[axis][0] for axis in AXES] == pytest.approx([2, 5.0, 6.0, 8.0, 4.0])
    assert (row.final[0], row.best[0], row.late[0]) == (0.5, 0.6, pytest.approx(0.4))
    assert row.node_mb == (1.0, 4.0)


def test_means_are_over_those_that_came_there():
    group = [ran([0, 0.5, 0.9], 1), ran([0, 0.2, 0.6], 2), ran([0, 0.1, 0.2], 3)]
    [row] = compare(group, target=0.5).rows()
    assert (row.runs, row.reached) == (3, 2)
    assert row.costs["rounds"][0] == 1.5
    assert row.final[0] == pytest.approx((0.9 + 0.6 + 0.2) / 3)
    [none] = compare(group, target=0.99).rows()
    assert none.reached == 0
    assert math.isnan(none.costs["rounds"][0])


def test_of_a_loss_less_is_better():
    [row] = compare([ran([3.0, 1.0, 2.0], metric="loss")], target=1.5).rows()
    assert (row.costs["rounds"][0], row.best[0]) == (1.0, 1.0)


def test_ratios_are_of_pairs_with_the_same_seed():
    mine = [ran([0, 0, 0, 0, 1.0], 1, "a"), ran([0, 1.0], 2, "a"), ran([0, 1.0], 3, "a")]
    theirs = [ran([0, 0, 1.0], 1, "b"), ran([0, 0, 1.0], 2, "b"), ran([0, 0.0], 3, "b")]
    a, b = compare([*mine, *theirs], target=0.9, baseline="b").rows()
    # Seed 1: 4 / 2 rounds. Seed 2: 1 / 2. Seed 3 has no pair, for b never came there. Their geometric mean is 1.
    assert a.ratios["rounds"][0] == pytest.approx(1.0)
    assert b.ratios == {}


@given(st.lists(st.floats(0, 1), min_size=2, max_size=8))
def test_an_interval_is_around_its_mean(values):
    middle, low, high = mean(values)
    assert min(values) - 1e-12 <= low <= middle + 1e-12
    assert middle - 1e-12 <= high <= max(values) + 1e-12
    assert mean(values) == (middle, low, high)  # the same every time


def test_no_interval_of_one_and_none_of_nothing():
    assert mean([0.5])[0] == 0.5
    assert math.isnan(mean([0.5])[1])
    assert math.isnan(mean([math.nan])[0])


def test_the_interval_of_two_values_is_worked_out_by_hand():
    """The mean of a resample of {0, 1} is 0, 1/2 or 1, with chances 1/4, 1/2, 1/4: the middle 95 % is all of it."""
    assert mean([0.0, 1.0]) == (0.5, 0.0, 1.0)
    low, high = band(np.array([[0.0, 5.0], [1.0, 5.0]]))
    assert (low.tolist(), high.tolist()) == ([0.0, 5.0], [1.0, 5.0])


def test_a_value_holds_until_the_next_one():
    x = np.array([-1.0, 0.0, 0.9, 1.0, 5.0])
    assert held(x, np.array([0.0, 1.0]), np.array([3.0, 4.0])).tolist() == [3.0, 3.0, 3.0, 4.0, 4.0]


# bad questions


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"by": "mehtod"}, "by: mehtod: is no setting of a-1; did you mean method?"),
        ({"metric": "acuracy"}, "metric: acuracy: was not measured by a-1; did you mean accuracy?"),
        ({"baseline": "b"}, "baseline: b: is no method"),
        (
            {"axes": ("round",)},
            "x: round: must be one of rounds, sim_time, bytes, gradients, updates, energy; did you mean rounds?",
        ),
    ],
)
def test_what_cannot_be_compared_is_told(asked, said):
    with pytest.raises(ConfigError) as caught:
        compare([ran([0, 1.0])], **asked)
    assert str(caught.value).startswith(said)


def test_runs_with_nothing_in_common_are_told():
    with pytest.raises(ConfigError, match="these runs have no metric in common; were all evaluated"):
        compare([ran([0, 1.0], metric="f1"), ran([0, 1.0], metric="auc", seed=2)])


def test_folders_without_runs_are_told(tmp_path):
    with pytest.raises(ConfigError, match="no such folder"):
        runs(tmp_path / "none")
    with pytest.raises(ConfigError, match="there is no finished run; fedsim run or fedsim sweep makes some"):
        runs(tmp_path)
    (tmp_path / "summary.json").write_text("{")
    (tmp_path / "experiment.yaml").write_text("name: x")
    with pytest.raises(ConfigError, match="its record cannot be read"):
        runs(tmp_path)


# tables


@pytest.fixture
def two() -> Comparison:
    group = [ran([0, 0.5, 0.9], seed, "A & B_1") for seed in (1, 2)] + [ran([0, 0.3, 0.6], 1, "c|d")]
    return compare(group, target=0.8, axes=("rounds",), baseline="A & B_1")


def test_a_table_for_people(two):
    titles, rows = grid(two)
    assert titles == [
        *("method", "accuracy 0.8 reached", "rounds to it", "rounds relative to A & B_1"),
        *("accuracy at the end", "best", "last ten", "MB of a client, least to most"),
    ]
    assert rows == [
        [
            "A & B_1",
            "2 of 2",
            "2 [2, 2]",
            "1",
            "0.9 [0.9, 0.9]",
            "0.9 [0.9, 0.9]",
            "0.467 [0.467, 0.467]",
            "1 to 4",
        ],
        ["c|d", "0 of 1", "–", "–", "0.6", "0.6", "0.3", "1 to 4"],
    ]
    assert markdown(two).splitlines()[-1] == "| c\\|d | 0 of 1 | – | – | 0.6 | 0.6 | 0.3 | 1 to 4 |"


def test_a_table_for_papers(two):
    lines = latex(two).splitlines()
    assert lines[0] == r"\begin{tabular}{lrrrrrrr}"
    assert lines[4].startswith(r"A \& B\_1 & 2 of 2 & 2 [2, 2] & 1 & ")
    assert lines[5].startswith(r"c|d & 0 of 1 & -- & -- & ")
    assert [line for line in lines if line.startswith("\\")] == [
        lines[0],
        r"\toprule",
        r"\midrule",
        r"\bottomrule",
        lines[-1],
    ]


def test_a_table_for_programs(two):
    first, second = csv.DictReader(io.StringIO(as_csv(two)))
    assert (first["method"], first["runs"], first["reached"]) == ("A & B_1", "2", "2")
    assert [float(first[name]) for name in ("rounds", "rounds_low", "rounds_high", "final")] == [
        2.0,
        2.0,
        2.0,
        0.9,
    ]
    assert (second["rounds"], second["rounds_low"], second["final_low"]) == ("", "", "")


def test_a_table_for_programs_has_units_of_one():
    """A round takes 2.5 s, 3 MB and 4,000 gradients; the whole run has two rounds, and 6 J."""
    group = [ran([0.1, 0.6, 0.7], time_us=2_500_000, size=3 * 10**6, work=4000)]
    group = [replace(one, summary={"wasted_samples": 500.0}) for one in group]
    asked = {"axes": ["sim_time", "bytes", "gradients", "updates"], "totals": ["bytes", "energy", "wasted"]}
    [row] = csv.DictReader(io.StringIO(as_csv(compare(group, target=0.5, **asked))))
    names = ["sim_time_s", "bytes", "gradients", "updates"]
    names += ["bytes_in_all", "joules_in_all", "wasted_gradients_in_all"]
    assert [float(row[name]) for name in names] == [2.5, 3e6, 4e3, 2, 6e6, 6.0, 500.0]


# what runs really leave


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("study")
    fedsim.sweep(STUDY, out=out)
    return out / "two"


def test_all_that_was_measured_is_one_tidy_table(folder):
    table = results(folder)
    assert list(table.columns)[:4] == ["run", "method", "seed", "round"]
    assert sorted(table["method"].unique()) == ["free", "near"]
    some = table[
        (table["method"] == "near")
        & (table["seed"] == 2)
        & (table["metric"] == "accuracy")
        & (table["node"] < 0)
    ]
    [path] = [one.path for one in runs(folder) if one.settings == {"method": "near", "seed": 2}]
    wanted = fedsim.Result(path, {}).metrics()
    np.testing.assert_array_equal(some["value"], wanted["accuracy"])
    np.testing.assert_array_equal(some["sim_time_s"], wanted["time_s"])
    np.testing.assert_array_equal(some["bytes"], wanted["bytes_up"])
    assert some["gradients"].iloc[0] == 0
    assert some["gradients"].is_monotonic_increasing


def test_runs_of_no_study_are_told_apart_by_strategy_and_seed(tmp_path, folder):
    [one] = runs(next(folder.glob("two-*")))
    assert one.settings["method"] == "fedprox"
    assert set(one.settings) == {"name", "method", "seed"}
    shutil.copytree(next(folder.glob("two-*")), tmp_path / "a" / "b")
    assert len(runs(tmp_path)) == 1
    assert len(runs(tmp_path, folder)) == 5


def test_a_study_says_itself_what_is_compared(folder):
    shown = fedsim.compare(folder)
    assert (shown.baseline, shown.target, shown.metric, list(shown.axes)) == (
        "free",
        0.5,
        "accuracy",
        ["rounds", "bytes"],
    )
    near, free = shown.rows()
    assert (near.name, free.name, near.runs) == ("near", "free", 2)
    other = fedsim.compare(folder, by="seed", target=0.3, metric="accuracy", baseline="1", x=["gradients"])
    assert list(other.groups) == ["1", "2"]
    assert shown._repr_html_().startswith('<img alt="accuracy" src="data:image/svg+xml;base64,')
    assert shown.plot().axes[0].get_xlabel() == "rounds"
    assert shown.latex() == latex(shown)


def test_the_same_runs_leave_the_same_files(folder, tmp_path):
    first, second = (fedsim.compare(folder).write(tmp_path / name) for name in ("one", "two"))
    assert [file.suffix for file in first] == [".md", ".tex", ".csv", ".html", ".png", ".svg", ".pdf"]
    for a, b in zip(first, second, strict=True):
        assert a.read_bytes() == b.read_bytes(), a.name
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be written"):
        fedsim.compare(folder).write(tmp_path / "file")


def test_the_command_prints_the_table_and_says_where_the_rest_is(folder, tmp_path):
    ran_ = CliRunner().invoke(
        app,
        [
            "compare",
            str(folder),
            "--target",
            "accuracy=0.3",
            "--x",
            "sim_time, bytes",
            "--out",
            str(tmp_path),
        ],
    )
    assert ran_.exit_code == 0, ran_.stderr
    assert ran_.stdout.startswith(
        "| method | accuracy 0.3 reached | simulated time (s) to it | sent (MB) to it | "
    )
    assert ran_.stdout.splitlines()[-1] == f"written to {tmp_path}: md, tex, csv, html, png, svg, pdf"
    wrong = CliRunner().invoke(app, ["compare", str(folder), "--target", "accuracy"])
    assert (wrong.exit_code, wrong.stderr) == (
        2,
        "--target: accuracy: must be METRIC=NUMBER, such as accuracy=0.9\n",
    )


@pytest.mark.parametrize(
    "target", ["accuracy=nan", "accuracy=inf", "=0.9", "accuracy", "accuracy=", "accuracy=true"]
)
def test_a_target_is_a_metric_and_a_number(target, folder):
    done = CliRunner().invoke(app, ["compare", str(folder), "--target", target])
    assert done.exit_code == 2
    assert done.output == f"--target: {target}: must be METRIC=NUMBER, such as accuracy=0.9\n"


def test_names_are_written_as_text(tmp_path):
    evil = compare([ran([0, 1.0], method="<script>alert(1)</script>")])
    assert page(evil).count("<script>") == 1  # our own, which sorts tables
    assert "&lt;script&gt;alert(1)" in page(evil)
    assert "<script>" not in Shown(**vars(evil))._repr_html_()
    assert len(write(evil, tmp_path)) == 7


BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
def test_the_page_fits_a_phone(folder, tmp_path):
    """A script that is put into the page writes down how wide it has become."""
    [file] = [one for one in fedsim.compare(folder).write(tmp_path) if one.suffix == ".html"]
    script = "<script>document.title = 'wide ' + document.documentElement.scrollWidth</script>"
    file.write_text(file.read_text().replace("</body>", f"{script}</body>"))
    command = [
        BROWSER,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--window-size=500,900",
        "--dump-dom",
        file.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "<title>wide 500</title>" in done.stdout


def test_the_worst_clients_are_those_that_do_worst_on_what_they_hold_out(tmp_path):
    given = {
        "data": {"clients": 4, "client_test_share": 0.2, "partition": {"name": "dirichlet", "alpha": 0.3}},
        "model": "softmax",
        "strategy": {"name": "fedavg", "participants": 2, "local": {"steps": 2}},
        "stop": {"rounds": 1},
        "record": {"report": False},
    }
    result = fedsim.run(given, out=tmp_path)
    (row,) = fedsim.compare(result.path).rows()
    [one] = runs(result.path)
    own = (
        (one.metrics["name"] == "client_accuracy") & (one.metrics["round"] == 1) & (one.metrics["node"] >= 0)
    )
    assert row.worst[0] == one.metrics["value"][own].min() < one.metrics["value"][own].max()


@pytest.mark.parametrize(
    ("metric", "rising"),
    [
        ("accuracy", True),
        ("client_accuracy_worst_decile", True),
        ("personal_accuracy_mean", True),
        ("tuned_accuracy", True),
        ("macro_f1", True),
        ("top_k", True),
        ("top_k_3", True),
        ("client_top_k_worst_decile", True),
        ("binary_recall", True),
        ("perplexity", False),
        ("personal_accuracy_gini", False),
        ("personal_loss_mean", False),
        ("loss", False),
    ],
)
def test_what_is_better_the_more_of_it_there_is(metric, rising):
    values = [0.2, 0.6, 0.4]
    [row] = compare([ran(values, metric=metric)], metric=metric, target=0.5).rows()
    assert row.best[0] == (0.6 if rising else 0.2)
    assert row.costs["rounds"][0] == (1 if rising else 0)


def test_a_study_says_whether_more_of_an_own_metric_is_better():
    curve = ran([0.2, 0.6, 0.4], metric="kappa")
    [row] = compare([curve], metric="kappa", target=0.5, higher=True).rows()
    assert (row.best[0], row.costs["rounds"][0]) == (0.6, 1)


def test_a_run_that_never_measured_a_number_is_left_out():
    found = compare([ran([math.nan, math.nan], method="a"), ran([0.1, 0.2], method="b")], metric="accuracy")
    assert [row.name for row in found.rows()] == ["b"]
    assert found.notes == ["left out, as accuracy was not measured: a-1"]


def test_a_mean_is_drawn_only_where_all_runs_had_been_evaluated():
    """The runs of gap are evaluated from 0 to 1 s, and from 3 to 4 s; that of single once, at the start."""
    late = ran([0.5, 0.45], 2, "gap")
    late = replace(late, metrics={**late.metrics, "time_us": late.metrics["time_us"] + 3_000_000})
    groups = [ran([0.3, 0.4], 1, "gap"), late, ran([0.8], method="single"), ran([0.5, 0.6], method="line")]
    [panel] = figure(compare(groups, axes=["sim_time"])).axes
    gap, single, line = panel.get_lines()[:3]
    assert (gap.get_xydata().tolist(), single.get_xydata().tolist()) == (
        [[1.0, 0.4], [4.0, 0.45]],
        [[0.0, 0.8]],
    )
    assert {gap.get_marker(), single.get_marker()} == {"o"}
    assert (line.get_xdata()[0], line.get_xdata()[-1], line.get_marker()) == (0.0, 1.0, "None")


def test_totals_are_those_of_the_whole_run():
    """Two rounds of 1 MB and 1,000 gradients; the run ended half a round, 0.5 MB and 250 gradients later."""
    whole = ran([0.1, 0.2, 0.3])
    more = {"bytes_up": 2_500_000, "work_samples": 2250.0, "wasted_samples": 250.0, "sim_time_s": 2.5}
    whole = replace(whole, summary=more)
    found = {cost: whole.total(cost) for cost in (*AXES, "wasted")}
    assert found == {
        "rounds": 2.0,
        "sim_time": 2.0,
        "bytes": 2.5,
        "gradients": 2.25,
        "energy": 6.0,
        "wasted": 0.25,
    }
    # 6 J in 2.5 s: 2.4 J in the first second, in which the target was reached.
    [row] = compare([whole], target=0.2, axes=["energy"]).rows()
    assert row.costs["energy"][0] == pytest.approx(2.4)


def test_a_server_without_a_battery_does_not_hide_what_clients_spend():
    whole = ran([0.1, 0.2])
    nodes = {**whole.nodes, "joules": np.array([2.0, 3.0, math.nan])}
    assert replace(whole, nodes=nodes).total("energy") == 5.0
    assert math.isnan(replace(whole, nodes={**nodes, "joules": np.full(3, math.nan)}).total("energy"))


def test_the_worst_tenth_is_that_of_the_models_that_clients_use():
    table = ran([0.5, 0.6])
    for name in ("accuracy_worst_decile", "client_accuracy_worst_decile", "personal_accuracy_worst_decile"):
        more = ran([0.1, len(name) / 100], metric=name).metrics
        both = {key: np.concatenate([column, more[key]]) for key, column in table.metrics.items()}
        table = replace(table, metrics=both)
        [row] = compare([table], metric="accuracy").rows()
        assert row.worst[0] == len(name) / 100
