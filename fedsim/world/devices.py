"""How long work takes on a node."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedsim.blocks import Draw
from fedsim.errors import BadValue
from fedsim.world.traces import read_capacity
from fedsim.worldblocks import Devices

PICOS = 10**12


def paces(devices: Devices, nodes: int, rng: np.random.Generator) -> list[int]:
    """Give every client or peer its speed, from whichever source the experiment names.

    Args:
        devices: a distribution, classes or a trace; and perhaps stragglers.
        nodes: how many clients or peers.
        rng: the stream to draw from.

    Returns:
        Picoseconds per sample of each node.

    Raises:
        BadValue: if the trace cannot be read; the key is ``trace``.

    >>> from fedsim.rng import stream
    >>> quick, slow = {"share": 0.75, "seconds_per_sample": 1}, {"share": 0.25, "seconds_per_sample": 5}
    >>> devices = Devices(classes=[quick, slow], stragglers={"share": 0.25, "factor": 2})
    >>> [pace // PICOS for pace in paces(devices, 4, stream(0, "devices"))]
    [1, 10, 1, 1]
    """
    if devices.classes is not None:
        counts = apportion([one.share for one in devices.classes], nodes)
        drawn = [one.seconds_per_sample.sample(rng, k) for one, k in zip(devices.classes, counts)]
        pace = _picos(rng.permutation(np.concatenate(drawn)))
    elif devices.trace is not None:
        pace = _traced(devices.trace, nodes)
    elif devices.seconds_per_sample is not None:
        pace = speeds(devices.seconds_per_sample, nodes, rng)
    if devices.stragglers is not None:
        pace = _slowed(pace, devices.stragglers.share, devices.stragglers.factor, rng)
    return pace


def speeds(seconds_per_sample: Draw, nodes: int, rng: np.random.Generator) -> list[int]:
    """Draw the nodes' speeds.

    Args:
        seconds_per_sample: the distribution of the time that one per-sample gradient takes.
        nodes: how many nodes.
        rng: the stream to draw from.

    Returns:
        Picoseconds per sample of each node: integers, so that a computation takes the same time on any machine.
    """
    return _picos(seconds_per_sample.sample(rng, nodes))


def apportion(shares: Sequence[float], nodes: int) -> list[int]:
    """Divide nodes into classes: each has its share rounded down, those with the largest remainders one more.

    Args:
        shares: the share of each class, from 0 to 1; their sum is 1.
        nodes: how many nodes.

    Returns:
        The number of nodes of each class; their sum is ``nodes``.

    >>> apportion([0.5, 0.3, 0.2], 7)
    [4, 2, 1]
    """
    exact = [share * nodes for share in shares]
    counts = [int(size) for size in exact]
    by_remainder = sorted(range(len(shares)), key=lambda i: counts[i] - exact[i])
    for i in by_remainder[: nodes - sum(counts)]:
        counts[i] += 1
    return counts


def _traced(path: str, nodes: int) -> list[int]:
    try:
        rows = read_capacity(path)
    except BadValue as error:
        raise BadValue("trace", error.value, error.rule, error.hint) from None
    return _picos(np.array([rows[i % len(rows)].seconds_per_sample for i in range(nodes)]))


def _slowed(pace: list[int], share: float, factor: float, rng: np.random.Generator) -> list[int]:
    """Slow the slowest nodes down; among equally slow ones, chance decides."""
    by_speed = sorted(rng.permutation(len(pace)).tolist(), key=pace.__getitem__)
    slowest = set(by_speed[len(pace) - round(share * len(pace)) :])
    return [round(own * factor) if i in slowest else own for i, own in enumerate(pace)]


def _picos(seconds: np.ndarray) -> list[int]:
    return [round(float(one) * PICOS) for one in seconds]
