"""What the nodes are equipped with: how long work takes them, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fedsim.errors import BadValue
from fedsim.rng import stream
from fedsim.spec.blocks import Draw
from fedsim.spec.world import EXTRAS, Devices
from fedsim.world.traces.files import Device, read_capacity

PICOS = 10**12


class Kit(NamedTuple):
    """What a client or peer has.

    Args:
        ps_per_sample: how long one per-sample gradient takes it, in picoseconds.
        joules_per_sample: the energy that it takes, or None where that is not counted.
        joules_per_byte: the energy of one byte sent or received, or None.
        memory_mb: its memory in megabytes of 10^6 bytes, or None for unlimited.
        up_mbps: the upload that a trace gives it in Mbit/s, or None.
        down_mbps: the download that a trace gives it in Mbit/s, or None.
    """

    ps_per_sample: int
    joules_per_sample: float | None = None
    joules_per_byte: float | None = None
    memory_mb: float | None = None
    up_mbps: float | None = None
    down_mbps: float | None = None

    def joules(self, work: int, size_bytes: int) -> float | None:
        """Return the energy of so many per-sample gradients and bytes, or None where none is counted.

        >>> Kit(10**9, joules_per_sample=0.5).joules(work=3, size_bytes=100)
        1.5
        """
        if self.joules_per_sample is None and self.joules_per_byte is None:
            return None
        return work * (self.joules_per_sample or 0.0) + size_bytes * (self.joules_per_byte or 0.0)


def kits(devices: Devices, nodes: int, seed: int) -> list[Kit]:
    """Equip every client or peer, from whichever source the experiment names.

    Args:
        devices: a distribution, classes or a trace; perhaps stragglers, energy and memory.
        nodes: how many clients or peers.
        seed: the experiment's seed.

    Returns:
        What each node has.

    Raises:
        BadValue: if the trace cannot be read; the key is ``trace``.

    >>> quick, slow = {"share": 0.75, "seconds_per_sample": 1}, {"share": 0.25, "seconds_per_sample": 5}
    >>> devices = Devices(classes=[quick, slow], stragglers={"share": 0.25, "factor": 2})
    >>> [kit.ps_per_sample // PICOS for kit in kits(devices, 4, seed=0)]
    [1, 10, 1, 1]
    """
    draw = stream(seed, "devices")
    kinds = np.zeros(nodes, dtype=np.int64)
    rows: tuple[Device, ...] = (Device(0.0),)
    if devices.classes is not None:
        counts = apportion([one.share for one in devices.classes], nodes)
        drawn = [one.seconds_per_sample.sample(draw, k) for one, k in zip(devices.classes, counts)]
        order = draw.permutation(nodes)
        kinds = np.repeat(np.arange(len(counts)), counts)[order]
        pace = _picos(np.concatenate(drawn)[order])
    elif devices.trace is not None:
        rows = _rows(devices.trace)
        pace = _picos(np.array([rows[i % len(rows)].seconds_per_sample for i in range(nodes)]))
    elif devices.seconds_per_sample is not None:
        pace = speeds(devices.seconds_per_sample, nodes, draw)
    if devices.stragglers is not None:
        pace = _slowed(pace, devices.stragglers.share, devices.stragglers.factor, draw)
    joules, byte_joules, memory = (_extra(devices, key, kinds, stream(seed, key)) for key in EXTRAS)
    return [
        Kit(pace[i], joules[i], byte_joules[i], memory[i], *rows[i % len(rows)][1:]) for i in range(nodes)
    ]


def _extra(devices: Devices, key: str, kinds: np.ndarray, draw: np.random.Generator) -> list[float | None]:
    """Draw one of the extras for every node, from its class or else from all devices."""
    found: list[float | None] = [None] * len(kinds)
    for kind, block in enumerate(devices.classes or [devices]):
        source: Draw | None = getattr(block, key) or getattr(devices, key)
        mine = np.flatnonzero(kinds == kind)
        if source is not None:
            for node, value in zip(mine.tolist(), source.sample(draw, len(mine)).tolist()):
                found[node] = value
    return found


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


def _rows(path: str) -> tuple[Device, ...]:
    try:
        return read_capacity(path)
    except BadValue as error:
        raise BadValue("trace", error.value, error.rule, error.hint) from None


def _slowed(pace: list[int], share: float, factor: float, rng: np.random.Generator) -> list[int]:
    """Slow the slowest nodes down; among equally slow ones, chance decides."""
    by_speed = sorted(rng.permutation(len(pace)).tolist(), key=pace.__getitem__)
    slowest = set(by_speed[len(pace) - round(share * len(pace)) :])
    return [round(own * factor) if i in slowest else own for i, own in enumerate(pace)]


def _picos(seconds: np.ndarray) -> list[int]:
    return [round(float(one) * PICOS) for one in seconds]
