"""What docs/own shows is complete: each page's Python and YAML, saved side by side, make a run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

import fedsim
from fedsim.cli.app import app

FOLDER = Path(__file__).parents[2] / "docs" / "own"
KINDS = {
    "data": "datasets",
    "partition": "partitions",
    "topology": "topologies",
    "server-strategy": "strategies",
    "peer-strategy": "strategies",
    "personal": "strategies",
    "selector": "selectors",
    "fault": "faults",
    "sink": "trackers",
}


def blocks(page: str, language: str) -> list[str]:
    return re.findall(
        rf"```{language}\n(.*?)```", (FOLDER / f"{page}.md").read_text(encoding="utf-8"), re.DOTALL
    )


@pytest.mark.parametrize("page", KINDS)
def test_a_page_is_all_that_it_takes(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,), (*pieces, text) = blocks(page, "python"), blocks(page, "yaml")
    first = re.match(r"# (\w+\.py)\n", code)
    assert first is not None
    (tmp_path / first[1]).write_text(code)
    for piece in pieces:  # what stands above shows a block alone
        whole = {**yaml.safe_load(text), "beside": str(tmp_path), "model": "mlp", **yaml.safe_load(piece)}
        fedsim.run(whole, out=tmp_path / "pieces", record__report=False)
    (tmp_path / "mine.yaml").write_text(text)
    result = fedsim.run(tmp_path / "mine.yaml", out=tmp_path / "runs", record__report=False)
    assert result.summary["rounds"] >= 3
    again = fedsim.run(tmp_path / "mine.yaml", out=tmp_path / "runs", record__report=False)
    assert again.summary["run_hash"] == result.summary["run_hash"]
    monkeypatch.chdir(tmp_path)
    (name,) = re.findall(rf"\b{first[1][:-3]}:\w+", text)
    shown = CliRunner().invoke(app, ["list", KINDS[page], name])
    assert shown.exit_code == 0, shown.output
    assert "Example:" in shown.output


def test_every_page_is_listed() -> None:
    listed = set(re.findall(r"\]\(([\w-]+)\.md\)", (FOLDER / "README.md").read_text(encoding="utf-8")))
    assert listed == {file.stem for file in FOLDER.glob("*.md")} - {"README"}


def test_links_lead_somewhere() -> None:
    for file in [*FOLDER.glob("*.md"), FOLDER.parent / "networks.md"]:
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", file.read_text(encoding="utf-8")):
            assert (file.parent / target).exists(), (file.name, target)


def test_experiments_on_networks_run(tmp_path: Path) -> None:
    found = {}
    for text in blocks("../networks", "yaml"):
        result = fedsim.run(yaml.safe_load(text), out=tmp_path, record__report=False)
        found[result.summary["strategy"]] = result.metrics()
    tiers = found["hierarchical"]
    # 650 weights of 4 bytes and a count of 8, in 10 rounds: up and down for the 17 that are no edge servers, and in
    # every second round for the 4 that are.
    assert tiers["edge_bytes"][-1] == 10 * 2 * 17 * (650 * 4 + 8)
    assert tiers["cloud_bytes"][-1] == 5 * 2 * 4 * (650 * 4 + 8)
    assert len(found["multi_server"]["accuracy"]) == 11


def test_the_rings_have_the_classes_they_say(tmp_path: Path) -> None:
    (code,) = blocks("data", "python")
    names: dict[str, object] = {}
    exec(compile(code, "rings.py", "exec"), names)
    made = names["rings"](samples=9, noise=0.0, clients=2, seed=0)  # type: ignore[operator]
    assert made.x.norm(dim=1).round().sub(1).long().tolist() == made.y.tolist()
    assert made.groups.tolist() == [0] * 6 + [1] * 6
