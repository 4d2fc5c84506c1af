"""Who takes part: the clients that a strategy can choose from, in an order that does not depend on chance."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from flwr.serverapp import Grid
from flwr.serverapp.strategy import strategy_utils


def online(grid: Grid, at_least: int = 1) -> list[int]:
    """Return the ids of the clients that are online, sorted; wait until there are enough of them.

    Args:
        grid: a simulated or a real one.
        at_least: how many to wait for.
    """
    _, ids = strategy_utils.sample_nodes(grid, at_least, 0)
    return sorted(ids)


def draw(ids: Sequence[int], size: int, rng: np.random.Generator) -> list[int]:
    """Draw distinct clients uniformly, as many as there are but at most ``size``; sorted.

    >>> from fedsim.rng import stream
    >>> draw([3, 5, 8, 9], 2, stream(0, "doc"))
    [5, 8]
    """
    picked = rng.choice(len(ids), size=min(size, len(ids)), replace=False)
    return sorted(ids[int(index)] for index in picked)
