"""What a Flower app's code says through ``logging``: all of it in the run's folder, and what matters on the screen."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from fedsim.world.clock import Clock

FILE = "app.log"
FLOWER = "flwr"
SOURCES = "", FLOWER
"""Loggers with handlers of their own: the root, which gets all that is said, and Flower's, which shows what it says."""

OUTSIDE = "fedsim.outside"
"""The logger for what is true of this process and not of the run: it is shown, and no line of the log."""

Line = tuple[str, int, str]
"""A line of a log: who has said it, how grave it is, and its text, with the traceback if there is one."""


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
        return record.name != OUTSIDE

    file = _File(folder / FILE, mode="w", encoding="utf-8")
    file.addFilter(stamp)
    file.setFormatter(logging.Formatter("t = %(sim_time_s).6f s %(levelname)s %(name)s: %(message)s"))
    shown = logging.INFO if verbose else logging.WARNING
    with ExitStack() as stack:
        stack.callback(file.close)
        for name in SOURCES:
            stack.enter_context(_listening(logging.getLogger(name), file, shown))
        yield


@contextmanager
def heard(said: list[Line], through: bool = True) -> Iterator[None]:
    """Take note of what is said in this process meanwhile, by whatever logger.

    Args:
        said: gets the lines.
        through: whether they are written and shown, too; otherwise :func:`say` can do it later.
    """
    call, text = logging.Logger.callHandlers, logging.Formatter("%(message)s")

    def listen(logger: logging.Logger, record: logging.LogRecord) -> None:
        said.append((record.name, record.levelno, text.format(record)))
        if through:
            call(logger, record)

    logging.Logger.callHandlers = listen  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        logging.Logger.callHandlers = call  # type: ignore[method-assign]


def say(said: Iterable[Line]) -> None:
    """Say what somebody has said before, or elsewhere."""
    for name, level, text in said:
        logging.getLogger(name).log(level, "%s", text)


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
