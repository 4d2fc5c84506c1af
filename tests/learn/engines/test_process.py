"""How another process ends."""

import queue
import time
from types import SimpleNamespace

import pytest

from fedsim.learn.engines.desk import reserve
from fedsim.learn.engines.process import Process

MAIN = """
import atexit, sys
from pathlib import Path
from fedsim.learn.engines.worker import send

def main():
    atexit.register(lambda: Path({left!r}).write_text("left"))
    print("said", end="", file=sys.stderr)
    send(sys.stdout.buffer, b"up")
    sys.stdin.buffer.read()
    {then}
"""


def started(tmp_path, monkeypatch, then="pass"):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "does_little.py").write_text(MAIN.format(left=str(tmp_path / "left"), then=then))
    start, news = SimpleNamespace(desks=(reserve(2**16), 2**12)), queue.SimpleQueue()
    process = Process(start, news, "does_little")
    assert news.get(timeout=60) == (process, b"up")
    return process, news


def test_a_process_does_what_is_to_be_done_at_its_end(tmp_path, monkeypatch, capfd):
    process, _ = started(tmp_path, monkeypatch)
    process.close()
    assert process.ended() == "exit code 0"
    assert (tmp_path / "left").read_text() == "left"
    assert capfd.readouterr().err == "said"


def test_a_process_that_fails_says_how(tmp_path, monkeypatch, capfd):
    process, news = started(tmp_path, monkeypatch, "raise KeyError(7)")
    process.close()
    assert process.ended() == "exit code 1"
    assert "KeyError: 7" in capfd.readouterr().err
    assert news.get(timeout=10) == (process, b"")


@pytest.mark.slow  # it waits until the time to end is over
def test_a_process_that_does_not_end_is_killed(tmp_path, monkeypatch):
    process, _ = started(tmp_path, monkeypatch, "import time; time.sleep(60)")
    began = time.monotonic()
    process.close()
    assert process.ended() == "killed by SIGKILL"
    assert time.monotonic() - began < 30
