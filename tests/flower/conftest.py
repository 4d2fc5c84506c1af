"""Apps on disk."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

APPS = Path(__file__).parent / "apps"


@pytest.fixture
def app(tmp_path):
    """Copy an app so that a test can change it: ``app("plain", {"client.py": ("old", "new")})``."""

    def copy(name, changes=None, **tables):
        folder = tmp_path / name
        shutil.copytree(APPS / name, folder, ignore=shutil.ignore_patterns("__pycache__"))
        for file, (old, new) in (changes or {}).items():
            path = next(folder.rglob(file))
            text = path.read_text()
            assert old in text, file
            path.write_text(text.replace(old, new))
        for table, lines in tables.items():
            with (folder / "pyproject.toml").open("a") as file:
                file.write(f"\n[tool.{table}]\n{lines}\n")
        return folder

    return copy
