"""YAML files that remember where everything was written.

The scalars are those of YAML 1.2: ``1e-3`` is a number, ``on``, ``no`` and ``2024-01-01`` are text, ``010``
is ten. Keys are always text. Whatever is wrong is a :class:`~fedsim.errors.ConfigError` with its line.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from fedsim.errors import MISSING, BadValue, ConfigError, Problem
from fedsim.scalars import SCALARS

Steps = tuple[str | int, ...]
"""Where a value is: the keys and list indices that lead to it from the top."""

MOST_VALUES = 1_000_000
"""Aliases of aliases grow exponentially; nobody writes an experiment with more values than this."""


@dataclass
class Document:
    """Plain data, and the place where each of its keys was written.

    Args:
        name: the file's name as the user wrote it, or an empty string for data that come from no file.
        data: dictionaries, lists, text, numbers, booleans and None.
        lines: the line of each key and list entry, counted from 1.
        overrides: the text of the ``--set`` option that set a value or made a block, by its steps.
    """

    name: str = ""
    data: dict[str, Any] = field(default_factory=dict)
    lines: dict[Steps, int] = field(default_factory=dict)
    overrides: dict[Steps, str] = field(default_factory=dict)

    def line(self, path: Steps) -> int:
        r"""Return the line of a key, or of the nearest block around it that has one.

        >>> parse("a:\n  b: 1", "x.yaml").line(("a", "missing"))
        1
        """
        return next((self.lines[path[:n]] for n in range(len(path), -1, -1) if path[:n] in self.lines), 1)

    def source(self, path: Steps) -> str:
        r"""Return ``FILE:LINE`` of a key, or the ``--set`` option that gave its value, whichever is nearer.

        >>> parse("a:\n  b: 1", "x.yaml").source(("a", "b"))
        'x.yaml:2'
        """
        for n in range(len(path), -1, -1):
            if path[:n] in self.overrides:
                return self.overrides[path[:n]]
            if path[:n] in self.lines:
                return f"{self.name}:{self.lines[path[:n]]}"
        return self.name

    def set(self, key: str, value: Any) -> None:
        """Override one value, as :func:`set_value` does, and remember who did it.

        >>> document = parse("seed: 1", "x.yaml")
        >>> document.set("stratgey.p", "0.2")
        >>> document.source(("stratgey",))
        '--set stratgey.p=0.2'
        """
        there = _reach(self.data, key)
        path = set_value(self.data, key, value)
        made = [path[:n] for n in range(1, len(path)) if n > there or not self._written(path[:n])]
        self.lines = {place: line for place, line in self.lines.items() if place[: len(path)] != path}
        self.overrides = {place: text for place, text in self.overrides.items() if place[: len(path)] != path}
        self.overrides.update(dict.fromkeys([*made, path], _option(key, value)))

    def _written(self, path: Steps) -> bool:
        """Tell whether the user wrote a block: a file's lines know, and data from no file are all written."""
        before = any(path[:n] in self.overrides for n in range(1, len(path) + 1))
        return before or path in self.lines or not self.name


def read(path: str | Path) -> Document:
    """Read a YAML file.

    Args:
        path: the file; its name appears in every message as it is given here.

    Returns:
        The data with their lines.

    Raises:
        ConfigError: if the file is missing, is not UTF-8 or is not one mapping in valid YAML.

    >>> read("no/such.yaml")
    Traceback (most recent call last):
    fedsim.errors.ConfigError: no/such.yaml: no such file
    """
    name = str(path)
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        raise _error(name, "no such file") from None
    except IsADirectoryError:
        raise _error(name, "is a folder, not a file") from None
    except (OSError, ValueError) as error:
        raise _error(name, f"cannot be read ({getattr(error, 'strerror', None) or error})") from None
    try:
        return parse(content.decode("utf-8"), name)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        wrong = f"is not UTF-8 at byte {error.start + 1} (0x{content[error.start]:02x})"
        raise _error(f"{name}:{line}", wrong, "save the file as UTF-8") from None


def parse(text: str, name: str) -> Document:
    r"""Parse YAML text whose top level is a mapping.

    Args:
        text: the YAML.
        name: what to call it in messages.

    Returns:
        The data with their lines.

    Raises:
        ConfigError: if the text is not one mapping in valid YAML.

    >>> parse("lr: 1e-3\nmode: on", "x.yaml").data
    {'lr': 0.001, 'mode': 'on'}
    >>> parse("lr: 1\nlr: 2", "x.yaml")
    Traceback (most recent call last):
    fedsim.errors.ConfigError: x.yaml:2: lr: is written twice, in line 1 and in line 2
    """
    node = _compose(text, name)
    if node is None:
        raise _error(f"{name}:1", "is empty")
    if not isinstance(node, yaml.MappingNode):
        kind = "a list" if isinstance(node, yaml.SequenceNode) else "a single value"
        raise _error(f"{name}:{_line(node)}", f"the top level must be keys with values, not {kind}")
    reader = _Reader(name)
    return Document(name, reader.value(node, ()), reader.lines)


def write(data: dict[str, Any]) -> str:
    r"""Return data as YAML text, in their own order, which :func:`parse` reads back as equal data.

    >>> write({"name": "1e3", "sizes": [1, 2.5]})
    "name: '1e3'\nsizes:\n- 1\n- 2.5\n"
    """
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, width=10**9)


def flat(data: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every value of a file by its dotted key; an empty block or list is a value, too.

    >>> dict(flat({"data": {"clients": 8}, "faults": [], "around": ["clip"]}))
    {'data.clients': 8, 'faults': [], 'around.0': 'clip'}
    """
    if isinstance(data, dict | list) and data:
        for step, inner in data.items() if isinstance(data, dict) else enumerate(data):
            yield from flat(inner, f"{key}.{step}".lstrip("."))
    else:
        yield key, data


def set_value(data: dict[str, Any], key: str, value: Any) -> Steps:
    """Set one value in nested data, in place.

    A missing block on the way is created, and a part that is written as just its name becomes a block.

    Args:
        data: what :func:`parse` returned as ``.data``.
        key: the dotted key; a number is an index where there is a list.
        value: text is read as YAML, anything else is taken as it is.

    Returns:
        The steps that lead to the value.

    Raises:
        ConfigError: if the value is not valid YAML or the key leads nowhere; it names the ``--set`` option.

    >>> data = {"topology": "ring", "faults": [{"at_s": 1}]}
    >>> set_value(data, "faults.0.at_s", "2.5"), set_value(data, "topology.degree", "3")
    (('faults', 0, 'at_s'), ('topology', 'degree'))
    >>> data
    {'topology': {'name': 'ring', 'degree': 3}, 'faults': [{'at_s': 2.5}]}
    """
    option = _option(key, value)
    path: list[str | int] = []
    try:
        value = _read_value(value) if isinstance(value, str) else value
        block: Any = data
        *parents, last = key.split(".")
        for step in parents:
            path.append(_place(block, step, path))
            block = _enter(block, path)
        path.append(_place(block, last, path))
        block[path[-1]] = value
    except ConfigError as error:
        raise ConfigError([replace(problem, source=option) for problem in error.problems]) from None
    except BadValue as error:
        raise ConfigError([Problem(error.key, error.value, error.rule, error.hint, option)]) from None
    return tuple(path)


def steps(key: str) -> Steps:
    """Split a dotted key into steps.

    >>> steps("faults.0.at_s")
    ('faults', 0, 'at_s')
    """
    return tuple(int(step) if step.isdecimal() else step for step in key.split(".") if step)


def dotted(path: Steps) -> str:
    """Join steps to a dotted key.

    >>> dotted(("faults", 0, "at_s"))
    'faults.0.at_s'
    """
    return ".".join(str(step) for step in path)


def _reach(data: Any, key: str) -> int:
    """Return how many steps of a dotted key lead somewhere already."""
    parts = key.split(".")
    for n, step in enumerate(parts):
        if isinstance(data, dict) and step in data:
            data = data[step]
        elif isinstance(data, list) and step.isdecimal() and int(step) < len(data):
            data = data[int(step)]
        else:
            return n
    return len(parts)


def _option(key: str, value: Any) -> str:
    return f"--set {key}={value}"


def _read_value(text: str) -> Any:
    node = _compose(text, "value")
    return None if node is None else _Reader("value").value(node, ())


def _place(block: Any, step: str, path: list[str | int]) -> str | int:
    if not step:
        raise BadValue("", MISSING, "a key has an empty part", "write block.key=value")
    if not isinstance(block, list):
        return step
    if not step.isdecimal() or int(step) >= len(block):
        rule = f"{step} must be an index below {len(block)}, the length of the list"
        raise BadValue(dotted(tuple(path)), MISSING, rule)
    return int(step)


def _enter(block: Any, path: list[str | int]) -> Any:
    place: Any = path[-1]
    child = block[place] if isinstance(block, list) else block.get(place)
    if child is None:
        child = {}
    elif isinstance(child, str):
        child = {"name": child}
    elif not isinstance(child, dict | list):
        raise BadValue(dotted(tuple(path)), child, "is a single value and has no keys")
    block[place] = child
    return child


def _error(source: str, rule: str, hint: str = "", path: Steps = ()) -> ConfigError:
    return ConfigError([Problem(dotted(path), MISSING, rule, hint, source)])


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {}  # noqa: RUF012  (replaces the YAML 1.1 scalars; filled below)


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers = {}  # noqa: RUF012

    def ignore_aliases(self, data: Any) -> bool:
        return True


_TAG = "tag:yaml.org,2002:"
for _kind, (_pattern, _) in SCALARS.items():
    _Loader.add_implicit_resolver(_TAG + _kind, _pattern, None)
    _Dumper.add_implicit_resolver(_TAG + _kind, _pattern, None)


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _compose(text: str, name: str) -> yaml.Node | None:
    for number, line in enumerate(text.split("\n"), 1):
        if "\t" in line[: len(line) - len(line.lstrip(" \t"))]:
            raise _error(f"{name}:{number}", "a tab is used for indentation", "use spaces")
    try:
        return yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line_number = error.problem_mark.line + 1 if error.problem_mark else 1
        context = f" ({error.context})" if error.context else ""
        raise _error(f"{name}:{line_number}", f"is not valid YAML: {error.problem}{context}") from None
    except yaml.reader.ReaderError as error:
        line_number = text.count("\n", 0, error.position) + 1
        wrong = f"character U+{ord(text[error.position]):04X} is not allowed"
        raise _error(f"{name}:{line_number}", wrong) from None
    except RecursionError:
        raise _error(f"{name}:1", "is nested too deeply") from None


class _Reader:
    """Turns nodes into plain data and notes the lines."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lines: dict[Steps, int] = {}
        self.around: list[yaml.Node] = []

    def value(self, node: yaml.Node, path: Steps) -> Any:
        self.lines.setdefault(path, _line(node))
        if isinstance(node, yaml.ScalarNode):
            return self.scalar(node, path)
        if node.tag not in (_TAG + "map", _TAG + "seq"):
            raise self.error(path, f"the tag {node.tag.replace(_TAG, '!!')} is not supported")
        if any(node is outer for outer in self.around):
            raise self.error(path, "an alias contains itself")
        if len(self.lines) > MOST_VALUES:
            raise self.error(path, f"more than {MOST_VALUES} values", "aliases of aliases?")
        self.around.append(node)
        if isinstance(node, yaml.MappingNode):
            value: Any = self.mapping(node, path)
        else:
            value = [self.value(item, (*path, index)) for index, item in enumerate(node.value)]
        self.around.pop()
        return value

    def mapping(self, node: yaml.MappingNode, path: Steps) -> dict[str, Any]:
        value: dict[str, Any] = {}
        written: dict[str, int] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise self.error(path, "a key must be text", line=_line(key_node))
            key, line = str(key_node.value), _line(key_node)
            if key in value:
                wrong = f"is written twice, in line {written[key]} and in line {line}"
                raise self.error((*path, key), wrong, line=line)
            written[key] = self.lines[(*path, key)] = line
            value[key] = self.value(value_node, (*path, key))
        return value

    def scalar(self, node: yaml.ScalarNode, path: Steps) -> Any:
        if node.tag == _TAG + "str":
            return node.value
        kind = node.tag.removeprefix(_TAG)
        if kind not in SCALARS:
            raise self.error(path, f"the tag {node.tag.replace(_TAG, '!!')} is not supported")
        pattern, convert = SCALARS[kind]
        if not pattern.match(node.value):
            raise self.error(path, f"{node.value} is not a YAML {kind}")
        try:
            return convert(node.value)
        except ValueError:
            raise self.error(path, f"a number of {len(node.value)} digits is too long") from None

    def error(self, path: Steps, rule: str, hint: str = "", line: int = 0) -> ConfigError:
        return _error(f"{self.name}:{line or self.lines[path]}", rule, hint, path)
