"""Vectors that are kept from visit to visit: in memory up to a budget, and beyond it in files.

The files have no names: whoever ends, however that happens, leaves nothing behind. The numbers are the same wherever
they are, and what lies in a file is read through the memory that it is mapped into, which the system can take back.
"""

from __future__ import annotations

import logging
import os
import tempfile
import weakref
from collections.abc import Hashable

import numpy as np
import torch
from torch import Tensor

from fedsim.machine import memory_bytes

SHARE = 4
"""Without a budget, such a part of the memory that the vectors are in anyway."""

PIECE_BYTES, MOST = 2**26, 256
"""A file has about so many bytes, and places for at most so many vectors."""

log = logging.getLogger("fedsim")


def default_budget(device: torch.device) -> int:
    """Return how many bytes may stay in the memory of a device where nobody has said anything else.

    >>> default_budget(torch.device("cpu")) == memory_bytes() // 4
    True
    """
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory) // SHARE
    return memory_bytes() // SHARE


class Overflow:
    """Vectors of one size, one for each owner.

    Who came first stays in memory: an owner's next vector takes the place of the one before.

    Args:
        budget_bytes: so much stays in memory.

    Attributes:
        inside_bytes: so much is in memory.
        outside: how many vectors are in files.

    >>> held = Overflow(budget_bytes=8)
    >>> first, second = held.put("a", torch.ones(2)), held.put("b", torch.ones(2))
    >>> held.inside_bytes, held.outside, torch.equal(first, second)
    (8, 1, True)
    """

    def __init__(self, budget_bytes: int) -> None:
        self._budget = budget_bytes
        self._inside: set[Hashable] = set()
        self._free: dict[int, list[np.ndarray]] = {}
        self._full = False
        self.inside_bytes = self.outside = 0

    def put(self, owner: Hashable, vector: Tensor) -> Tensor:
        """Keep a vector, and return it where it is kept: a file's lies in the memory of the host."""
        if owner in self._inside:
            return vector
        if self._full or self.inside_bytes + vector.nbytes <= self._budget:
            self._inside.add(owner)
            self.inside_bytes += vector.nbytes
            return vector
        place = self._place(vector.nbytes)
        if place is None:
            return self.put(owner, vector)
        # Not the place itself, which waits for others: this array is gone with the last tensor that lies there.
        row = place[:]
        self.outside += 1
        weakref.finalize(row, self._give_back, place).atexit = False
        there = torch.from_numpy(row).view(vector.dtype).view(vector.shape)
        return there.copy_(vector)

    def _give_back(self, place: np.ndarray) -> None:
        self.outside -= 1
        self._free[place.nbytes].append(place)

    def _place(self, size: int) -> np.ndarray | None:
        """Return bytes of a file that nobody uses; None if there is no room for any."""
        free = self._free.setdefault(size, [])
        if not free:
            count = min(MOST, max(1, PIECE_BYTES // size))
            try:
                with tempfile.TemporaryFile(prefix="fedsim-state-") as file:
                    if hasattr(
                        os, "posix_fallocate"
                    ):  # or a full disk would be noticed in the middle of writing
                        os.posix_fallocate(file.fileno(), 0, count * size)
                    else:
                        file.truncate(count * size)
                    whole = np.memmap(file, np.uint8, "r+", 0, (count, size))
            except OSError as error:
                self._full = True
                log.warning(
                    "what clients keep stays in memory: no room in %s (%s)", tempfile.gettempdir(), error
                )
                return None
            free += [np.asarray(row) for row in whole[::-1]]
        return free.pop()
