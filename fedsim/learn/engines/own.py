"""What of a process's state belongs to a run, while others advance beside it: global generators, and more by wish.

Some code that is not ours keeps state in modules: generators that it draws from, functions that a run puts in the place
of others. A run that stands aside takes its own with it, and finds it again when it goes on.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from numpy.random import MT19937, mtrand

Read = Callable[[], Any]
Write = Callable[[Any], None]

_MORE: list[tuple[Read, Write, Any]] = []
"""How to read and how to write a piece of state, and what it is outside of any run."""


def belongs(read: Read, write: Write) -> None:
    """Let every run have a piece of state of its own; what it is now is what each begins with.

    Args:
        read: returns it.
        write: puts it in place.
    """
    _MORE.append((read, write, read()))


class Own:
    """The state of one run, kept while it stands aside; at first, what was there when this was made.

    >>> outside, run = Own(), Own()
    >>> run.back()
    >>> random.seed(1); first = random.random(); run.aside()
    >>> outside.back(); _ = random.random(); outside.aside()
    >>> run.back(); second = random.random(); outside.back()
    >>> random.seed(1); [random.random(), random.random()] == [first, second]
    True
    """

    def __init__(self) -> None:
        self._python, self._torch = random.getstate(), torch.get_rng_state()
        self._numpy: Any = mtrand.get_bit_generator()
        self._more: dict[int, Any] = {}

    @classmethod
    def fresh(cls) -> Own:
        """Return the state of a run that has yet to begin, with a generator of NumPy's that is no other's."""
        own = cls()
        twin = MT19937()
        twin.state = own._numpy.state
        own._numpy = twin
        return own

    def aside(self) -> None:
        """Take the state along."""
        self._python, self._torch = random.getstate(), torch.get_rng_state()
        self._numpy = mtrand.get_bit_generator()
        self._more = {place: read() for place, (read, _, _) in enumerate(_MORE)}

    def back(self) -> None:
        """Put the state in place again."""
        random.setstate(self._python)
        torch.set_rng_state(self._torch)
        mtrand.set_bit_generator(self._numpy)
        for place, (_, write, first) in enumerate(_MORE):
            write(self._more.get(place, first))
