"""What can be told of a worker process that has died, however the news comes."""

from __future__ import annotations

import signal
import time
from concurrent.futures.process import BrokenProcessPool

import pytest

from fedsim.flower.apps.workers import Death, Workers


@pytest.fixture
def workers(tmp_path):
    made = Workers(2, str(tmp_path), 1)
    yield made
    made.close()


class Unwritten:
    """The handle of a process of whose end another thread was told, which writes it down late."""

    def __init__(self, popen):
        self._popen, self._looks = popen, 0

    def __getattr__(self, name):
        return getattr(self._popen, name)

    def poll(self, *options):
        self._looks += 1
        return self._popen.poll(*options) if self._looks >= 5 else None

    def wait(self, timeout=None):
        return self.poll()


@pytest.mark.parametrize("late", [False, True])
def test_who_a_dead_process_was_at_work_for(late, workers):
    workers.submit(0, 4, time.sleep, 3600)
    dead = workers.submit(1, 4, signal.raise_signal, signal.SIGKILL)
    if late:
        for process in workers._started:
            process._popen = Unwritten(process._popen)
    with pytest.raises(BrokenProcessPool):
        workers.result(dead)
    assert workers.death() == Death(1, 4, "killed by SIGKILL")
    assert "killed by SIGKILL" in workers.deaths()
