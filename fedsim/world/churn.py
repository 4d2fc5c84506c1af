"""Availability: when nodes come and go, each as a SimPy process.

A churn part is a generator function ``name(node, rng, *, …)``: the process of one node.
"""

from __future__ import annotations

import numpy as np

from fedsim.parts import Positive, Share
from fedsim.world.clock import Process, micros
from fedsim.world.node import Node


def always(node: Node) -> Process:
    """Every node stays online."""
    del node
    yield from ()


def exponential(
    node: Node,
    rng: np.random.Generator,
    *,
    online_s: Positive,
    offline_s: Positive,
    start_online: Share | None = None,
) -> Process:
    """Sessions and absences of exponentially distributed lengths.

    Args:
        node: the node that comes and goes.
        rng: its own stream.
        online_s: mean length of a session, in seconds.
        offline_s: mean length of an absence, in seconds.
        start_online: probability of being online at the start; by default the long-run share,
            online_s / (online_s + offline_s).

    Yields:
        The events that the node waits for.
    """
    share = online_s / (online_s + offline_s) if start_online is None else start_online
    node.set_online(bool(rng.random() < share))
    while not node.crashed:
        length_us = micros(rng.exponential(online_s if node.online else offline_s))
        yield node.clock.timeout(max(length_us, 1))  # with stays of no length, time could stand still
        node.set_online(not node.online)
