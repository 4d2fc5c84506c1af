"""The only source of randomness.

Every random number comes from a stream with a name. Two streams with different names are independent, a stream
depends on nothing but its name, and no stream is ever handed on: so what one client draws cannot change what
another one draws, whatever the order in which they are simulated.
"""

from __future__ import annotations

import hashlib

import numpy as np


def key(seed: int, purpose: str, node: int = -1, round: int = -1) -> int:
    """Return the 128-bit key of a stream.

    >>> key(0, "batches", 3, 1) == key(0, "batches", 3, 1)
    True
    >>> key(0, "batches", 3, 1) == key(0, "batches", 1, 3)
    False
    """
    name = f"{seed}|{purpose}|{node}|{round}".encode()
    return int.from_bytes(hashlib.sha256(name).digest()[:16], "little")


def stream(seed: int, purpose: str, node: int = -1, round: int = -1) -> np.random.Generator:
    """Return a fresh generator for one purpose at one node in one round.

    Args:
        seed: the experiment's seed.
        purpose: what the numbers are for, such as ``"batches"`` or ``"latency"``.
        node: the node's id, or -1 for the whole world.
        round: the round, or -1 when it does not matter.

    Returns:
        A Philox generator at the start of its stream; equal arguments give equal numbers on every machine.

    >>> int(stream(7, "cohort", round=2).integers(1000))
    428
    """
    return np.random.Generator(np.random.Philox(key=key(seed, purpose, node, round)))
