"""Runs a user's unmodified Flower app in simulated time."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import shlex
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from pydantic import ValidationError
from safetensors import SafetensorError

from fedsim.errors import MISSING, ConfigError, Problem, RunError
from fedsim.flower import compat
from fedsim.flower.apps import applog, legacy
from fedsim.flower.apps.client import AppClients
from fedsim.flower.apps.grid import AppGrid, watched
from fedsim.flower.apps.journal import Journal
from fedsim.flower.apps.project import (
    FILE,
    Project,
    importable,
    load_client,
    load_server,
    pairs,
    read_project,
)
from fedsim.flower.apps.replies import remark
from fedsim.flower.apps.servertime import ServerTime
from fedsim.flower.apps.threads import Ended
from fedsim.flower.apps.worker import import_seeded
from fedsim.flower.apps.workers import workers_of
from fedsim.record import store, weights
from fedsim.record.reports import try_report
from fedsim.record.result import Result
from fedsim.record.store import Record
from fedsim.running.build import describe_world
from fedsim.running.ending import Ending, clock
from fedsim.running.folder import make_folder
from fedsim.running.progress import Progress
from fedsim.running.servers import warn
from fedsim.running.sinks import Sinks, make_sinks
from fedsim.running.threads import limited
from fedsim.running.topology import make_graph
from fedsim.spec.app import App
from fedsim.spec.blocks import Block
from fedsim.spec.experiment import Experiment, load
from fedsim.spec.explain import explain
from fedsim.spec.yamlfile import Document, read
from fedsim.world import world as worlds
from fedsim.world.world import World

FOREIGN = ("data", "model", "strategy", "evaluate", "compute.engine", "stop.rounds", "stop.target")
"""What an app brings itself, so that a world cannot choose it."""
ENDLESS = 10**9

log = logging.getLogger("fedsim")


def run_app(
    path: str | Path,
    *,
    nodes: int,
    world: str | Path | Mapping[str, Any] | None = None,
    run_config: str = "",
    node_config: str = "",
    overrides: Mapping[str, Any] | None = None,
    out: str | Path = "runs",
    progress: Callable[[Progress], None] | None = None,
    verbose: bool = False,
) -> Result:
    """Run a Flower app in simulated time and leave a folder with its record and a report.

    The app is run as it is: its ServerApp on a simulated grid, its ClientApp in this process and, once
    it has run for two seconds, in one more for each other core (``[tool.fedsim] workers`` in its pyproject.toml may say
    another number), once for each of the simulated clients.

    Args:
        path: the app's folder, with a pyproject.toml.
        nodes: how many clients there are.
        world: an experiment file, or a mapping, with nothing but the world: seed, topology, network, devices, churn,
            faults and ``stop.sim_time_s``, and the block ``app`` (see :class:`fedsim.spec.app.App`); None takes the
            table ``[tool.fedsim.world]`` of the app's pyproject.toml, or else a world without delays.
        run_config: values that replace those of the app, such as ``"num-server-rounds=5 lr=0.1"``.
        node_config: values in every client's ``node_config``, such as ``"dataset-path='data.csv'"``.
        overrides: values of the world and of ``app`` by dotted key.
        out: the folder in which the run gets a folder of its own.
        progress: called after every round.
        verbose: show the ``INFO`` lines of the app and of Flower, too; they are in ``app.log`` of the run's folder.

    Returns:
        The result. Its metrics are those of the strategy's own evaluation by their names, and means over the
        clients' replies (weighted by num-examples) as ``train_…`` and ``eval_…``.

    Raises:
        ConfigError: for a mistake in the app's pyproject.toml, in the world or in ``run_config``.
        RunError: if the app breaks; it names node, round and simulated time, and the cause has the traceback. Its
            ``run_path`` is the folder with what was recorded until then.
    """
    began = clock()
    project = read_project(path, run_config)
    overrides = {**(overrides or {}), **_node_config(node_config)}
    experiment, settings = read_world(project, nodes, world, overrides)
    project = replace(project, settings=settings)
    source = Source(project, lambda: load_server(project), lambda: load_client(project))
    with importable(project.root):
        try:
            return simulated(source, experiment, Path(out), began, progress, verbose)
        except (RunError, KeyboardInterrupt) as error:
            if hasattr(error, "run_path"):
                error.again = _command(path, nodes, world, run_config, overrides, out)  # type: ignore[union-attr]
            raise


@dataclass(frozen=True)
class Source:
    """A Flower app, and where its halves come from.

    Args:
        project: what is known of it.
        server: returns its ServerApp, at the run's start.
        client: returns its ClientApp, before anything else.
    """

    project: Project
    server: Callable[[], ServerApp]
    client: Callable[[], ClientApp]


def simulated(
    source: Source,
    experiment: Experiment,
    out: Path,
    began: float,
    progress: Callable[[Progress], None] | None = None,
    verbose: bool = False,
) -> Result:
    """Run a Flower app in the world of an experiment; see :func:`run_app`.

    Args:
        source: the app.
        experiment: its world.
        out: the folder in which the run gets a folder of its own.
        began: when whoever waits for the run began to wait.
        progress: called after every round.
        verbose: show ``INFO`` lines, too.

    Raises:
        RunError: if the app breaks.
    """
    times = ServerTime(source.project.root)
    with limited(experiment.compute.threads), times.kept():
        with import_seeded(experiment.seed):
            client = source.client()
        place, sinks = build(experiment), make_sinks(experiment)
        folder = make_folder(out, experiment, False)
        ending = Ending(folder, experiment, began)
        told = sinks.running(folder, experiment)
        with ending.early(noted=True), applog.kept(folder, place.clock, verbose), told:
            return _run(source, ending, place, client, progress, times, sinks)


def _node_config(text: str) -> dict[str, Any]:
    """Return what ``--node-config`` says; its keys may have dots, so it comes as a whole."""
    problems: list[Problem | None] = []
    found = pairs(text, "--node-config", problems)
    if problems:
        raise ConfigError([problem for problem in problems if problem is not None])
    return {"app.node_config": found} if found else {}


def _command(
    path: str | Path,
    nodes: int,
    world: str | Path | Mapping[str, Any] | None,
    run_config: str,
    overrides: Mapping[str, Any],
    out: str | Path,
) -> str:
    """Return what to type to run an app again.

    >>> _command("my app", 3, None, "lr=0.1", {"seed": 2, "network.latency_ms": "5"}, "runs")
    "fedsim flower run 'my app' --nodes 3 --run-config lr=0.1 --set seed=2 --set network.latency_ms=5"
    """
    words = ["fedsim", "flower", "run", str(path), "--nodes", str(nodes)]
    words += [] if world is None else ["--config", str(world)]
    words += ["--run-config", run_config] if run_config else []
    for key, value in overrides.items():
        words += ["--set", f"{key}={value if isinstance(value, str) else json.dumps(value)}"]
    words += ["--out", str(out)] if Path(out) != Path("runs") else []
    return shlex.join(words)


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
    given = {key for key in FOREIGN if _there(data, key)} | {
        key for key in overrides if any(key == one or key.startswith(f"{one}.") for one in FOREIGN)
    }
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
    if not (_there(data, "stop") or any(key.startswith("stop") for key in overrides)):
        own["stop"] = {"rounds": ENDLESS}  # the app itself knows when it is done
    if "name" in data:
        del own["name"]
    return load(document if document.name else data, {**own, **overrides}), settings


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


def build(experiment: Experiment) -> World:
    """Build the world that an app runs in, at t=0, with its churn and faults set going.

    Raises:
        ConfigError: if a part refuses its parameters.
    """
    world = worlds.build(experiment, make_graph(experiment, True), True)
    worlds.start(world, experiment)
    return world


def _run(
    source: Source,
    ending: Ending,
    world: World,
    client: ClientApp,
    progress: Callable[[Progress], None] | None,
    times: ServerTime,
    sinks: Sinks,
) -> Result:
    experiment, folder, project = ending.experiment, ending.folder, source.project
    nodes, seed = len(world.members), experiment.seed
    with Record(folder, sinks) as record, workers_of(project, nodes, seed) as workers:
        journal = Journal(experiment, world, record, progress, sinks)
        journal.start(describe_world(world), {"app": project.name, "notes": world.notes})
        clients = AppClients(client, project, nodes, seed, world.clock, workers)
        watches = [clients, journal]
        limits = experiment.network.detect_s, experiment.stop.sim_time_s
        journal.grid = times.grid = grid = AppGrid(world, clients, *limits, watches=watches)
        try:
            _drive(source, experiment, grid, journal)
            weights_hash = save_weights(journal.arrays, ending)
        finally:
            times.grid = None
            with ending.tried(store.FILE):
                journal.end_round()
                journal.end({"error_replies": [asdict(one) for one in journal.failed]})
                record.close()
            warn(journal.failed, "replies were errors")
    own = {"error_replies": len(journal.failed), "engine": "flower"}
    summary = ending.finish(journal.summary(True, weights_hash, **own), try_report)
    sinks.finish(summary)
    return Result(folder, summary)


def _drive(source: Source, experiment: Experiment, grid: AppGrid, journal: Journal) -> None:
    """Let the ServerApp run until it returns, or until the simulated time is over."""
    heard = journal.take, journal.measure, journal.aggregated
    try:
        with (
            watched(grid, experiment.compute.patience_s, lambda: journal.round),
            compat.session(experiment.seed, grid.server.id, grid.sleep, logging.INFO),
            compat.observed(*heard),
            legacy.together(grid, grid.sleep, *heard),
            closing(grid.threads),
        ):
            server = source.server()
            server(grid, compat.make_context(grid.server.id, {}, dict(source.project.run_config)))
    except Ended:
        pass
    except RunError as error:
        if error.sim_time_s is not None:
            raise
        place = grid.server.id, journal.round, grid.world.clock.now_s, error.phase or "server"
        raise RunError(error.reason, *place) from error
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:
        if grid.ended is None and not (isinstance(error, SystemExit) and error.code in (0, None)):
            reason = f"the ServerApp raised {type(error).__name__}: {error}{remark(journal.replies)}"
            place = grid.server.id, journal.round, grid.world.clock.now_s, "server"
            raise RunError(reason, *place) from error
    if isinstance(grid.ended, RunError):
        raise grid.ended


def save_weights(arrays: ArrayRecord | None, ending: Ending) -> str | None:
    """Write a server's model as ``weights.safetensors``, if there is one that can be, and return its SHA-256."""
    if arrays is None:
        return None
    # A file holds rows one after the other, whatever the order in memory.
    tensors = {name: np.asarray(array.numpy(), order="C") for name, array in arrays.items()}
    try:
        with ending.tried(weights.FILE):
            weights.save_arrays(ending.folder / weights.FILE, tensors, list(tensors))
    except SafetensorError as error:
        log.warning("the run is done, but its model has arrays that cannot be saved: %s", error)
    return hashlib.sha256(b"".join(array.tobytes() for array in tensors.values())).hexdigest()
