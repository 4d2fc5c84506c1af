"""What stops a process from outside."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Terminated(KeyboardInterrupt):
    """Somebody has sent SIGTERM."""

    exit_code = 128 + signal.SIGTERM


def leave_at_once() -> None:
    """Let Ctrl-C end a process that is about to end anyway: without a word, wherever it is by then."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM stop what runs inside as Ctrl-C does, unless the program handles it in its own way."""
    own = threading.current_thread() is threading.main_thread()
    if not own or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def stop(*_: Any) -> None:
        raise Terminated

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
