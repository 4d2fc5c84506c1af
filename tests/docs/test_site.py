"""The pages are built without a warning, and each can be reached."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def listed(nav):
    """Return the files that a table of contents names."""
    for entry in nav:
        (inner,) = entry.values()
        yield from [inner] if isinstance(inner, str) else listed(inner)


def test_every_page_is_in_the_table_of_contents():
    names = list(listed(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]))
    pages = (file for ending in ("*.md", "*.ipynb") for file in DOCS.rglob(ending))
    assert sorted(names) == sorted(str(file.relative_to(DOCS)) for file in pages)


@pytest.mark.slow
def test_the_pages_are_built_without_a_warning(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_MKDOCS_2_WARNING", "1")
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    page = (tmp_path / "site" / "api.html").read_text(encoding="utf-8")
    assert set(re.findall(r'<h3 id="fedsim\.(\w+)"', page)) >= {"run", "check", "sweep", "compare", "Result"}
    assert "&gt;&gt;&gt;" not in re.sub(r"<pre>.*?</pre>", "", page, flags=re.DOTALL)  # examples are code
    assert ":class:" not in page
    assert ":func:" not in page
