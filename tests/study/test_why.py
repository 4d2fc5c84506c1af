"""Why an order of clients helps or harms: the main findings of a page, in runs of their own."""

from __future__ import annotations

import pytest
import yaml

import fedsim
from fedsim.study import paper
from fedsim.study.claims import findings
from fedsim.study.file import load
from fedsim.study.results import runs

STUDY = paper.PAPERS / "curriculum-why" / "clients-quick.yaml"
METHODS = ("all clients", "random pools", "random pools, whole rounds", "easy first")
LABELS, WRONG = "2 labels", "sorted by wrong labels"
CASES = [
    # The page has gains of 0.1 and more here; half of that must be left on any processor.
    ({"metric": "accuracy", "by": 0.04}, ("all clients", "random pools", LABELS)),
    ({"metric": "accuracy", "by": 0.04}, ("random pools, whole rounds", "random pools", LABELS)),
    ({"metric": "accuracy", "by": 0.05}, ("easy first", "random pools", WRONG)),
    ({"metric": "labels_lately", "higher": True, "by": 1.0}, ("random pools", "easy first", LABELS)),
]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_small_rounds_cost_where_labels_differ_and_easy_first_leaves_out_what_is_wrong(tmp_path):
    """Of three seeds one may be against it; the mean may not, and has to be at least the margin."""
    study = yaml.safe_load(STUDY.read_text(encoding="utf-8"))
    study["methods"] = {name: study["methods"][name] for name in METHODS}
    study["worlds"] = {name: study["worlds"][name] for name in (LABELS, WRONG)}
    study["vary"] = {"seed": [1, 2, 3]}
    study["claims"] = []
    done = fedsim.sweep(study, out=tmp_path, together=True, jobs=12)
    assert [one.reason for one in done if one.reason] == []
    claims = [
        {"text": f"{better}, {world}", "rounds": [6, 20], **asked,
         "better": [{"method": better, "world": world}], "worse": [{"method": worse, "world": world}]}
        for asked, (better, worse, world) in CASES
    ]  # fmt: skip
    asked = load({**study, "claims": claims}).study.claims
    for found in findings(asked, runs(tmp_path / study["name"])):
        assert found.here[0] >= found.claim.by, found.claim.text
        assert found.right >= 2, found.claim.text
        assert len(found.gains) == 3
