"""Loggers of other people's code."""

from __future__ import annotations

import logging
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
