"""The page of peers: each cell has its source, and the README's rows are the page's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "peers.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
NEEDS_NO_SOURCE = {"not found", "no deployment"}


def tables(text: str) -> list[dict[str, dict[str, str]]]:
    """Return, for each table whose first column is called feature, its rows by name, and their cells by column."""
    found: list[dict[str, dict[str, str]]] = []
    columns: list[str] = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")] if line.startswith("|") else []
        if cells and cells[0] == "feature":
            columns = cells[1:]
            found.append({})
        elif not cells:
            columns = []
        elif columns and cells[0].strip("-"):
            assert len(cells) == len(columns) + 1, line
            assert cells[0] not in found[-1]
            found[-1][cells[0]] = dict(zip(columns, cells[1:], strict=True))
    return found


def sources() -> dict[str, dict[str, str]]:
    """Return what is said below each feature's headline, by tool."""
    written = PAGE.split("## Where it is written")[1].split("\n## ")[0]
    parts = (part.split("\n", 1) for part in written.split("\n### ")[1:])
    return {
        name: dict(re.findall(r"^\* ([\w-]+): (.*?)(?=^\* |\Z)", text, re.M | re.S)) for name, text in parts
    }


ROWS = {name: cells for table in tables(PAGE) for name, cells in table.items()}


def test_the_features_are_explained_in_their_order():
    assert len(ROWS) == sum(map(len, tables(PAGE)))  # none is in two tables
    assert list(sources()) == list(ROWS)


@pytest.mark.parametrize("feature", ROWS)
def test_every_cell_has_its_source(feature):
    said = sources()[feature]
    assert set(said) <= set(ROWS[feature])
    assert set(said) >= {tool for tool, cell in ROWS[feature].items() if cell not in NEEDS_NO_SOURCE}
    assert all("`" in text for tool, text in said.items()), said


def test_what_is_said_of_fedsim_is_in_this_repository():
    paths = {
        path for said in sources().values() for path in re.findall(r"`([\w./-]+/[\w.-]+)`", said["fedsim"])
    }
    assert len(paths) > 30
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_the_tools_are_those_whose_versions_are_named():
    columns = {tuple(cells) for cells in ROWS.values()}
    named = re.findall(r"^\| ([\w-]+) \| ", PAGE.split("## What a run is")[0], re.M)
    assert columns == {tuple(name for name in named if name not in ("short", "---"))}


def test_the_readme_shows_some_of_the_rows():
    (table,) = tables(README)
    assert 5 <= len(table) <= 10
    for feature, cells in table.items():
        assert len(cells) <= 5
        assert cells.items() <= ROWS[feature].items(), feature


def test_peers_have_what_fedsim_has_not():
    """The last table is theirs: in each of its rows somebody does more than say that it was not found."""
    theirs = tables(PAGE)[-1]
    assert len(theirs) >= 4
    for cells in theirs.values():
        assert any(cell not in NEEDS_NO_SOURCE for tool, cell in cells.items() if tool != "fedsim")
