"""Loggers of other people's code."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet(name: str, level: int = logging.ERROR) -> Iterator[None]:
    """Let a logger report errors alone: the experiment file has made the choices that it would comment on.

    Args:
        name: of the logger.
        level: what it lets through instead.
    """
    logger = logging.getLogger(name)
    before = logger.level
    try:
        logger.setLevel(level)
        yield
    finally:
        logger.setLevel(before)


@contextmanager
def once(name: str, silent: str = "") -> Iterator[None]:
    """Let a logger say each thing once, and not in every round.

    Args:
        name: of the logger.
        silent: a regular expression of what it is not to say at all; nothing matches the empty one.

    >>> log = logging.getLogger("doc")
    >>> with once("doc", "green"):
    ...     records = [log.makeRecord("doc", 30, "", 1, text, (), None) for text in ("red %d", "red %d", "green")]
    ...     [bool(log.filter(record)) for record in records]
    [True, False, False]
    """
    seen: set[str] = set()

    def is_new(record: logging.LogRecord) -> bool:
        text = str(record.msg)
        new = text not in seen and not (silent and re.search(silent, text))
        seen.add(text)
        return new

    logger = logging.getLogger(name)
    try:
        logger.addFilter(is_new)
        yield
    finally:
        logger.removeFilter(is_new)
