"""The grid of a Flower app: its server is code that is not ours."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from flwr.app import Message

from fedsim.errors import RunError
from fedsim.flower.simulate.grid import SimGrid
from fedsim.running.exchange import TimeUp

WAITING_LOOKS, BUSY_LOOKS = 1_000, 10_000
"""Looking so often who is online is waiting for somebody to come: with pauses between, and without."""


class Ended(BaseException):
    """Carries the end of a run through an app's code, which may go on after every Exception."""


class AppGrid(SimGrid):
    """A grid for a ServerApp, which may catch exceptions, sleep, and start threads; see :class:`SimGrid`.

    ``ended`` is what has ended the run, and None before; every call raises :class:`Ended` from then on.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.ended: TimeUp | RunError | None = None
        self._thread = threading.get_ident()
        self._looks = self._waits = 0

    def get_node_ids(self) -> list[int]:
        """Return the clients that are online, sorted, in any thread.

        Time passes only for a server that asks again and again and does nothing else.
        """
        if threading.get_ident() == self._thread:
            with self._carried():
                self._looks += 1
                if self._looks > BUSY_LOOKS:
                    trouble = "the ServerApp looks again and again who is online"
                    self.line.pass_time(self.world.clock.now, trouble)
        return super().get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Send messages."""
        with self._carried():
            self._looks = self._waits = 0
            return super().push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the replies that have arrived; if there are none yet, wait for the next one."""
        with self._carried():
            self._looks = 0
            return super().pull_messages(message_ids)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Send messages and wait for the replies."""
        with self._carried():
            self._looks = self._waits = 0
            return super().send_and_receive(messages, timeout=timeout)

    def sleep(self, seconds: float) -> None:
        """Let simulated time pass while too few clients are online."""
        with self._carried():
            super().sleep(seconds)

    def pause(self, seconds: float) -> None:
        """Let simulated time pass because the server's own code asks for it.

        One that has long done nothing but look who is online waits for more clients; that may be in vain.
        """
        with self._carried():
            self._waits = self._waits + 1 if self._looks else 0
            self._looks = 0
            if self._waits > WAITING_LOOKS and not self._open:
                super().sleep(seconds)
            else:
                self.line.pause(seconds)

    @contextmanager
    def _carried(self) -> Iterator[None]:
        """Let nothing that ends a run be caught on its way."""
        if self.ended is not None:
            raise Ended(str(self.ended)) from self.ended
        try:
            if threading.get_ident() != self._thread:
                reason = "the grid may be used from the ServerApp's own thread alone"
                raise RunError(reason, self.server.id, sim_time_s=self.world.clock.now_s, phase="server")
            yield
        except (TimeUp, RunError) as error:
            self.ended = error
            raise Ended(str(error)) from error
