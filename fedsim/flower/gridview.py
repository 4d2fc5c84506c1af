"""A grid in front of another one, which it leaves everything to but for what a subclass does differently."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from flwr.app import Message
from flwr.serverapp import Grid

_PATIENT = ContextVar("patient", default=False)


@contextmanager
def patient() -> Iterator[None]:
    """Let a simulated grid wait for the next reply where there is none yet, not say that there is none."""
    mark = _PATIENT.set(True)
    try:
        yield
    finally:
        _PATIENT.reset(mark)


def is_patient() -> bool:
    """Tell whether whoever pulls replies wants to wait for the next one."""
    return _PATIENT.get()


class Shown(Grid):
    """A grid on which only some clients are online.

    Args:
        grid: the whole one.
        nodes: those that are shown; None shows all.
    """

    def __init__(self, grid: Grid, nodes: Sequence[int] | None = None) -> None:
        self.grid, self._nodes = grid, nodes

    def get_node_ids(self) -> list[int]:
        """Return those that are shown."""
        return list(self.grid.get_node_ids() if self._nodes is None else self._nodes)

    def set_run(self, run: Any) -> None:
        """Set the description of the run."""
        self.grid.set_run(run)

    @property
    def run(self) -> Any:
        """The description of the run."""
        return self.grid.run

    def create_message(self, *args: Any, **more: Any) -> Message:
        """Make a message."""
        return self.grid.create_message(*args, **more)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages and return their ids."""
        return self.grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that have arrived."""
        return self.grid.pull_messages(message_ids)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send messages and wait for the replies."""
        return self.grid.send_and_receive(messages, timeout=timeout)
