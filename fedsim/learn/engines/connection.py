"""This process and Ray: whether it is there, and when it is joined and left."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fedsim.errors import BadValue
from fedsim.learn.data.samples import library

QUIET = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""What Ray reads from the environment, where nobody has said otherwise: no warnings, no reports."""


users: list[Any] = []
"""Who uses Ray in this process at the moment."""

_own = threading.Event()
"""Set where this process was connected with Ray by us."""


def ray() -> Any:
    """Return Ray.

    Raises:
        BadValue: with the key ``engine.name``, if it is not there.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        return library("ray")
    except BadValue as error:
        raise BadValue("engine.name", "ray", error.rule, error.hint) from error


def connect(ray: Any, address: str, **more: Any) -> None:
    """Connect this process with a cluster, quietly; more is for Ray where it starts one."""
    quiet = {"logging_level": logging.ERROR, "log_to_driver": False, "configure_logging": False}
    with _own_signals():
        ray.init(address=address, **quiet, **more)
    _own.set()


def disconnect(ray: Any) -> None:
    """Leave the cluster, if nobody uses it any more and it was joined here."""
    if not users and _own.is_set():
        _own.clear()
        with _own_signals():
            ray.shutdown()


@contextmanager
def _own_signals() -> Iterator[None]:
    """Leave it to the program how it ends: Ray would have SIGTERM raise SystemExit."""
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if main:
            signal.signal(signal.SIGTERM, before)
