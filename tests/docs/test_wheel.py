"""What pip installs from the built wheel is whole: the quickstart runs without a clone of the project."""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*words: object, cwd: Path) -> str:
    done = subprocess.run([str(word) for word in words], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build from what git knows, so that no file that lies about is taken."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    run("git", "clone", "--quiet", ROOT, source, cwd=folder)
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", folder, source, cwd=folder)
    (made,) = folder.glob("*.whl")
    return made


@pytest.mark.slow
def test_the_quickstart_runs_from_the_wheel_alone(wheel: Path, tmp_path: Path) -> None:
    """The dependencies are those of this environment, lest gigabytes are loaded again; fedsim is the wheel's."""
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", wheel, cwd=tmp_path)
    site = Path(
        run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip()
    )
    (site / "beside.pth").write_text(sysconfig.get_path("purelib") + "\n")
    where = run(
        python, "-c", "import fedsim, strategies; print(fedsim.__file__, strategies.__path__)", cwd=tmp_path
    )
    assert str(ROOT) not in where
    file = tmp_path / "quickstart.yaml"
    file.write_text((ROOT / "experiments" / "quickstart.yaml").read_text(encoding="utf-8"))
    said = run(python.with_name("fedsim"), "run", file, "--set", "stop.rounds=3", "--quiet", cwd=tmp_path)
    (report,) = (tmp_path / "runs").glob("*/report.html")
    assert report.name in said
    run(python.with_name("fedsim"), "init", "mine", cwd=tmp_path)
    run(python.with_name("fedsim"), "check", "mine/experiment.yaml", cwd=tmp_path)
    run(python.with_name("fedsim"), "flower", "init", "amd", "--strategy", "fedamd", cwd=tmp_path)
    shown = run(python.with_name("fedsim"), "compare", "runs", cwd=tmp_path)
    assert "| fedamd |" in shown


@pytest.mark.slow
def test_the_wheel_has_all_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert wheel.name.startswith("fedsim_lab-")
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {
        "fedsim",
        "fedsim_lab",
        "strategies",
        "topologies",
    }
    here = run("git", "ls-files", "fedsim", "strategies", "topologies", cwd=ROOT).splitlines()
    assert set(here) == {name for name in names if ".dist-info/" not in name}


def test_extras_are_of_libraries_that_some_code_asks_for() -> None:
    """An extra that nothing uses would promise what is not there."""
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    code = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "fedsim").rglob("*.py"))
    code += "".join(file.read_text(encoding="utf-8") for file in (ROOT / "docs").rglob("*.md"))
    for extra, text in setup["options.extras_require"].items():
        for line in filter(None, text.splitlines()):
            library = line.partition(">=")[0].strip().removesuffix("-skinny")
            if extra not in ("dev", "docs"):
                assert re.search(rf"\b{library.replace('-', '_')}\b", code), (extra, library)
