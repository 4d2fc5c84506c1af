"""Fixtures for pytest with which Flower apps are tested under churn, slow networks and faults.

They are found once a ``conftest.py`` imports them: ``from fedsim.testing import flower_grid, flower_run``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from fedsim.flower.apps import python
from fedsim.flower.apps.grid import AppGrid
from fedsim.record.result import Result


@pytest.fixture
def flower_grid() -> Iterator[Callable[..., AppGrid]]:
    """Return what makes a grid of simulated clients, with the arguments of :func:`fedsim.flower.grid`.

    The grid lasts until the end of the test; ``time.sleep`` and Python's clocks are simulated for the test's own code.
    """
    with ExitStack() as stack:
        yield lambda *args, **options: stack.enter_context(python.grid(*args, **options))


@pytest.fixture
def flower_run(tmp_path: Path) -> Callable[..., Result]:
    """Return what runs an app of two objects, with the arguments of :func:`fedsim.flower.simulate`.

    The run's folder is below ``tmp_path``.
    """
    run: Callable[..., Any] = partial(python.simulate, out=tmp_path / "runs")
    return run
