"""Writes a small, complete Flower app that runs one of our strategies."""

from __future__ import annotations

import keyword
import pprint
import re
import sys
from collections.abc import Mapping
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from fedsim.beside import place
from fedsim.errors import BadValue, ConfigError, Problem
from fedsim.flower.deploy import client
from fedsim.spec.experiment import load
from fedsim.spec.yamlfile import read

LOCAL = {"epochs": 1, "batch_size": 32, "lr": 0.05}
PASSES = {"participants": 2, "local": LOCAL}
STEPS = {"participants": 2, "local": {"steps": 5, "batch_size": 32, "lr": 0.05}}
STARTS: dict[str, dict[str, Any]] = {
    "bvr_l_sgd": STEPS,
    "ditto": {"lam": 0.1, **PASSES},
    "fedamd": {"p": 0.5, **STEPS},
    "fedasync": {"concurrency": 2, "local": LOCAL},
    "fedavgm": PASSES,
    "fedbuff": {"concurrency": 2, "buffer": 2, "local": LOCAL},
    "feddyn": PASSES,
    "fednova": PASSES,
    "fedpage": STEPS,
    "fedper": PASSES,
    "fedprox": {"mu": 0.1, **PASSES},
    "fedrep": PASSES,
    "fedvarp": PASSES,
    "finetune": PASSES,
    "mifa": PASSES,
    "mimelite": PASSES,
    "modest_flower": {"sample_size": 2, "ping_timeout_s": 120.0, "local": LOCAL},
    "scaffold": PASSES,
}
"""Parameters to begin with; a strategy that is not here, one of Flower's, begins with its own defaults."""
LAYERED = ("fedper", "fedrep")
"""What leaves a layer with the clients, and needs a model that has others."""
FEWEST = {"bulyan": 3, "krum": 3, "multikrum": 3}
"""How many clients to begin with, where two will not do."""
FILES = {
    "pyproject.toml": "pyproject.toml",
    "README.md": "README.md",
    "LICENSE": "LICENSE",
    "experiment.py": "{package}/experiment.py",
    "client_app.py": "{package}/client_app.py",
    "server_app.py": "{package}/server_app.py",
}


def write_app(
    folder: str | Path, strategy: str = "fedavg", experiment: str | Path | None = None
) -> list[Path]:
    """Write an app.

    Args:
        folder: a folder that does not exist yet, or is empty; its name becomes the app's.
        strategy: the name of a server strategy, for a quick experiment of its own; or
        experiment: an experiment file, whose seed, data, model, strategy, expert and rounds the app takes over, and the
            modules that lie beside it and were imported for it.

    Returns:
        The files written.

    Raises:
        ConfigError: if the folder has files in it, its name is that of another package, or the strategy cannot run.
    """
    folder = Path(folder)
    name = re.sub(r"[^a-z0-9]+", "-", folder.resolve().name.lower()).strip("-") or "app"
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError([Problem("DIR", str(folder), "must be new or empty")])
    package = re.sub(r"^(?=\d)", "app_", name.replace("-", "_"))
    owner = _owner(package)
    if owner:
        rule = f"the app's package would be called {package}, and that name belongs to {owner}"
        raise ConfigError([Problem("DIR", str(folder), rule, "choose another name")])
    values = {"name": name, "package": package, **_chosen(strategy, experiment)}
    own = _modules(experiment)
    if package in {target.parts[0].removesuffix(".py") for _, target in own}:
        rule = f"the app's package would be called {package}, and so is a module of the experiment"
        raise ConfigError([Problem("DIR", str(folder), rule, "choose another name")])
    loader = FileSystemLoader(Path(__file__).parent / "templates")
    pages = Environment(loader=loader, undefined=StrictUndefined, keep_trailing_newline=True)
    pages.filters["python"] = lambda value: pprint.pformat(value, sort_dicts=False, width=90)
    written = []
    for source, target in FILES.items():
        path = folder / target.format(package=package)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(pages.get_template(f"{source}.jinja").render(values), encoding="utf-8")
        written.append(path)
    (folder / package / "__init__.py").write_text('"""A Flower app."""\n', encoding="utf-8")
    for source_file, target_file in own:
        path = folder / target_file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(source_file.read_bytes())
        written.append(path)
    return [*written, folder / package / "__init__.py"]


def _modules(file: str | Path | None) -> list[tuple[Path, Path]]:
    """Return the modules that lie beside an experiment and were imported for it, and where they go in the app."""
    return [] if file is None else place(load(file).folder).files()


def _owner(package: str) -> str:
    """Say whose name it is that a package cannot have, or nothing."""
    if keyword.iskeyword(package) or package in sys.stdlib_module_names:
        return "Python"
    owners = packages_distributions().get(package)
    return f"{owners[0]}, which is installed" if owners else ""


def _chosen(strategy: str, file: str | Path | None) -> dict[str, Any]:
    """Return what the templates need of an experiment, after a check that it can run."""
    beside = None
    chosen: dict[str, Any] = {
        "seed": 0,
        "rounds": 3,
        "clients": FEWEST.get(strategy, 2),
        "model": "mlp" if strategy in LAYERED else "softmax",
        "data": {"name": "digits", "partition": {"name": "dirichlet", "alpha": 1.0}},
        "strategy": {"name": strategy, **STARTS.get(strategy, {"local": LOCAL})},
        "expert": {},
    }
    if file is not None:
        experiment = load(file)  # every mistake in it, with its line
        chosen = _taken(read(file).data)
        beside = str(experiment.folder)
    blocks = {key: chosen[key] for key in ("model", "data", "strategy", "clients", "seed", "expert")}
    try:
        client.server_side(**blocks, beside=beside)
    except BadValue as error:
        raise ConfigError([Problem(error.key, error.value, error.rule, error.hint)]) from error
    return chosen


def _taken(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the same of an experiment as it is written."""
    data, strategy = {"name": "digits", **given["data"]}, given["strategy"]
    return {
        "seed": given.get("seed", 0),
        "rounds": given["stop"].get("rounds") or 10,
        "clients": data.pop("clients"),
        "model": given.get("model", "mlp"),
        "data": data,
        "strategy": {"name": strategy} if isinstance(strategy, str) else strategy,
        "expert": given.get("expert") or {},
    }
