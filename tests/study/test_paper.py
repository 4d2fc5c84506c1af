"""Pages of papers: whole, the same for the same runs, and true."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

import fedsim
from fedsim.cli.app import app
from fedsim.errors import ConfigError
from fedsim.running.build import depends_on_values, make_strategy, prepare
from fedsim.study import paper
from fedsim.study.claims import findings
from fedsim.study.file import load
from fedsim.study.results import runs

ROOT = Path(__file__).parents[2]
STUDIES = sorted(file for file in paper.PAPERS.glob("*/*.yaml") if file.name != paper.PAGE)

STUDY = {
    "title": "Two ways",
    "base": {
        "data": {"clients": 4},
        "model": "softmax",
        "strategy": {"name": "fedprox", "participants": 2, "mu": 0.0, "local": {"steps": 2, "lr": 0.5}},
        "stop": {"rounds": 3},
        "record": {"report": False, "events": False},
    },
    "methods": {"near": {"strategy.mu": 10.0}, "free": {}},
    "worlds": {"few": {}, "many": {"data.clients": 8}},
    "vary": {"seed": [1, 2, 3]},
    "claims": [{"text": "free | is faster", "better": ["free"], "worse": ["near"], "paper": "2 points"}],
}
PAGE = {"title": "Ours", "source": "nobody", "claim": "Something.", "differs": "All.", "quick": ["two.yaml"]}


@pytest.fixture
def page(tmp_path):
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(STUDY))
    (tmp_path / "ours.yaml").write_text(
        yaml.safe_dump(
            {**PAGE, "found": "Slow.", "found_quick": "Free.", "full": ["two.yaml"], "checked": ["own.yaml"]}
        )
    )
    return tmp_path / "ours.yaml"


def test_a_page_of_ones_own_is_written_once_and_again_the_same(page, tmp_path):
    where = {"quick": True, "out": tmp_path / "pages", "runs": tmp_path / "runs"}
    file, done = fedsim.reproduce(str(page), **where)
    text = file.read_text()
    assert (file.name, len(done)) == ("ours-quick.md", 12)
    assert text.startswith("# Ours\n")
    assert "\n## What it comes to\n\nFree.\n\n## Two ways\n" in text
    assert "### few" in text
    assert re.search(r"\| free \\\| is faster \| 2 points \| [+-]0\.\S+ .* \| \d of 3 \|", text)
    figures = re.findall(r"!\[[^]]*\]\((\S+)\)", text)
    assert figures == ["two-1.png", "two-2.png"]
    assert {one.name for one in file.parent.iterdir()} == {"ours-quick.md", *figures}
    for one in done:
        assert f"{one.point.settings['seed']}: `{one.summary['run_hash'][:12]}`" in text
    before = {one.name: one.read_bytes() for one in file.parent.iterdir()}
    again, later = fedsim.reproduce(str(page), **where)
    assert not any(one.new for one in later)
    assert {one.name: one.read_bytes() for one in again.parent.iterdir()} == before
    whole, same = fedsim.reproduce(str(page), **{**where, "quick": False})
    assert whole.name == "ours.md"
    assert not any(one.new for one in same)  # the whole study is the quick one here
    assert "\n## What it comes to\n\nSlow.\n\n## Two ways\n" in whole.read_text()
    assert {one.name: one.read_bytes() for one in whole.parent.iterdir() if one != whole} == before


def test_what_could_not_be_run_is_said(page, tmp_path):
    study = {**STUDY, "base": {**STUDY["base"], "data": {"name": "cifar10", "clients": 4, "root": "nowhere"}}}
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(study))
    asked = ["reproduce", str(page), "--out", str(tmp_path / "pages"), "--runs", str(tmp_path / "runs")]
    done = CliRunner().invoke(app, [*asked, "--quiet", "--jobs", "1"])
    assert done.exit_code == 1
    assert done.stdout.splitlines()[0] == "12 runs, 12 failed"
    assert (
        "Nothing could be run: method=free, world=few, seed=1: "
        in (tmp_path / "pages" / "ours.md").read_text()
    )


def test_a_paper_that_is_not_there_is_told(tmp_path):
    with pytest.raises(ConfigError, match=r"reproduce: fedmad: no such paper; did you mean fedamd\?"):
        paper.find("fedmad")
    (tmp_path / "p.yaml").write_text("title: x\nsuorce: y\nclaim: c\ndiffers: d\n")
    with pytest.raises(ConfigError, match=r"p\.yaml:2: suorce: unknown key; did you mean source\?"):
        paper.find(str(tmp_path / "p.yaml"))


@pytest.mark.parametrize("file", STUDIES, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_the_studies_of_papers_are_well_written(file, monkeypatch, tmp_path):
    """A quick one can be run anywhere; the others need their data, and are held to their keys."""
    plan = load(file)
    kinds = {(point.settings.get("method"), point.settings.get("world")): point for point in plan.points()}
    [(first, home), *_] = kinds
    monkeypatch.setenv("FEDSIM_DATA", str(tmp_path))
    for (method, world), point in kinds.items():
        experiment = plan.experiment(point)
        if file.stem.endswith("-quick") and (method == first or world == home):
            prepare(experiment, dry=depends_on_values(make_strategy(experiment)) is False)


@pytest.mark.parametrize("name", paper.names())
def test_a_page_is_of_files_that_are_there(name):
    found = paper.find(name)
    files = [*found.studies(True), *found.studies(False), *(paper.PAPERS / one for one in found.page.checked)]
    assert all(file.is_file() for file in files)
    mine = {file.name for file in (paper.PAPERS / name).glob("*.yaml")} - {paper.PAGE}
    assert mine == {*found.page.quick, *found.page.full}
    written = {
        True: ROOT / "docs" / "papers" / f"{name}-quick.md",
        False: ROOT / "docs" / "papers" / f"{name}.md",
    }
    assert written[True].exists()
    for quick in (one for one in written if written[one].exists()):
        text = written[quick].read_text(encoding="utf-8")
        for study in (load(file).study for file in found.studies(quick)):
            assert study.title in text
            assert all(f"| {claim.text} |" in text for claim in study.claims)


CHECKED = [file for name in paper.names() for file in paper.find(name).page.checked]


@pytest.mark.parametrize("file", CHECKED)
def test_a_papers_own_settings_lack_nothing_but_the_data(file, monkeypatch, tmp_path):
    """All that a check has against them is that there are no files."""
    monkeypatch.setenv("FEDSIM_DATA", str(tmp_path))
    with pytest.raises(ConfigError) as caught:
        fedsim.check(paper.PAPERS / file)
    assert {problem.key.partition(".")[0] for problem in caught.value.problems} <= {"data", "network"}
    assert all(re.search("no such file|not found", problem.rule) for problem in caught.value.problems)


HEADLINES = {
    "fedamd": [
        "comes to the exact minimiser: ends below a distance of 0.001",
        "ends nearer to it than FedAvg",
        "ends nearer to it than SCAFFOLD",
    ],
    "curriculum": ["random above anti, Dir(0.05)", "curriculum above anti, Dir(0.05)"],
    "modest": [
        "three times less communication to 0.8 than D-PSGD",
        "fewer gradients to 0.8 than one-peer D-SGD",
        "goes on to the end (550 s) with two aggregators that need 0.6 of a sample",
    ],
}
"""What a paper's page must be able to say of it: the mean is as claimed, and so are more than half of the seeds."""


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", HEADLINES)
def test_the_headline_claims_have_the_direction_of_the_paper(name, tmp_path):
    """Of three to five seeds one may be against it by chance; the mean and the majority may not.

    Where a claim holds in the committed pages, its gains are several standard errors above zero, so that another
    processor's rounding does not turn a majority.
    """
    _, done = fedsim.reproduce(name, quick=True, out=tmp_path / "pages", runs=tmp_path / "runs", jobs=2)
    assert all(one.folder is not None for one in done)
    found = {}
    for file in paper.find(name).studies(True):
        outcomes = [one for one in done if one.folder.parent.name == load(file).study.name]
        found |= {one.claim.text: one for one in paper.section(file, tmp_path / "runs", outcomes).found}
    for text in HEADLINES[name]:
        assert found[text].verdict in ("holds", "partly"), text
        assert 2 * found[text].right > len(found[text].gains), text


FOUND = {
    "order-quick": {
        "MoDeST: curriculum above random": 0.03,
        "MoDeST: random above anti": 0.03,
    },
    "serverless-quick": {
        "comes to the exact minimiser without a server: ends below a distance of 0.001": -0.001,
        "FedAMD without a server ends nearer to it than MoDeST": 0.01,
    },
}
"""What the page beyond the papers has found, and by how much in the mean of three seeds at least."""


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("file", FOUND)
def test_what_was_found_beyond_the_papers_still_is(file, tmp_path):
    """The margins are a fraction of the gains on the committed page: half of them or less."""
    given = yaml.safe_load((paper.PAPERS / "beyond" / f"{file}.yaml").read_text(encoding="utf-8"))
    given["claims"] = [claim for claim in given["claims"] if claim["text"] in FOUND[file]]
    given |= {"claimed": True, "vary": {"seed": [1, 2, 3]}}
    assert all(one.status == "done" for one in fedsim.sweep(given, out=tmp_path))
    found = findings(load(given).study.claims, runs(tmp_path))
    assert len(found) == len(FOUND[file])
    for one in found:
        gains = list(one.gains.values())
        assert len(gains) == 3, one.claim.text
        assert sum(gains) / 3 > FOUND[file][one.claim.text], one.claim.text
