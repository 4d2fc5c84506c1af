"""What a Flower app's code says through ``logging``: all of it in the run's folder, and what matters on the screen."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from fedsim.world.clock import Clock

FILE = "app.log"
FLOWER = "flwr"
SOURCES = "", FLOWER
"""Loggers with handlers of their own: the root, which gets all that is said, and Flower's, which shows what it says."""


class _File(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Lose a line that cannot be written: that the disk is full is said by what matters more."""


@contextmanager
def kept(folder: Path, clock: Clock, verbose: bool = False) -> Iterator[None]:
    """Write what is said from INFO on to ``app.log``, with the simulated time; the screen shows warnings as before.

    Args:
        folder: the run's.
        clock: tells the simulated time.
        verbose: show INFO lines on the screen, too.
    """

    def stamp(record: logging.LogRecord) -> bool:
        record.sim_time_s = clock.now_s
        return True

    file = _File(folder / FILE, encoding="utf-8")
    file.addFilter(stamp)
    file.setFormatter(logging.Formatter("t = %(sim_time_s).6f s %(levelname)s %(name)s: %(message)s"))
    shown = logging.INFO if verbose else logging.WARNING
    with ExitStack() as stack:
        stack.callback(file.close)
        for name in SOURCES:
            stack.enter_context(_listening(logging.getLogger(name), file, shown))
        yield


@contextmanager
def _listening(logger: logging.Logger, file: logging.Handler, shown: int) -> Iterator[None]:
    """Let a logger write INFO lines to a file, and its other handlers only what is to be shown."""
    before, level = list(logger.handlers), logger.level
    levels = [handler.level for handler in before]
    heard_above = logger.propagate and logger.parent is not None
    screen = [] if before or heard_above else [_screen()]
    new = [] if heard_above else [*screen, file]
    for handler in [*before, *screen]:
        handler.setLevel(max(handler.level, shown))
    for handler in new:
        logger.addHandler(handler)
    logger.setLevel(min(level, logging.INFO) or logging.INFO)
    try:
        yield
    finally:
        for handler in new:
            logger.removeHandler(handler)
        for handler, old in zip(before, levels, strict=True):
            handler.setLevel(old)
        logger.setLevel(level)


def _screen() -> logging.Handler:
    """Return what shows lines as Python does where nobody has set up logging, except for what Flower shows itself."""
    screen = logging.StreamHandler()
    screen.addFilter(lambda record: record.name.partition(".")[0] != FLOWER)
    return screen
