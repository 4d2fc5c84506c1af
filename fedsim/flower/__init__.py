"""The bridge to Flower: its strategies in simulated time, and ours in its deployments."""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from packaging.version import Version

from fedsim.errors import MISSING, ConfigError, Problem

if TYPE_CHECKING:
    from fedsim.flower.apps.app import run_app
    from fedsim.flower.apps.python import grid
    from fedsim.flower.compare.compare import compare_app
    from fedsim.flower.deploy.bypartition import ByPartition
    from fedsim.flower.deploy.client import ServerSide, client_app, server_side
    from fedsim.flower.deploy.loopback import try_deployment
    from fedsim.flower.deploy.template import write_app

__all__ = [
    "ByPartition",
    "ServerSide",
    "client_app",
    "compare_app",
    "grid",
    "run_app",
    "server_side",
    "simulate",
    "try_deployment",
    "write_app",
]

OLDEST = "1.33"
HOMES = {
    "run_app": "apps.app",
    "compare_app": "compare.compare",
    "try_deployment": "deploy.loopback",
    "write_app": "deploy.template",
    "grid": "apps.python",
    "ByPartition": "deploy.bypartition",
    "ServerSide": "deploy.client",
    "client_app": "deploy.client",
    "server_side": "deploy.client",
}


def check_version(found: str | None) -> None:
    """Refuse to go on without Flower, or with one that is too old.

    Args:
        found: the installed version of flwr, or None.

    Raises:
        ConfigError: saying what to install.

    >>> check_version("1.41.0")
    >>> check_version("1.20.0")
    Traceback (most recent call last):
    fedsim.errors.ConfigError: flwr: 1.20.0: must be at least 1.33; pip install 'flwr>=1.33'
    """
    hint = f"pip install 'flwr>={OLDEST}'"  # not fedsim[flower]: the index has another project of that name
    if found is None:
        raise ConfigError([Problem("flwr", MISSING, "is not installed, and this needs Flower", hint)])
    if Version(found) < Version(OLDEST):
        raise ConfigError([Problem("flwr", found, f"must be at least {OLDEST}", hint)])


def _installed() -> str | None:
    try:
        return version("flwr")
    except PackageNotFoundError:
        return None


def __getattr__(name: str) -> Any:
    if name == "simulate":
        return importlib.import_module(f"{__name__}.{name}")
    if name in HOMES:
        return getattr(importlib.import_module(f"{__name__}.{HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


check_version(_installed())
