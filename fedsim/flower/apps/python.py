"""Flower apps that are objects: in a notebook, a script or a test, without a folder of an app."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from fedsim.errors import MISSING, ConfigError, Problem, RunError
from fedsim.flower import compat
from fedsim.flower.apps.app import Source, build, simulated
from fedsim.flower.apps.client import AppClients
from fedsim.flower.apps.grid import AppGrid
from fedsim.flower.apps.project import Project
from fedsim.flower.apps.servertime import ServerTime
from fedsim.flower.apps.threads import Ended
from fedsim.flower.apps.worldfile import CHECKPOINT, read_world
from fedsim.record.result import Result
from fedsim.running.ending import clock
from fedsim.running.threads import limited
from fedsim.spec.app import App
from fedsim.spec.experiment import Experiment

World = str | Path | Mapping[str, Any] | None


def simulate(
    server_app: ServerApp,
    client_app: ClientApp,
    *,
    nodes: int,
    world: World = None,
    run_config: Mapping[str, Any] | None = None,
    out: str | Path = "runs",
    name: str = "app",
) -> Result:
    """Run a Flower app in simulated time; :func:`fedsim.flower.run_app` does the same with an app on disk.

    Args:
        server_app: the app's server.
        client_app: the app's clients; it runs in this process.
        nodes: how many clients there are.
        world: an experiment file or a mapping with nothing but the world, and the block ``app``.
        run_config: what both find in ``context.run_config``.
        out: the folder in which the run gets a folder of its own.
        name: of the run.

    Returns:
        The result, as of :func:`fedsim.flower.run_app`.

    Raises:
        ConfigError: for a mistake in the world.
        RunError: if the app breaks.
    """
    began, project = clock(), _project(name, run_config, _folder())
    experiment, settings = read_world(project, nodes, world, {})
    if experiment.record.checkpoint is not None:
        rule = "must be left out: an app that consists of objects cannot be found again"
        raise ConfigError([Problem(CHECKPOINT, MISSING, rule, "run an app on disk, with fedsim flower run")])
    source = Source(_told(project, settings), lambda: server_app, lambda: client_app)
    return simulated(source, experiment, Path(out), began)


def grid(
    world: World, client_app: ClientApp, *, nodes: int, run_config: Mapping[str, Any] | None = None
) -> AbstractContextManager[AppGrid]:
    """Return a grid of simulated clients to hold on to, for as long as the ``with`` block lasts.

    Time stands still except while the grid is waited for, or ``time.sleep`` is called. What ends the run, such as the
    world's ``stop.sim_time_s``, leaves the block. Nothing is recorded.

    Args:
        world: an experiment file or a mapping with nothing but the world, and the block ``app``; or None.
        client_app: what each client runs.
        nodes: how many there are.
        run_config: what they find in ``context.run_config``.

    Raises:
        ConfigError: for a mistake in the world.
        RunError: if the run breaks.

    >>> from flwr.app import Message, RecordDict
    >>> app = ClientApp()
    >>> @app.query()
    ... def echo(message, context):
    ...     return Message(message.content, reply_to=message)
    >>> with grid({"network": {"latency_ms": 20}}, app, nodes=3) as made:
    ...     replies = made.send_and_receive([Message(RecordDict(), node, "query") for node in made.get_node_ids()])
    ...     len(replies), made.world.clock.now_s
    (3, 0.04)
    """
    project = _project("grid", run_config, _folder())
    experiment, settings = read_world(project, nodes, world, {})
    return _held(_told(project, settings), experiment, client_app)


@contextmanager
def _held(project: Project, experiment: Experiment, client_app: ClientApp) -> Iterator[AppGrid]:
    place, times = build(experiment), ServerTime(project.root)
    clients = AppClients(client_app, project, len(place.members), experiment.seed, place.clock)
    limits = experiment.network.detect_s, experiment.stop.sim_time_s
    made = times.grid = AppGrid(place, clients, *limits, watches=[clients])
    session = compat.session(experiment.seed, made.server.id, made.sleep)
    with limited(experiment.compute.threads), times.kept(), session:
        try:
            yield made
        except Ended:
            if isinstance(made.ended, RunError):
                raise made.ended from None


def _folder() -> Path:
    """Return the folder of the code that has called fedsim: the one that lives in simulated time."""
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_globals.get("__name__", "").startswith("fedsim."):
        frame = frame.f_back
    return Path(frame.f_code.co_filename if frame else "").parent


def _project(name: str, run_config: Mapping[str, Any] | None, root: Path) -> Project:
    return Project(root, name, "an object", "an object", dict(run_config or {}), App())


def _told(project: Project, settings: App) -> Project:
    if settings.workers:
        rule = "must be 0: an object cannot be imported in another process"
        raise ConfigError([Problem("app.workers", settings.workers, rule)])
    return replace(project, settings=settings.model_copy(update={"workers": 0}))
