"""The world that an app runs in, and what a simulation is told of the app: files, mappings, options of a command."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fedsim.errors import MISSING, ConfigError, Problem
from fedsim.flower.apps.project import FILE, Project, pairs
from fedsim.spec.app import App
from fedsim.spec.blocks import Block
from fedsim.spec.experiment import Experiment, load
from fedsim.spec.explain import explain
from fedsim.spec.yamlfile import Document, read

FOREIGN = ("data", "model", "strategy", "evaluate", "compute.engine", "stop.rounds", "stop.target")
"""What an app brings itself, so that a world cannot choose it."""
ENDLESS = 10**9
CHECKPOINT = "record.checkpoint"


def node_config_of(text: str) -> dict[str, Any]:
    """Return what ``--node-config`` says; its keys may have dots, so it comes as a whole."""
    problems: list[Problem | None] = []
    found = pairs(text, "--node-config", problems)
    if problems:
        raise ConfigError([problem for problem in problems if problem is not None])
    return {"app.node_config": found} if found else {}


def read_world(
    project: Project, nodes: int, file: str | Path | Mapping[str, Any] | None, overrides: Mapping[str, Any]
) -> tuple[Experiment, App]:
    """Return the experiment that an app makes of a world, and what the simulation is told of the app.

    Raises:
        ConfigError: if the world is wrong, or chooses what the app brings itself.
    """
    if nodes < 1:
        raise ConfigError([Problem("--nodes", nodes, "must be at least 1")])
    document = _document(project, file)
    data, overrides = document.data, dict(overrides)
    told = {key: overrides.pop(key) for key in list(overrides) if key.partition(".")[0] == "app"}
    settings = _settings(project, nodes, document, told)
    given = {key for key in FOREIGN if _there(data, key)} | foreign(overrides)
    if given:
        rule = "an app brings this itself; a file for it describes the world alone"
        sources = {key: document.source(tuple(key.split("."))) for key in given}
        raise ConfigError([Problem(key, MISSING, rule, source=sources[key]) for key in sorted(given)])
    own: dict[str, Any] = {
        "name": f"'{_plain(project.name)}'",  # in quotes, as 2024 and 1e3 are names, too
        "data": {"clients": nodes},
        "strategy": {
            "name": project.serverapp,
            "clientapp": project.clientapp,
            "run_config": project.run_config,
        },
    }
    if not (_there(data, CHECKPOINT) or any(key.startswith(CHECKPOINT) for key in overrides)):
        own[CHECKPOINT] = None  # all replies of all clients take room
    if not (_there(data, "stop") or any(key.startswith("stop") for key in overrides)):
        own["stop"] = {"rounds": ENDLESS}  # the app itself knows when it is done
    if "name" in data:
        del own["name"]
    return load(document if document.name else data, {**own, **overrides}), settings


def foreign(keys: Iterable[str]) -> set[str]:
    """Return those of some dotted keys that an app decides itself."""
    return {key for key in keys if any(key == one or key.startswith(f"{one}.") for one in FOREIGN)}


def _document(project: Project, file: str | Path | Mapping[str, Any] | None) -> Document:
    """Return the world: a file, a mapping, or what the app's own pyproject.toml says, or nothing."""
    if isinstance(file, Mapping):
        return Document(data=copy.deepcopy(dict(file)))
    if file is not None:
        return read(file)
    return Document(str(project.root / FILE), project.world) if project.world else Document()


def _settings(project: Project, nodes: int, document: Document, told: Mapping[str, Any]) -> App:
    """Return what a simulation is told of an app: by its pyproject.toml, the world and the command, in this order."""
    for key, value in told.items():
        block = document.data.get("app")
        before = block.get("node_config") if isinstance(block, Mapping) else None
        both = isinstance(value, Mapping) and isinstance(before, Mapping)
        document.set(key, {**before, **value} if both and before else value)
    given = document.data.pop("app", {})
    try:
        found = _Told.model_validate({"app": given}).app
    except ValidationError as error:
        whole = Document(document.name, {"app": given}, document.lines, document.overrides)
        raise ConfigError(explain(_Told, whole, error)) from None
    said = {name: getattr(found, name) for name in found.model_fields_set}
    settings = project.settings.model_copy(update=said)
    for key, value in settings.node_config.items():
        if isinstance(value, list) and len(value) != nodes:
            rule = f"has {len(value)} values for {nodes} nodes; give one for all, or one for each"
            source = document.source(("app", "node_config", key)) or str(project.root / FILE)
            raise ConfigError([Problem(f"app.node_config.{key}", value, rule, source=source)])
    return settings


class _Told(Block):
    app: App


def _there(data: Mapping[str, Any], key: str) -> bool:
    block, _, inner = key.partition(".")
    found = data.get(block)
    return found is not None and (not inner or (isinstance(found, Mapping) and found.get(inner) is not None))


def _plain(name: str) -> str:
    plain = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in name)
    return plain.strip(".") or "app"
