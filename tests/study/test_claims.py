"""What runs say of claims, against numbers worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim.errors import ConfigError
from fedsim.study.asked import Claim, Measure
from fedsim.study.claims import HOLDS, NOT, PARTLY, UNKNOWN, findings, shown
from fedsim.study.compare import compare
from fedsim.study.file import dump, load, said
from fedsim.study.measure import number, taken
from fedsim.study.ran import Ran
from fedsim.study.tables import lines, verdicts
from tests.study.test_compare import ran

BASE = {
    "data": {"clients": 4},
    "model": "softmax",
    "strategy": {"name": "fedprox", "participants": 2, "mu": 0.0},
    "stop": {"rounds": 1},
}


def claim(**more):
    return Claim.model_validate({"text": "a is better", "better": ["a"], "worse": ["b"], **more})


def judged(asked, mine, theirs, **more):
    """Return what is found of a claim about the methods a and b, whose curves are given seed by seed."""
    runs = [ran(curve, seed, "a", **more) for seed, curve in enumerate(mine, 1)]
    runs += [ran(curve, seed, "b", **more) for seed, curve in enumerate(theirs, 1)]
    [found] = findings([asked], runs)
    return found


@pytest.mark.parametrize(
    ("mine", "theirs", "verdict", "seeds"),
    [
        ([0.9, 0.8, 0.7], [0.5, 0.6, 0.6], HOLDS, "3 of 3"),
        ([0.9, 0.8, 0.5], [0.5, 0.6, 0.6], PARTLY, "2 of 3"),  # means 0.4, 0.2 and -0.1
        ([0.9, 0.5, 0.5], [0.5, 0.6, 0.6], NOT, "1 of 3"),  # the mean is on its side, most seeds are not
        ([0.5, 0.6, 0.6], [0.9, 0.8, 0.7], NOT, "0 of 3"),
        ([0.9, 0.8], [0.5, 0.6], UNKNOWN, "2 of 2"),
        ([0.9, 0.8, 0.7], [0.5, 0.6], UNKNOWN, "2 of 2"),  # the third has no pair
        ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5], NOT, "0 of 3"),
    ],
)
def test_the_verdict_on_a_difference(mine, theirs, verdict, seeds):
    found = judged(claim(), [[0.0, x] for x in mine], [[0.0, x] for x in theirs])
    assert (found.verdict, found.seeds) == (verdict, seeds)


def test_a_difference_is_paired_by_seed():
    found = judged(claim(), [[0, 0.5], [0, 0.75], [0, 1.0]], [[0, 0.25], [0, 0.5], [0, 0.75]])
    assert found.here == (0.25, 0.25, 0.25)
    assert shown(found) == "+0.25 [+0.25, +0.25]"


def test_of_a_loss_less_is_better_unless_it_is_said_otherwise():
    curves = [[3.0, 1.0]] * 3, [[3.0, 2.0]] * 3
    assert judged(claim(), *curves, metric="loss").verdict == HOLDS
    assert judged(claim(higher=True), *curves, metric="loss").verdict == NOT


def test_a_margin_has_to_be_reached():
    curves = [[0, 0.75]] * 3, [[0, 0.5]] * 3
    assert judged(claim(by=0.25), *curves).verdict == HOLDS
    assert judged(claim(by=0.26), *curves).verdict == NOT


def test_costs_are_compared_as_ratios():
    mine, theirs = [[0, 0, 0.9], [0, 0.9], [0, 0.9]], [[0, 0, 0, 0, 0.9], [0, 0, 0.9], [0, 0, 0.9]]
    asked = {"metric": "rounds", "target": {"accuracy": 0.8}}
    found = judged(claim(**asked), mine, theirs)  # 4 / 2, 2 / 1 and 2 / 1
    assert found.here == pytest.approx((2.0, 2.0, 2.0))
    assert shown(found) == "2 times [2, 2]"
    assert judged(claim(**asked, by=2), mine, theirs).verdict in (HOLDS, NOT)  # equal up to rounding
    assert judged(claim(**asked, by=1.9), mine, theirs).verdict == HOLDS
    assert judged(claim(**asked, by=2.1), mine, theirs).verdict == NOT


@pytest.mark.parametrize(
    ("mine", "theirs", "verdict", "seeds"),
    [
        ([1, 1, 1], [0, 0, 0], HOLDS, "3 of 3"),  # only a ever comes to the target
        ([1, 1, 0], [0, 0, 1], PARTLY, "2 of 3"),
        ([0, 0, 1], [1, 1, 0], NOT, "1 of 3"),
        ([0, 0, 0], [0, 0, 0], UNKNOWN, "0 of 0"),  # nobody does
    ],
)
def test_who_never_comes_to_the_target_has_lost(mine, theirs, verdict, seeds):
    asked = claim(metric="bytes", target={"accuracy": 0.5})
    found = judged(asked, [[0.0, x] for x in mine], [[0.0, x] for x in theirs])
    assert (found.verdict, found.seeds) == (verdict, seeds)
    assert shown(found) == "–"


def test_without_anything_worse_a_value_has_to_be_reached():
    ends = [[1.0, 0.25], [1.0, 0.5], [1.0, 0.75]]
    asked = claim(worse=[], by=0.8)
    found = judged(asked, ends, [], metric="distance")
    assert (found.verdict, found.seeds, shown(found)) == (HOLDS, "3 of 3", "0.5 [0.25, 0.75]")
    assert judged(claim(worse=[], by=0.6), ends, [], metric="distance").verdict == PARTLY
    assert judged(claim(worse=[], by=0.6), ends, []).verdict == NOT  # of accuracy more is better
    rounds = judged(claim(worse=[], by=2, metric="rounds", higher=True), [[0, 0, 0]] * 3, [])
    assert (rounds.verdict, rounds.here[0]) == (HOLDS, 2.0)


def test_several_are_added_up_and_settings_choose():
    runs = [
        Ran(one.path, {**one.settings, "world": world}, one.summary, one.metrics, one.rounds, one.nodes)
        for world, ends in {"x": (0.9, 0.5), "y": (0.7, 0.6)}.items()
        for method, end in zip("ab", ends, strict=True)
        for seed in (1, 2, 3)
        for one in [ran([0, end], seed, method)]
    ]
    asked = claim(
        better=[{"method": "a", "world": "x"}, {"method": "b", "world": "y"}],
        worse=[{"method": "b", "world": "x"}, {"method": "a", "world": "y"}],
    )
    [found] = findings([asked], runs)
    assert found.here[0] == pytest.approx((0.9 - 0.5) - (0.7 - 0.6))
    [over_all] = findings([claim()], runs)  # the mean over the worlds
    assert over_all.here[0] == pytest.approx((0.4 + 0.1) / 2)


def test_an_equal_budget_leaves_away_what_came_after_it():
    """b has spent 3 MB in all, so that a counts up to its third round at 1 MB each, or to its sixth at half of that."""
    a = [ran([0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6], seed, "a", size=500_000) for seed in (1, 2, 3)]
    b = [ran([0.0, 0.1, 0.2, 0.35], seed, "b") for seed in (1, 2, 3)]
    [at_bytes] = findings([claim(equal="bytes")], a + b)
    assert at_bytes.here[0] == pytest.approx(0.6 - 0.35)
    [at_rounds] = findings([claim(equal="rounds")], a + b)
    assert at_rounds.here[0] == pytest.approx(0.3 - 0.35)
    [at_updates] = findings([claim(equal="updates", last=2)], a + b)
    assert at_updates.here[0] == pytest.approx((0.2 + 0.3) / 2 - (0.2 + 0.35) / 2)


@pytest.mark.parametrize(("there", "seeds"), [((), "0 of 3"), ((2,), "0 of 3"), ((1, 2, 3), "0 of 3")])
def test_what_broke_in_a_hard_world_is_not_better_for_it(there, seeds):
    """In both worlds a is 0.1 below b; in the hard one it broke, but for some seeds."""
    worlds = {"easy": {"a": 0.8, "b": 0.9}, "hard": {"a": 0.4, "b": 0.5}}
    runs = [
        replace(ran([0, end], seed, method), settings={"method": method, "world": world, "seed": seed})
        for seed in (1, 2, 3)
        for world, ends in worlds.items()
        for method, end in ends.items()
        if (method, world) != ("a", "hard") or seed in there
    ]
    [found] = findings([claim()], runs)
    assert (found.verdict, found.seeds) == (NOT, seeds)
    assert found.here == pytest.approx((-0.1, -0.1, -0.1))


def test_a_pair_may_differ_in_what_was_tuned():
    runs = [
        replace(
            ran([0, end], seed, method), settings={"method": method, "strategy.local.lr": rate, "seed": seed}
        )
        for seed in (1, 2, 3)
        for method, end, rate in (("a", 0.8, 0.1), ("b", 0.5, 0.2))
    ]
    [found] = findings([claim()], runs, tuned=["strategy.local.lr"])
    assert (found.verdict, found.seeds) == (HOLDS, "3 of 3")


def test_what_whole_runs_cost_is_compared_as_a_ratio_too():
    """Two rounds of 1 MB against four."""
    [found] = findings(
        [claim(metric="bytes", by=2)],
        [
            ran([0.0] * (rounds + 1), seed, name)
            for name, rounds in (("a", 2), ("b", 4))
            for seed in (1, 2, 3)
        ],
    )
    assert (shown(found), found.verdict) == ("2 times [2, 2]", HOLDS)


def test_an_equal_budget_may_be_one_of_energy():
    """Three rounds of a cost 2 J each; b spends 4 J in two rounds: of a, what came in those two counts."""
    runs = [ran([0, 0.5, 0.6, 0.9], seed, "a", joules=6.0) for seed in (1, 2, 3)]
    runs += [ran([0, 0.5, 0.5], seed, "b", joules=4.0) for seed in (1, 2, 3)]
    [found] = findings([claim(equal="energy")], runs)
    assert found.here == pytest.approx((0.1, 0.1, 0.1))


@pytest.mark.parametrize(
    ("asked", "value"),
    [
        ({}, 0.9),
        ({"last": 2}, 0.85),
        ({"share": 0.4}, 0.85),  # two of five
        ({"share": 0.1}, 0.9),
        ({"rounds": [1, 2]}, 0.35),
        ({"rounds": [7, 9]}, math.nan),
    ],
)
def test_which_evaluations_count(asked, value):
    one = ran([0.0, 0.2, 0.5, 0.8, 0.9])
    assert number(one, Measure(**asked), "accuracy") == pytest.approx(value, nan_ok=True)
    assert number(one, Measure(**asked), "gradients") == 4.0  # a cost is that of the whole run


@given(st.lists(st.floats(-1, 1), min_size=3, max_size=6))
def test_a_claim_and_its_contrary_do_not_both_hold(ends):
    curves = [[0.0, end] for end in ends], [[0.0, 0.0]] * len(ends)
    one = judged(claim(), *curves)
    other = judged(claim(better=["b"], worse=["a"]), *curves)
    assert (one.verdict in (HOLDS, PARTLY)) + (other.verdict in (HOLDS, PARTLY)) <= 1
    assert one.right + other.right == sum(end != 0 for end in ends)


def test_energy_and_time_to_a_target_are_those_of_its_round():
    found = taken(ran([0, 0.5, 0.9, 0.9], joules=9.0), "accuracy", 0.9)
    assert (found["rounds"], found["sim_time"], found["updates"], found["energy"]) == (2, 2.0, 4, 6.0)


def test_the_table_has_the_papers_numbers_where_there_are_some():
    plain = judged(claim(), [[0, 1.0]] * 3, [[0, 0.5]] * 3)
    told = judged(claim(paper="4.2 points"), [[0, 1.0]] * 3, [[0, 0.5]] * 3)
    assert verdicts([plain])[0] == ["claim", "here", "seeds", "verdict"]
    text = lines(*verdicts([plain, told])).splitlines()
    assert text[0] == "| claim | paper | here | seeds | verdict |"
    assert text[3] == "| a is better | 4.2 points | +0.5 [+0.5, +0.5] | 3 of 3 | holds |"


def test_what_was_tuned_is_a_column_and_no_difference_between_a_pair():
    runs = [
        Ran(one.path, {**one.settings, "x.lr": lr}, one.summary, one.metrics, one.rounds, one.nodes)
        for method, lr, curve in (("a", 0.1, [0, 0, 1.0]), ("b", 0.2, [0, 1.0]))
        for one in [ran(curve, 1, method)]
    ]
    found = compare(runs, target=0.5, baseline="a", tuned=["x.lr"], totals=["rounds", "bytes"])
    first, second = found.rows()
    assert (first.tuned, second.tuned) == ({"x.lr": "0.1"}, {"x.lr": "0.2"})
    assert second.ratios["rounds"][0] == pytest.approx(0.5)
    assert (first.totals["rounds"][0], second.totals["bytes"][0]) == (2.0, 1.0)


def test_a_claim_about_what_nobody_measured_is_told():
    with pytest.raises(ConfigError, match=r"a is better: acuracy was not measured; did you mean accuracy\?"):
        judged(claim(metric="acuracy"), [[0, 1.0]], [[0, 1.0]])


def test_a_ratio_of_few_pairs_says_of_how_many():
    asked = claim(metric="rounds", target={"accuracy": 0.5})
    found = judged(asked, [[0, 1.0]] * 3, [[0, 0, 1.0], [0, 0.0], [0, 0.0]])
    assert (found.verdict, shown(found)) == (HOLDS, "2 times in 1 of 3")


# the study file


def study(**more):
    return {"base": BASE, "methods": {"a": {}, "b": {"strategy.mu": 1.0}}, "vary": {"seed": [1, 2]}, **more}


def test_worlds_are_combined_with_methods_and_only_what_is_claimed_is_run():
    worlds = {"few": {"data.clients": 2}, "many": {"data.clients": 8}}
    plan = load(study(worlds=worlds, set={"stop.rounds": 3, "data.clients": 5}))
    assert [point.label for point in plan.points()][:3] == [
        "method=a, world=few, seed=1",
        "method=a, world=few, seed=2",
        "method=a, world=many, seed=1",
    ]
    last = plan.experiment(plan.points()[-1])
    assert (last.data.clients, last.stop.rounds, last.strategy.params["mu"]) == (8, 3, 1.0)
    asked = {
        "text": "x",
        "better": [{"method": "a", "world": "few"}],
        "worse": [{"method": "b", "world": "many"}],
    }
    some = load(study(worlds=worlds, claims=[asked], claimed=True))
    assert [point.label for point in some.points()] == [
        f"method={method}, world={world}, seed={seed}"
        for method, world in (("a", "few"), ("b", "many"))
        for seed in (1, 2)
    ]


def test_a_study_with_claims_that_is_written_down_can_be_read_again(tmp_path):
    claims = [{"text": "x", "better": ["a"], "worse": ["b"], "share": 0.2, "by": 0.5}]
    plan = load(
        study(claims=claims, tune={"strategy.local.lr": [0.1]}, tune_by={"metric": "loss", "last": 3})
    )
    (tmp_path / "study.yaml").write_text(dump(plan.study))
    assert said(tmp_path / "study.yaml") == plan.study


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (
            "{better: [c], worse: [b]}",
            "s.yaml:4: claims.0.better.0: c: is no method of the study; known: a, b",
        ),
        (
            "{better: [{sed: 1}], worse: [b]}",
            "claims.0.better.0: sed: is no setting of the study; did you mean seed?",
        ),
        ("{better: [a], worse: [{seed: 3}]}", "claims.0.worse.0: 3: is no seed of the study"),
        ("{better: [a]}", "worse: []: is empty, so that by must say what is to be reached"),
        ("{better: [], worse: [b]}", "claims.0.better: []"),
        (
            "{better: [a], worse: [b], rounds: [5, 1]}",
            "rounds: [5, 1]: must go from the first round to the last",
        ),
        ("{better: [a], worse: [b], share: 0.5, last: 3}", "share: 0.5: may not stand beside last or rounds"),
        (
            "{better: [a], worse: [b], metric: accuracy, target: {accuracy: 1}}",
            "must be a cost where there is a target",
        ),
        (
            "{better: [a], worse: [b], target: {accuracy: 1}, by: 0}",
            "by: 0.0: is a factor here, and must be greater",
        ),
        (
            "{better: [a], worse: [b], metric: bytes, share: 0.2}",
            "claims.0.share: 0.2: is about what was measured, and here it is a cost that counts",
        ),
        (
            "{better: [a], worse: [b], target: {accuracy: 1}, equal: bytes}",
            "claims.0.equal: bytes: is about what was measured",
        ),
        (
            "{better: [a], worse: [b], target: {accuracy: 1, loss: 2}}",
            "claims.0.target: {'accuracy': 1, 'loss': 2}: must be one metric and its value",
        ),
        ("{better: [a], worse: [b], equal: steps}", "claims.0.equal: steps: must be "),
    ],
)
def test_a_mistake_in_a_claim_is_one_line(text, rule, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "b.yaml").write_text("data: {clients: 3}\nstrategy: fedavg\nstop: {rounds: 2}\n")
    written = text.replace("{", "{text: x, ", 1)
    (tmp_path / "s.yaml").write_text(
        f"base: b.yaml\nmethods: {{a: {{}}, b: {{}}}}\nvary: {{seed: [1, 2]}}\nclaims: [{written}]\n"
    )
    with pytest.raises(ConfigError) as caught:
        load("s.yaml")
    assert rule in str(caught.value)
    assert str(caught.value).startswith("s.yaml:4: ")
    assert len(str(caught.value).splitlines()) == 1


def test_numbers_of_a_curve_are_of_one_length():
    one = ran([0.0, np.nan, 0.5]).curve("accuracy")
    assert {len(values) for values in one.values()} == {2}
