"""A Flower app on disk: its pyproject.toml, and its two halves as Python objects."""

from __future__ import annotations

import contextlib
import functools
import importlib
import re
import sys
import tomllib
import traceback
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from pydantic import ValidationError

from fedsim.errors import MISSING, ConfigError, Problem, RunError, did_you_mean
from fedsim.spec.app import App
from fedsim.spec.explain import explain
from fedsim.spec.yamlfile import Document

FILE = "pyproject.toml"
PAIRS = re.compile(r"""(?:"[^"]*"|'[^']*'|\[[^\]]*\]|[^\s"'\[])+""")
"""What belongs together between spaces; quotes and brackets may hold some."""


@dataclass(frozen=True)
class Project:
    """A Flower app.

    Args:
        root: its folder.
        name: its name.
        serverapp: where its ServerApp is, as ``module:attribute``.
        clientapp: where its ClientApp is.
        run_config: what every part of it can read.
        settings: what a simulation is told of it, in its table ``[tool.fedsim]``.
        world: the world that it brings in ``[tool.fedsim.world]``, or nothing.
    """

    root: Path
    name: str
    serverapp: str
    clientapp: str
    run_config: dict[str, Any]
    settings: App
    world: dict[str, Any] = field(default_factory=dict)


def read_project(root: str | Path, run_config: str = "") -> Project:
    """Read an app's pyproject.toml.

    Args:
        root: the app's folder.
        run_config: values that replace those of the app, such as ``'lr=0.1 optimizer="adam"'``, or a TOML file
            that holds them, such as ``"quick.toml"``.

    Raises:
        ConfigError: if there is no such file, it lacks a component, or a key or value of ``run_config`` is wrong.
    """
    path = Path(root) / FILE
    table = _toml(path, "name the folder of a Flower app")
    found = _inner(path, table, "tool.flwr.app.components")
    problems = [_reference(path, name, found.get(name, MISSING)) for name in ("serverapp", "clientapp")]
    config = _flat(_inner(path, table, "tool.flwr.app.config"))
    config.update(_changes(run_config, config, problems))
    world = _inner(path, table, "tool.fedsim.world")
    told = {key: value for key, value in _inner(path, table, "tool.fedsim").items() if key != "world"}
    settings = _settings(path, told, problems)
    wrong = [problem for problem in problems if problem is not None]
    if wrong:
        raise ConfigError(wrong)
    name = str(_inner(path, table, "project").get("name", Path(root).resolve().name))
    return Project(
        Path(root).resolve(), name, found["serverapp"], found["clientapp"], config, settings, world
    )


def _toml(path: Path, hint: str = "") -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        reason = f"cannot be read ({error.strerror})"
        raise ConfigError([Problem("", MISSING, reason, hint, str(path))]) from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        line = re.search(r"at line (\d+)", str(error))
        source = f"{path}:{line[1]}" if line else str(path)
        raise ConfigError([Problem("", MISSING, f"is not valid TOML ({error})", "", source)]) from None


def _inner(file: Path, table: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Return the table at a dotted path, an empty one if it is not there."""
    steps = path.split(".")
    for count, step in enumerate(steps, 1):
        table = table.get(step, {})
        if not isinstance(table, Mapping):
            raise ConfigError([Problem(".".join(steps[:count]), table, "must be a table", "", str(file))])
    return dict(table)


def _reference(path: Path, name: str, value: Any) -> Problem | None:
    if isinstance(value, str) and all(value.partition(":")):
        return None
    rule = "is missing" if value is MISSING else "must be module:attribute"
    hint = f'write {name} = "my_app.{name.removesuffix("app")}_app:app"'
    return Problem(f"tool.flwr.app.components.{name}", value, rule, hint, str(path))


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested tables as one with dotted keys, as Flower does.

    >>> _flat({"a": 1, "b": {"c": 2}})
    {'a': 1, 'b.c': 2}
    """
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def _changes(text: str, known: Mapping[str, Any], problems: list[Problem | None]) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    for key, value in pairs(text, "--run-config", problems).items():
        if key not in known:
            rule, hint = "the app has no such key", did_you_mean(key, known)
            problems.append(Problem(f"--run-config {key}", value, rule, hint))
            continue
        changes[key] = float(value) if isinstance(known[key], float) and type(value) is int else value
        if _kind(value) is not _kind(known[key]):
            rule = f"must be of the kind of the app's own value, {known[key]!r}"
            problems.append(Problem(f"--run-config {key}", value, rule))
    return changes


def _kind(value: Any) -> type:
    """Return the type of a value; all numbers are of one kind, as they are for Flower."""
    return float if type(value) is int else type(value)


def pairs(text: str, option: str, problems: list[Problem | None]) -> dict[str, Any]:
    """Return what an option says: ``key=value`` pairs between spaces, with values as in TOML, or a TOML file's name.

    Args:
        text: what the option says.
        option: its name.
        problems: gets one more, if the text cannot be read.

    >>> pairs("lr=0.1 opt.name='adam w'", "--run-config", [])
    {'lr': 0.1, 'opt.name': 'adam w'}
    """
    try:
        is_file = text.endswith(".toml") and "=" not in text
        return _flat(
            _toml(Path(text).expanduser()) if is_file else tomllib.loads("\n".join(PAIRS.findall(text)))
        )
    except ValueError as error:
        rule = f"must be key=value pairs as in TOML, or one TOML file and nothing else ({error})"
        problems.append(Problem(option, text, rule, "text stands in quotes of its own: name='x y'"))
    return {}


def _settings(path: Path, given: dict[str, Any], problems: list[Problem | None]) -> App:
    try:
        return App.model_validate(given)
    except ValidationError as error:
        found = explain(App, Document(data=given), error)
        problems += [replace(one, key=f"tool.fedsim.{one.key}", source=str(path)) for one in found]
    return App()


@contextlib.contextmanager
def importable(root: Path) -> Iterator[None]:
    """Let an app's modules be imported, and forget them afterwards: the next app may have modules of the same names."""
    before = set(sys.modules)
    sys.path.insert(0, str(root))
    try:
        yield
    finally:
        sys.path.remove(str(root))
        for name in set(sys.modules) - before:
            if _is_below(sys.modules[name], root):
                del sys.modules[name]


def _is_below(module: Any, root: Path) -> bool:
    """Tell whether a module is an app's own; packages that are installed inside the app's folder are not."""
    file, folders = getattr(module, "__file__", None), getattr(module, "__path__", ())
    # What lies in sys.modules need not be a module, and may have anything under these names.
    places = [file, *(folders if isinstance(folders, Iterable) else ())]
    paths = [Path(place) for place in places if isinstance(place, str)]
    return any(root in path.parents and "site-packages" not in path.parts for path in paths)


def load_server(project: Project) -> ServerApp:
    """Import an app's ServerApp; see :func:`importable`."""
    app = _import(project, "serverapp", project.serverapp)
    if isinstance(app, ServerApp):
        return app
    raise _wrong(project, "serverapp", project.serverapp, app, "flwr.serverapp.ServerApp")


def load_client(project: Project) -> ClientApp:
    """Import an app's ClientApp; see :func:`importable`."""
    app = _import(project, "clientapp", project.clientapp)
    if isinstance(app, ClientApp):
        return app
    raise _wrong(project, "clientapp", project.clientapp, app, "flwr.clientapp.ClientApp")


def resolve(reference: str) -> Any:
    """Return the object at a reference; an attribute that is not there is None."""
    module, _, attribute = reference.partition(":")
    found: Any = importlib.import_module(module)
    return functools.reduce(lambda owner, name: getattr(owner, name, None), attribute.split("."), found)


def _import(project: Project, name: str, reference: str) -> Any:
    try:
        return resolve(reference)
    except (ConfigError, RunError):
        raise
    except (Exception, SystemExit) as error:
        reason = f"cannot be imported ({type(error).__name__}: {error})"
        source = _line(project.root, error) or str(project.root / FILE)
        raise ConfigError(
            [Problem(f"tool.flwr.app.components.{name}", reference, reason, "", source)]
        ) from error


def _line(root: Path, error: BaseException) -> str:
    """Return ``FILE:LINE`` of the app's own line at which an import has failed, or nothing if it is none of those."""
    places = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, SyntaxError):
        places.append((error.filename or "", error.lineno))
    own = [f"{file}:{line}" for file, line in places if root in Path(file).parents]
    return own[-1] if own else ""


def _wrong(project: Project, name: str, reference: str, app: Any, wanted: str) -> ConfigError:
    found = "nothing is there" if app is None else f"there is a {type(app).__name__}"
    key = f"tool.flwr.app.components.{name}"
    return ConfigError(
        [Problem(key, reference, f"must be a {wanted}; {found}", "", str(project.root / FILE))]
    )
