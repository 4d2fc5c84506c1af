"""Loggers of other people's code."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet(name: str) -> Iterator[None]:
    """Let a logger report errors alone: the experiment file has made the choices that it would comment on."""
    logger = logging.getLogger(name)
    before = logger.level
    try:
        logger.setLevel(logging.ERROR)
        yield
    finally:
        logger.setLevel(before)
