"""Another process, as the one that tells it what to do sees it."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
from typing import BinaryIO, NoReturn, Protocol, cast

from fedsim.learn.engines.worker import PLACES, desks, receive, send

GRACE_S = 2.0
"""How long a process may take to end of itself."""


class Told(Protocol):
    """What a process is told first, whatever it is to do."""

    @property
    def desks(self) -> tuple[str, int]:
        """Return the file for what goes to and fro, and the size of one desk in bytes."""


def end() -> NoReturn:
    """End this process at once: what Python takes down piece by piece, and torch with it, takes about a second."""
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


class Process:
    """Another process.

    Args:
        start: what it is told first.
        news: where its answers are put, as (process, message); an empty message says that it has ended.
        module: its ``main`` is what the process does.
    """

    def __init__(
        self,
        start: Told,
        news: queue.SimpleQueue[tuple[Process, bytes]],
        module: str = "fedsim.learn.engines.worker",
    ) -> None:
        # Without Python's own way to start processes, which would run the user's script again.
        code = "import json, sys; sys.path[:] = json.loads(sys.argv[1])"
        code += f"; from {__name__} import end; from {module} import main; main(); end()"
        command = [sys.executable, "-c", code, json.dumps(sys.path)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._input, self._output = cast(BinaryIO, self._process.stdin), cast(BinaryIO, self._process.stdout)
        self.desks = desks(*start.desks)
        self.free = list(range(PLACES))
        self.ready = False
        self._news = news
        threading.Thread(target=self._listen, name="fedsim-worker", daemon=True).start()
        self.tell(pickle.dumps(start))

    def tell(self, message: bytes) -> None:
        """Send a message, if anybody is there to read it: who is not has been heard of, or will be."""
        try:
            send(self._input, message)
        except OSError:
            return

    def _listen(self) -> None:
        while message := receive(self._output):
            self._news.put((self, message))
        self._news.put((self, b""))

    def ended(self) -> str:
        """Say how it has ended."""
        code = self._process.wait()
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    def close(self) -> None:
        """End it; what it is at is not waited for."""
        with contextlib.suppress(OSError):  # it has ended already, and something had not been read
            self._input.close()
        try:
            self._process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._output.close()
