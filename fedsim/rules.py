"""What a value must be, in plain words: one table for the keys of a file and the parameters of parts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from fedsim import scalars

UNKNOWN = "unknown key"
REQUIRED = "is required"
RULES = {
    "missing": REQUIRED,
    "extra_forbidden": UNKNOWN,
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "none_required": "must be null",
    "string_type": "must be text",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "dict_type": "must be a block of keys",
    "model_type": "must be a block of keys",
    "is_instance_of": "must be an object of the class {class}",
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "multiple_of": "must be a multiple of {multiple_of}",
    "too_short": "must have a length of at least {min_length}, not {actual_length}",
    "too_long": "must have a length of at most {max_length}, not {actual_length}",
    "string_too_short": "must have at least {min_length} characters",
    "string_too_long": "must have at most {max_length} characters",
    "literal_error": "must be {expected}",
    "union_tag_not_found": REQUIRED,
    "union_tag_invalid": "must be one of {expected_tags}",
}
UNQUOTED = {"int_type": ("int",), "float_type": ("int", "float"), "bool_type": ("bool",)}
"""The kinds of plain text that would have been right where pydantic raised one of these errors."""

Error = Mapping[str, Any]
"""One entry of :meth:`pydantic.ValidationError.errors`."""


def rule(error: Error) -> str:
    """Say what must hold, as a short sentence without a capital or a full stop.

    >>> rule({"type": "less_than_equal", "ctx": {"le": 1.0}})
    'must be at most 1'
    """
    words = RULES.get(error["type"])
    if words is not None:
        return words.format(**{key: _plain(key, value) for key, value in error.get("ctx", {}).items()})
    message = str(error["msg"]).removeprefix("Value error, ")
    message = re.sub(r"^(Input|Value) should ", "must ", message)
    return message[:1].lower() + message[1:]


def hint(error: Error) -> str:
    """Advise to take away the quotes where what is between them would have been right.

    >>> hint({"type": "float_type", "input": "0.7"}), hint({"type": "float_type", "input": "fast"})
    ('write it without quotes', '')
    """
    value = error["input"]
    right = isinstance(value, str) and scalars.kind(value) in UNQUOTED.get(error["type"], ())
    return "write it without quotes" if right else ""


def either(errors: Sequence[Error]) -> tuple[str, str]:
    """Return the rule and the hint for a value that no member of a union accepts.

    Args:
        errors: what each member of the union refused, for one value; at least one.

    >>> text = {"input": "many", "ctx": {}}
    >>> either([{"type": "list_type", **text}, {"type": "int_type", **text}])
    ('must be a whole number or a list', '')
    """
    rules = list(dict.fromkeys(rule(error) for error in errors))
    if RULES["float_type"] in rules and RULES["int_type"] in rules:
        rules.remove(RULES["int_type"])
    hints = next(filter(None, map(hint, errors)), "")
    if any(not words.startswith("must be ") for words in rules):
        return rules[0], hints
    *others, last = sorted((words.removeprefix("must be ") for words in rules), key=_holds_others)
    return f"must be {', '.join(others)}{' or ' if others else ''}{last}", hints


def _holds_others(words: str) -> bool:
    """Sort what is simple before lists and blocks."""
    return words in ("a list", "a block of keys")


def _plain(key: str, value: Any) -> str:
    if key.startswith("expected"):
        return re.sub(r"[<>']", "", str(value))
    if isinstance(value, float) and float(f"{value:g}") == value:
        return f"{value:g}"
    return str(value)
