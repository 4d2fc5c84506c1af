"""What holds for all tests."""

from __future__ import annotations

import gc
import os

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("FEDSIM_WORKERS", "1")
"""Several tests run at a time already; those of worker processes ask for them by name."""

# How fast a machine draws examples says nothing about the code.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


gc.set_threshold(50_000)
"""Garbage is looked for among a million objects of libraries each time, and there is little of it."""


SLOW_S = 900
"""How long a slow test may take: a busy machine needs several times what a quiet one does."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give slow tests more time, where they do not say how much."""
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SLOW_S))
