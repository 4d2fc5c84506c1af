"""A watchdog on real time: a run in which nothing happens for too long is stopped, and told where it hangs.

It looks from a thread of its own and interrupts like Ctrl-C, so it costs the run nothing. What it cannot do: interrupt
code outside of Python that never returns, and on the main thread of a program that handles SIGINT in its own way, or on
any other thread, also a blocking call such as ``time.sleep``, which it can only stop when that is over.
"""

from __future__ import annotations

import ctypes
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fedsim.errors import StalledError
from fedsim.world import scene

LOOKS = 10
"""How often the watchdog looks within the time that it waits."""


class Watch:
    """Watches one thread.

    Args:
        patience_s: how long it may give no sign of life, in seconds of real time.
        signs: returns a number that changes whenever something happens.
        runs: returns the id of the thread that this one waits for, if it does.
    """

    def __init__(
        self, patience_s: float, signs: Callable[[], int], runs: Callable[[], int] | None = None
    ) -> None:
        self.patience_s, self._signs, self._runs = patience_s, signs, runs
        self.scene: scene.Scene | None = None
        self._ident, self._over = threading.get_ident(), threading.Event()
        self._lock = threading.Lock()

    def start(self) -> None:
        """Begin to watch the thread that calls this."""
        threading.Thread(target=self._look, name="fedsim-patience", daemon=True).start()

    def stop(self) -> None:
        """Stop watching."""
        with self._lock:
            self._over.set()

    def _look(self) -> None:
        last, quiet = self._signs(), 0
        while not self._over.wait(self.patience_s / LOOKS):
            now = self._signs()
            quiet = quiet + 1 if now == last else 0
            last = now
            with self._lock:
                if quiet >= LOOKS and not self._over.is_set():
                    running = self._ident if self._runs is None else self._runs()
                    quiet, self.scene = 0, scene.of_thread(running)
                    _interrupt(self._ident)


@contextmanager
def limited(
    patience_s: float | None,
    signs: Callable[[], int],
    now: Callable[[], tuple[int, float]],
    runs: Callable[[], int] | None = None,
) -> Iterator[None]:
    """Stop what runs inside when it gives no sign of life for too long.

    Args:
        patience_s: for how long, in seconds of real time; None waits for ever.
        signs: returns a number that changes whenever something happens.
        now: returns the round and the simulated time in seconds, for the error.
        runs: returns the id of the thread that this one waits for, if it does.

    Raises:
        StalledError: with the node and the line that ran at that moment.
    """
    if patience_s is None:
        yield
        return
    watch = Watch(patience_s, signs, runs)
    watch.start()
    try:
        yield
    except KeyboardInterrupt as stop:
        if watch.scene is None:
            raise
        node, line = watch.scene
        reason = f"nothing has happened for {patience_s:g} s of real time, at {line}; see compute.patience_s"
        raise StalledError(reason, node, *now()) from stop
    finally:
        watch.stop()


def _interrupt(ident: int) -> None:
    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if usual and ident == threading.main_thread().ident and hasattr(signal, "pthread_kill"):
        signal.pthread_kill(ident, signal.SIGINT)
    else:
        thread, error = ctypes.c_ulong(ident), ctypes.py_object(KeyboardInterrupt)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, error)
