"""What plain text means in YAML 1.2: ``1e-3`` is a number; ``on``, ``no`` and ``2024-01-01`` are text."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

MOST_DIGITS = 1000
"""A longer whole number is refused: no key takes one, and Python reads and writes 4,300 digits at most."""


def _whole(text: str) -> int:
    if len(text) > MOST_DIGITS:
        raise ValueError(f"{len(text)} digits are too many")
    return int(text[2:], {"0o": 8, "0x": 16}[text[:2]]) if text[:2] in ("0o", "0x") else int(text)


def _real(text: str) -> float:
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


SCALARS: dict[str, tuple[re.Pattern[str], Callable[[str], Any]]] = {
    "null": (re.compile(r"(~|null|Null|NULL|)\Z"), lambda _: None),
    "bool": (re.compile(r"(true|True|TRUE|false|False|FALSE)\Z"), lambda text: text.lower() == "true"),
    "int": (re.compile(r"([-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)\Z"), _whole),
    "float": (
        re.compile(
            r"([-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))\Z"
        ),
        _real,
    ),
}
"""The pattern of each kind of scalar, and what turns such text into a value; all else is text."""


def kind(text: str) -> str:
    """Return what text means without quotes: ``null``, ``bool``, ``int``, ``float`` or ``str``.

    >>> [kind(text) for text in ("0.7", "7", "true", "", "no")]
    ['float', 'int', 'bool', 'null', 'str']
    """
    return next((name for name, (pattern, _) in SCALARS.items() if pattern.match(text)), "str")


def read(text: str) -> Any:
    """Return what text means without quotes.

    >>> [read(text) for text in ("1e-3", "true", "null", "no")]
    [0.001, True, None, 'no']
    """
    known = SCALARS.get(kind(text))
    try:
        return text if known is None else known[1](text)
    except ValueError:  # more digits than any number has
        return text
