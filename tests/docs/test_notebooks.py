"""The notebooks in the documentation run from beginning to end, and were executed when they were written."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[2] / "docs" / "notebooks"
FILES = sorted(FOLDER.glob("*.ipynb"))


def cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(cell):
    """Return what a cell has left, by kind: its numbers may have other last digits on another machine."""
    return [
        (one.output_type, *sorted(one.get("data", ()))) for one in cell.outputs if one.output_type != "stream"
    ]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_it_was_executed_and_says_nothing_of_where(file):
    notebook = nbformat.read(file, 4)
    nbformat.validate(notebook)
    assert all(cell.outputs for cell in cells(notebook))
    assert [cell.execution_count for cell in cells(notebook)] == list(range(1, 1 + len(cells(notebook))))
    assert "/tmp/" not in file.read_text(encoding="utf-8")
    assert str(FOLDER.parents[1]) not in file.read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_it_runs(file, tmp_path):
    before, notebook = (nbformat.read(file, 4) for _ in range(2))
    place = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=280, kernel_name="python3", resources=place).execute()
    for old, new in zip(cells(before), cells(notebook), strict=True):
        assert kinds(new) == kinds(old)
    if file.stem == "first-run":
        assert cells(notebook)[-1].outputs[0]["data"]["text/plain"] == "True"  # the same run again
        assert '<progress value="1.0000">' in cells(notebook)[0].outputs[-1]["data"]["text/html"]
