"""Heat maps of studies, against numbers worked out by hand; and where they are shown."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import LogNorm, TwoSlopeNorm

import fedsim
from fedsim.errors import ConfigError
from fedsim.study import heat
from fedsim.study.asked import Claim, Map
from fedsim.study.claims import HOLDS, findings, shown
from fedsim.study.file import dump, load, said
from tests.study.test_compare import ran

ENDS = {
    # samples, share: the ends of a, b and c in three seeds
    ("10", "0.2"): {"a": [0.6, 0.7, 0.8], "b": [0.5, 0.5, 0.5], "c": [0.4, 0.4, 0.4]},
    ("10", "1"): {"a": [0.5, 0.5, 0.5], "b": [0.5, 0.6, 0.7], "c": [0.8, 0.8, 0.8]},
    ("80", "0.2"): {"a": [0.5, 0.6, 0.4], "b": [0.5, 0.5, 0.5], "c": [0.1, 0.2, 0.3]},
}


def some(ends=ENDS, **more):
    """Return runs of methods in cells of samples and shares, which end at the given values."""
    return [
        replace(one, settings={**one.settings, "samples": samples, "share": share})
        for (samples, share), methods in ends.items()
        for method, values in methods.items()
        for seed, value in enumerate(values, 1)
        for one in [ran([0.1, value], seed, method, **more)]
    ]


def asked(**more):
    return Map.model_validate({"rows": "samples", "columns": "share", **more})


def test_a_cell_holds_the_gain_over_the_best_of_the_others():
    found = heat.heat(asked(better=["a"], worse=["b", "c"]), some())
    assert [found.values(place) for place in range(3)] == [[""], ["10", "80"], ["0.2", "1"]]
    gains = {where[1:]: cell.here[0] for where, cell in found.cells.items()}
    assert gains == pytest.approx({("10", "0.2"): 0.2, ("10", "1"): -0.3, ("80", "0.2"): 0.0}, abs=1e-12)
    assert found.chosen["", "10", "0.2"] == ("a", "b")
    assert found.chosen["", "10", "1"] == ("a", "c")
    titles, rows = heat.table(found)
    assert titles == ["samples \\ share", "0.2", "1"]
    assert rows[0][2] == "-0.3 [-0.3, -0.3] against c"
    assert rows[1][2] == "–"


def test_the_best_of_the_better_side_stands_for_it():
    found = heat.heat(asked(better=["b", "a"], worse=["c"]), some())
    assert [chosen for chosen, _ in found.chosen.values()] == ["a", "b", "a"]  # 0.7, 0.6 and 0.5 on average
    assert heat.table(found)[1][0][1] == "+0.3 [+0.2, +0.4] a"


def test_without_a_worse_side_a_cell_holds_the_number_itself():
    found = heat.heat(asked(better=["c"]), some())
    assert heat.table(found)[1] == [["10", "0.4 [0.4, 0.4]", "0.8 [0.8, 0.8]"], ["80", "0.2 [0.1, 0.3]", "–"]]
    every = heat.heat(asked(), some())  # the mean over the methods: (0.7 + 0.5 + 0.4) / 3
    assert every.cells["", "10", "0.2"].here[0] == pytest.approx(1.6 / 3)
    distance = heat.heat(asked(better=["b", "c"]), some(metric="distance"))  # of which less is better
    assert distance.chosen["", "10", "0.2"] == ("c", "")
    assert distance.cells["", "10", "0.2"].here[0] == pytest.approx(0.4)


def test_methods_may_be_columns_that_are_compared_with_the_best_of_their_row():
    found = heat.heat(Map(rows="samples", columns="method", worse=["b", "c"]), some())
    assert found.values(2) == ["a", "b", "c"]
    # over both shares: a ends at 0.6 on average, b at 0.55, c at 0.6
    assert [round(found.cells["", "10", one].here[0], 12) for one in "abc"] == [0.0, -0.05, 0.0]


def test_a_ratio_and_a_cost_are_around_one():
    ratio = heat.heat(asked(better=["a"], worse=["b"], ratio=True), some(metric="distance"))
    gain = (math.log(0.5 / 0.6) + math.log(0.5 / 0.7) + math.log(0.5 / 0.8)) / 3
    assert ratio.cells["", "10", "0.2"].here[0] == pytest.approx(math.exp(gain))
    norm, _ = heat._colours(ratio)
    assert isinstance(norm, LogNorm)
    assert norm.vmin * norm.vmax == pytest.approx(1.0)
    norm, _ = heat._colours(heat.heat(asked(better=["a"], worse=["b"]), some()))
    assert isinstance(norm, TwoSlopeNorm)
    assert (norm.vmin, norm.vcenter) == (-norm.vmax, 0.0)


def test_whoever_never_comes_to_a_target_is_told_apart_from_nothing():
    found = heat.heat(asked(better=["a"], worse=["b"], target={"accuracy": 0.55}), some())
    [first, second] = heat.table(found)[1]
    assert first == ["10", "∞", "−∞"]
    assert second[1] == "∞"  # a in one seed, b in none
    nobody = heat.heat(asked(better=["a"], worse=["b"], target={"accuracy": 0.45}, metric="bytes"), some())
    assert heat.table(nobody)[1][0][1] == "1 times [1, 1]"
    heat.draw(found)


def test_most_seeds_decide_where_some_never_come_to_a_target():
    """To 0.55, a and b come in the first seed, after a round each; in the other two one of them alone."""
    ends = {
        ("10", "0.2"): {"a": [0.6, 0.6, 0.6], "b": [0.6, 0.5, 0.5]},
        ("10", "1"): {"a": [0.6, 0.5, 0.5], "b": [0.6, 0.6, 0.6]},
        ("80", "0.2"): {"a": [0.6, 0.6, 0.6], "b": [0.6, 0.6, 0.5]},
    }
    found = heat.heat(asked(better=["a"], worse=["b"], target={"accuracy": 0.55}), some(ends))
    assert heat.table(found)[1] == [
        ["10", "∞ in 2 of 3", "−∞ in 2 of 3"],
        ["80", "1 times [1, 1] in 2 of 3", "–"],
    ]
    figure = heat.draw(found)
    assert [one.get_text() for one in figure.axes[0].texts] == ["∞", "−∞", "1", "–"]
    norm, _ = heat._colours(found)
    shades = [heat._shade(found, ("", "10", share), norm) for share in ("0.2", "1")]
    assert shades == [norm.vmax, norm.vmin]


def test_two_seeds_make_nothing_bold():
    ends = {
        ("10", "0.2"): {"a": [0.6, 0.7], "b": [0.5, 0.5]},
        ("80", "0.2"): {"a": [0.6] * 3, "b": [0.5] * 3},
    }
    figure = heat.draw(heat.heat(asked(better=["a"], worse=["b"]), some(ends)))
    assert [(one.get_text(), one.get_weight()) for one in figure.axes[0].texts] == [
        ("+0.15", "normal"),
        ("+0.1", "bold"),
    ]


def test_a_third_setting_makes_panels_and_empty_cells_stay_empty():
    runs = [
        replace(one, settings={**one.settings, "sf": sf})
        for sf in ("0.5", "1")
        for one in some()
        if sf == "1" or one.settings["samples"] == "10"
    ]
    found = heat.heat(asked(better=["a"], worse=["b"], panels="sf"), runs)
    titles, rows = heat.table(found)
    assert titles[:2] == ["sf", "samples \\ share"]
    assert [row[:2] for row in rows] == [["0.5", "10"], ["0.5", "80"], ["1", "10"], ["1", "80"]]
    assert rows[1][2:] == ["–", "–"]
    figure = heat.draw(found)
    assert [ax.get_title(loc="left") for ax in figure.axes[:2]] == ["sf = 0.5", "sf = 1"]
    assert [one.get_text() for one in figure.axes[0].texts] == ["+0.2", "-0.1", "–", "–"]


def test_only_what_is_not_zero_by_chance_is_bold():
    figure = heat.draw(heat.heat(asked(better=["a"], worse=["b"]), some()))
    weights = {one.get_text(): one.get_weight() for one in figure.axes[0].texts}
    assert weights["+0.2"] == "bold"  # 0.1, 0.2 and 0.3
    assert weights["-0.1"] == "normal"  # 0, -0.1 and -0.2
    assert weights["–"] == "normal"


@given(
    st.lists(st.floats(0, 1), min_size=3, max_size=5),
    st.lists(st.floats(0, 1), min_size=3, max_size=3),
)
def test_a_cell_is_the_claim_of_its_two_sides(mine, theirs):
    runs = some({("1", "1"): {"a": mine, "b": theirs}})
    found = heat.heat(asked(better=["a"], worse=["b"], share=0.5), runs)
    [same] = findings([Claim(text="x", better=["a"], worse=["b"], share=0.5)], runs)
    assert found.cells["", "1", "1"].here == same.here
    assert (shown(found.cells["", "1", "1"]), same.verdict) == (
        shown(same),
        found.cells["", "1", "1"].verdict,
    )


STUDY = {
    "name": "s",
    "base": {
        "data": {"clients": 4},
        "model": "softmax",
        "strategy": {"name": "fedprox", "participants": 2, "mu": 0.0, "local": {"steps": 2, "lr": 0.5}},
        "stop": {"rounds": 2},
        "record": {"report": False, "events": False},
    },
    "methods": {"near": {"strategy.mu": 10.0}, "free": {}},
    "vary": {"strategy.participants": [1, 4], "strategy.local.steps": [1, 5], "seed": [1, 2]},
    "map": {
        "rows": "strategy.participants",
        "columns": "strategy.local.steps",
        "better": ["free"],
        "worse": ["near"],
        "title": "Who is held",
    },
}


@pytest.mark.slow
def test_a_sweep_leaves_a_map_and_a_page_shows_it(tmp_path):
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({**STUDY, "title": "Held"}))
    page = {"title": "Ours", "source": "nobody", "claim": "Some.", "differs": "All.", "quick": ["s.yaml"]}
    (tmp_path / "ours.yaml").write_text(yaml.safe_dump(page))
    asked = {"quick": True, "out": tmp_path / "pages", "runs": tmp_path / "runs"}
    file, done = fedsim.reproduce(str(tmp_path / "ours.yaml"), **asked)
    assert len(done) == 16
    text = file.read_text()
    assert "![Who is held](s-map.png)" in text
    assert "](s.png)" in text
    row = next(line for line in text.splitlines() if line.startswith("| 4 |"))
    assert row.count("[") == 2
    comparison = fedsim.compare(tmp_path / "runs" / "s")
    files = {one.name for one in comparison.write(tmp_path / "out")}
    assert {"map.png", "map.svg", "map.pdf"} < files
    assert row in comparison.markdown()
    assert "<h2>Who is held</h2>" in (tmp_path / "out" / "comparison.html").read_text()
    study = {**STUDY, "title": "Held", "map": {**STUDY["map"], "alone": True}}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(study))
    file, again = fedsim.reproduce(str(tmp_path / "ours.yaml"), **{**asked, "out": tmp_path / "alone"})
    assert not any(one.new for one in again)
    assert "](s.png)" not in file.read_text()
    assert {one.name for one in file.parent.iterdir()} == {"ours-quick.md", "s-map.png"}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            {"rows": "strategy.particpants"},
            r"map\.rows: .*is no setting of the study; did you mean strategy\.par",
        ),
        ({"columns": "strategy.participants"}, r"columns: .*must be different settings"),
        ({"better": ["fre"]}, r"map\.better\.0: fre: is no method of the study; did you mean free\?"),
        ({"worse": [], "ratio": True}, r"worse: .*is empty, so that there is no ratio"),
        ({"colums": "x"}, r"map\.colums: unknown key; did you mean columns\?"),
        ({"target": {"loss": 1, "accuracy": 1}}, r"must be one metric and its value"),
    ],
)
def test_a_map_of_what_is_not_there_is_refused(more, message):
    with pytest.raises(ConfigError, match=message):
        load({**STUDY, "map": {**STUDY["map"], **more}})


def test_a_map_without_runs_is_refused():
    with pytest.raises(ConfigError, match="map: samples: no cell has a run of what is compared"):
        heat.heat(asked(better=["z"]), some())


def test_a_study_with_a_map_is_read_as_it_was_written(tmp_path):
    study = load(STUDY).study
    (tmp_path / "s.yaml").write_text(dump(study))
    assert said(tmp_path / "s.yaml") == study


def test_a_ratio_is_claimed_by_a_factor():
    runs = some({("1", "1"): {"a": [0.1, 0.2, 0.3], "b": [0.2, 0.4, 0.6]}}, metric="distance")
    one = {"text": "half as far", "better": ["a"], "worse": ["b"], "ratio": True}
    [twice, thrice] = findings([Claim(**one, by=1.9), Claim(**one, by=3)], runs)
    assert (twice.verdict, shown(twice)) == (HOLDS, "2 times [2, 2]")
    assert thrice.right == 0
    for wrong, rule in (({"by": 0}, "must be greater than 0"), ({"worse": [], "by": 1}, "there is no ratio")):
        with pytest.raises(ValueError, match=rule):
            Claim(**{**one, **wrong})


def test_each_value_of_what_is_tuned_for_gets_the_best_of_its_own(tmp_path):
    """Of two settings in step each has a trial for each step size, and what was best for one is not the other's."""
    study = {
        **STUDY,
        "methods": {},
        "map": None,
        "vary": {"zip": {"strategy.participants": [1, 4], "strategy.mu": [0.0, 1000.0]}, "seed": [1]},
        "tune": {"strategy.local.lr": [0.001, 0.5]},
        "tune_each": ["strategy.participants"],
        "tune_by": {"metric": "loss"},
    }
    plan = load(study)
    labels = [point.label for point in plan.trials()]
    assert labels == [
        f"strategy.participants={n}, strategy.local.lr={lr}, seed=0" for n in (1, 4) for lr in (0.001, 0.5)
    ]
    study["tune_each"] = ["strategy.participants", "strategy.mu"]
    done = fedsim.sweep(study, out=tmp_path)
    # With mu = 1000 a step size above 2 / 1000 throws the weights away from where they began.
    assert [one.point.settings["strategy.local.lr"] for one in done] == [0.5, 0.001]
    tuned = json.loads((tmp_path / "s" / "tuned.json").read_text())
    assert tuned["strategy.participants=4 in strategy.mu=1000.0"] == {"strategy.local.lr": 0.001}


@pytest.mark.parametrize("key", ["seed", "strategy.mu"])
def test_only_what_varies_can_be_tuned_for(key):
    with pytest.raises(ConfigError, match=rf"tune_each\.0: {key}: must be a key of vary, and not the seed"):
        load({**STUDY, "tune": {"strategy.local.lr": [1]}, "tune_each": [key]})
