"""What the numbers of a Flower app are called in its record."""

from __future__ import annotations

from collections.abc import Callable

from fedsim.methods.server import evaluates
from fedsim.record.store import WIDE

SERVER = "server"
"""Whose numbers the server's own evaluation gives."""

FULL = ("server/", "clients/")


def clients(message_type: str) -> str:
    """Return whose numbers the replies to messages of a type hold.

    >>> clients("evaluate.holdout")
    'clients/evaluate.holdout'
    """
    return f"clients/{message_type}"


class Names:
    """Short names, and names that say whose a number is where two would have the same one.

    A number of the server's has the name that it gives, one of its clients' begins with ``train_`` or ``eval_``. When
    a second number would be called like another one, both get their full names from then on, and what is recorded
    of the other one is renamed: ``server/NAME`` and ``clients/TYPE/NAME``, where TYPE is the message type.

    Args:
        rename: called with the short and the full name of a number that had its short name to itself so far.

    >>> names = Names(lambda old, new: print(f"{old} is now {new}"))
    >>> names.of("server", "eval_acc"), names.of("clients/train", "acc")
    ('eval_acc', 'train_acc')
    >>> names.of("clients/evaluate", "acc")
    eval_acc is now server/eval_acc
    'clients/evaluate/acc'
    >>> names.of("server", "eval_acc"), names.of("clients/train", "acc")
    ('server/eval_acc', 'train_acc')
    """

    def __init__(self, rename: Callable[[str, str], None]) -> None:
        self._rename = rename
        self._owners: dict[str, tuple[str, str]] = {}
        self._shared: set[str] = set()

    def of(self, whose: str, name: str) -> str:
        """Return what a number is called.

        Args:
            whose: :data:`SERVER`, or what :func:`clients` returns.
            name: what its owner calls it.
        """
        short, full = _short(whose, name), f"{whose}/{name}"
        owner = self._owners.setdefault(short, (whose, name))
        if owner != (whose, name) and short not in self._shared:
            self._shared.add(short)
            if not short.startswith(FULL):
                self._rename(short, "/".join(owner))
        return full if short in self._shared or short.startswith(FULL) else short


def _short(whose: str, name: str) -> str:
    if whose == SERVER:
        return f"app_{name}" if name in WIDE else name
    prefix = "eval_" if evaluates(whose.removeprefix("clients/")) else "train_"
    return name if name.startswith(prefix) else prefix + name
