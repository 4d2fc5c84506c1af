"""How long work takes on a node."""

from __future__ import annotations

import numpy as np

from fedsim.config import Draw

PICOS = 10**12


def speeds(seconds_per_sample: Draw, nodes: int, rng: np.random.Generator) -> list[int]:
    """Draw the nodes' speeds.

    Args:
        seconds_per_sample: the distribution of the time that one per-sample gradient takes.
        nodes: how many nodes.
        rng: the stream to draw from.

    Returns:
        Picoseconds per sample of each node: integers, so that a computation takes the same time on any machine.
    """
    return [round(float(seconds) * PICOS) for seconds in seconds_per_sample.sample(rng, nodes)]
