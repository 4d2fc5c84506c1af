"""The page on stopping, going on and reuse is true: its commands do what it says, in its order."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "resume.md").read_text(encoding="utf-8")
COMMANDS = [
    line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()
]


def run(folder: Path, command: str) -> str:
    """Run a command of the page, with the stars that a shell would replace."""
    words = []
    for word in command.split():
        key, _, path = word.rpartition("=")
        found = sorted(folder.glob(path)) if "*" in path else []
        words.append(f"{key}={found[0]}" if found and key else str(found[0]) if found else word)
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, (words, done.stderr)
    return done.stdout


def summary(folder: Path) -> dict[str, object]:
    (file,) = folder.glob("digits-*/summary.json")
    return dict(json.loads(file.read_text()))


@pytest.mark.slow
def test_the_commands_do_what_it_says(tmp_path: Path) -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "digits.yaml").write_text(text)
    first, second, third, fourth = (tmp_path / name for name in ("first", "second", "third", "fourth"))
    said = {}
    for command in COMMANDS:
        if "JOB" in command:
            job = re.search(r"job ([0-9a-f]+)", said["show"])
            assert job is not None
            command = command.replace("JOB", job[1])
        said[command.split()[1]] = run(tmp_path, command)
        if command.split()[1] == "retime":
            began = summary(first)
    assert (began["rounds"], summary(first)["rounds"]) == (10, 15)
    assert (summary(second)["jobs"], summary(second)["jobs_reused"]) == (0, 60)
    assert summary(third)["weights_hash"] == summary(second)["weights_hash"] == began["weights_hash"]
    assert "  network.up_mbps: 2.0 | 1.0\n" in said["diff"]
    assert said["replay-job"].count("equal to the last bit") >= 2
    assert summary(fourth)["accuracy"] > began["accuracy"]  # type: ignore[operator]
    assert len(list(fourth.glob("digits-*/models/*.safetensors"))) == 2
    (app,) = (tmp_path / "fifth").iterdir()
    before = json.loads((app / "summary.json").read_text())
    (app / "summary.json").unlink()
    with (app / "replies.tape").open("r+b") as file:
        file.truncate((app / "replies.tape").stat().st_size // 2)
    (text,) = re.findall(r"```text\n(fedsim resume .*)\n```", PAGE)
    run(tmp_path, text)
    assert json.loads((app / "summary.json").read_text())["run_hash"] == before["run_hash"]
