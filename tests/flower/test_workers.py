"""What can be told of a worker process that has died, however the news comes."""

from __future__ import annotations

import math
import signal
import time
from concurrent.futures.process import BrokenProcessPool

import pytest

from fedsim.flower import compat
from fedsim.flower.apps.workers import Death, Workers


@pytest.fixture
def workers(tmp_path):
    made = Workers(2, str(tmp_path), 1)
    yield made
    made.close()


class Unwritten:
    """The handle of a process of whose end another thread was told, which writes it down late."""

    def __init__(self, popen):
        self._popen, self._ended_s = popen, math.inf

    def __getattr__(self, name):
        return getattr(self._popen, name)

    def poll(self, *options):
        code, now_s = self._popen.poll(*options), time.monotonic()
        self._ended_s = self._ended_s if code is None else min(self._ended_s, now_s)
        return code if now_s > self._ended_s + 1.0 else None

    def wait(self, timeout=None):
        return self.poll()


@pytest.mark.parametrize("late", [False, True])
def test_who_a_dead_process_was_at_work_for(late, workers):
    workers.submit(0, 4, time.sleep, 3600)
    dead = workers.submit(1, 4, signal.raise_signal, signal.SIGKILL)
    if late:
        for process in workers._started:
            process._popen = Unwritten(process._popen)
    paused = []
    with compat.slow_time(paused.append, lambda: True):  # as in a run of an app
        with pytest.raises(BrokenProcessPool):
            workers.result(dead)
        assert workers.death() == Death(1, 4, "killed by SIGKILL")
    assert not paused  # asking for its end takes no simulated time
    assert "killed by SIGKILL" in workers.deaths()
