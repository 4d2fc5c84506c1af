"""The grid of a Flower app: its server is code that is not ours."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from flwr.app import Message

from fedsim.errors import RunError
from fedsim.flower import compat
from fedsim.flower.apps.threads import Ended, Threads
from fedsim.flower.gridview import is_patient
from fedsim.flower.simulate.grid import Line, SimGrid
from fedsim.pulse import beats
from fedsim.running import patience
from fedsim.running.exchange import Exchange, TimeUp
from fedsim.running.instruction import Instruction, Wait
from fedsim.world.clock import Clock

WAITING_LOOKS, BUSY_LOOKS = 1_000, 10_000
"""Looking so often who is online is waiting for somebody to come: with pauses between, and without."""


POLL_S = 0.1
"""How long a server that looks at the clock, but does not sleep, needs from one pull to the next."""

log = logging.getLogger("fedsim")


class _Shared(Line):
    """Lets several threads of a server wait at the same time."""

    threads: Threads

    @property
    def clock(self) -> Clock:
        return self.world.clock

    @property
    def over(self) -> bool:
        """Whether the simulated time is over."""
        return self._time_up

    def wait(self, wait: Wait, timeout_s: float | None = None) -> None:
        if self.threads.alone:
            with self.threads.inside():
                super().wait(wait, timeout_s)
        else:
            Exchange.wait(self, wait, timeout_s)

    def stay(self, wait: Wait, timeout_s: float | None) -> None:
        if self.threads.alone:
            super().stay(wait, timeout_s)
        else:
            self.clock.count_wait()
            what = str(wait) if wait.missing else "simulated time"
            self.threads.wait(lambda: bool(wait.over.processed), timeout_s, what, True)

    def stand_still(self) -> None:
        with self.threads.inside():
            super().stand_still()

    def pass_time(self, began_us: int, trouble: str) -> None:
        with self.threads.inside():
            super().pass_time(began_us, trouble)


class AppGrid(SimGrid):
    """A grid for a ServerApp, which may catch exceptions, sleep, and start threads; see :class:`SimGrid`.

    Any thread that the app's own code starts may use it; see :class:`fedsim.flower.apps.threads.Threads`.

    Attributes:
        keeps_time: whether the server has looked at a clock since it last pulled.
    """

    line: _Shared
    _line = _Shared

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.share(Threads(Path()))
        self._looks = self._waits = 0
        self.keeps_time = False
        self._members = {node.id for node in self.world.members}
        self._selfish: set[str] = set()
        self._vain: tuple[int, set[frozenset[str]]] = (-1, set())

    def share(self, threads: Threads) -> None:
        """Be the grid of an app's threads."""
        self.threads = self.line.threads = threads
        threads.place = self.line

    @property
    def ended(self) -> TimeUp | RunError | None:
        """What has ended the run, and None before; every call raises :class:`Ended` from then on."""
        return self.threads.ended

    def get_node_ids(self) -> list[int]:
        """Return the clients that are online, sorted, in any thread.

        Time passes only for a server that asks again and again and does nothing else.
        """
        if self.threads.knows():
            with self._carried():
                self._looks += 1
                if self._looks > BUSY_LOOKS:
                    trouble = "the ServerApp looks again and again who is online"
                    self.line.pass_time(self.world.clock.now, trouble)
        return super().get_node_ids()

    @property
    def run(self) -> Any:
        """A copy of the description of the run."""
        return copy.copy(self._run)

    def set_run(self, run: Any) -> None:
        """Set the description of the run; there is only one.

        Raises:
            RuntimeError: if it is another one's.
        """
        if run.run_id != self._run.run_id:
            raise RuntimeError(f"Cannot find the run with ID: {run.run_id}")
        self._run = run

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Send messages.

        Returns:
            Their ids, with an empty one for a message to a node that does not exist.
        """
        with self._carried():
            self._looks = self._waits = 0
            sent = list(messages)
            ids = iter(super().push_messages([one for one in sent if self._is_sent(one)]))
            return [next(ids) if self._is_member(one) else self._keep(one) for one in sent]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the replies that have arrived.

        If there are none, a server may do something else: sleep, or look at the clock. One that asks again at once
        waits for the next reply; one that keeps time, for a moment.
        """
        with self._carried():
            self._looks = 0
            ids = list(message_ids)
            own = [self._unheard(id) for id in ids if id not in self._open]
            wanted = [self._open[id] for id in ids if id in self._open]
            kept, self.keeps_time = self.keeps_time, False
            if not wanted:
                self.line.check_idle()
                return own
            if is_patient():
                return own + self._next(wanted)
            replies = self._read(self.line.take(wanted))
            if replies or not self._asks_again(frozenset(ids)):
                return own + replies
            return own + self._next(wanted, POLL_S if kept else None)

    def _asks_again(self, ids: frozenset[str]) -> bool:
        """Tell whether a server has asked for the same before, and no time has passed since."""
        now_us = self.world.clock.now
        if self._vain[0] != now_us:
            self._vain = now_us, set()
        again = ids in self._vain[1]
        self._vain[1].add(ids)
        return again

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Send messages and wait for the replies; one whose timeout is over from the start gets none."""
        with self._carried():
            self._looks = self._waits = 0
            sent = list(messages)
            there = [one for one in sent if self._is_sent(one)]
            own = [self._unheard(self._keep(one)) for one in sent if not self._is_member(one)]
            if timeout is not None and timeout <= 0:
                super().push_messages(there)
                return []
            return own + (super().send_and_receive(there, timeout=timeout) if there or not own else [])

    def _is_member(self, message: Message) -> bool:
        return message.metadata.dst_node_id in self._members

    def _is_sent(self, message: Message) -> bool:
        """Tell whether a message has somewhere to go.

        Raises:
            ValueError: if a SuperLink would not take it.
        """
        if message.metadata.reply_to_message_id or message.metadata.ttl <= 0:
            raise ValueError(f"Invalid message: {message}")
        return self._is_member(message)

    def _keep(self, message: Message) -> str:
        """Take a message that no client will get, and return its id: none, if there is no such node at all."""
        node = message.metadata.dst_node_id
        if node != self.server.id:
            log.warning("a message goes to node %d, but clients are 0 to %d", node, len(self._members) - 1)
            return ""
        self._count += 1
        self._selfish.add(str(self._count))
        return str(self._count)

    def _unheard(self, id: str) -> Message:
        """Return what a SuperLink replies where no client does."""
        if id in self._selfish:
            self._selfish.remove(id)
            return compat.lost_reply(id, self.server.id, compat.NODE_UNAVAILABLE, "a server is no client")
        return compat.lost_reply(id, self.server.id, compat.UNAVAILABLE, "there is no such message any more")

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

    def _watch(self, made: Sequence[Instruction]) -> None:
        with self.threads.inside():
            super()._watch(made)

    @contextmanager
    def _carried(self) -> Iterator[None]:
        """Let nothing that ends a run be caught on its way."""
        if self.ended is not None:
            raise Ended(str(self.ended)) from self.ended
        try:
            if not self.threads.knows():
                reason = (
                    "the grid is used from a thread that a library has started, whose order is not known; start it "
                    "with threading or concurrent.futures in the app's own code"
                )
                raise RunError(reason, self.server.id, sim_time_s=self.world.clock.now_s, phase="server")
            yield
        except (TimeUp, RunError) as error:
            self.threads.fail(error)


@contextmanager
def watched(grid: AppGrid, patience_s: float | None, round: Callable[[], int]) -> Iterator[None]:
    """Stop a server that waits for something real for too long.

    Args:
        grid: the server's.
        patience_s: for how long, in seconds of real time; None waits for ever.
        round: returns the round, for the error.

    Raises:
        StalledError: with the line that ran at that moment, in whatever thread.
    """
    clock, threads = grid.world.clock, grid.threads
    with ExitStack() as stack:
        with threads.inside():  # it looks from a thread that is not the app's
            stack.enter_context(
                patience.limited(
                    patience_s,
                    lambda: clock.signs + threads.switches + beats(),
                    lambda: (round(), clock.now_s),
                    lambda: threads.running,
                )
            )
        try:
            yield
        except Ended:
            if threads.interrupt is not None:
                raise threads.interrupt from None
            raise
