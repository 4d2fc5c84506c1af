"""Runs a user's unmodified Flower app in simulated time."""

from __future__ import annotations

import hashlib
import json
import logging
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from safetensors import SafetensorError

from fedsim.errors import ConfigError, Problem, RunError
from fedsim.flower import compat
from fedsim.flower.apps import applog, legacy
from fedsim.flower.apps.client import AppClients
from fedsim.flower.apps.grid import AppGrid, watched
from fedsim.flower.apps.journal import Journal
from fedsim.flower.apps.origin import REPLIES, Origin, lasting_s
from fedsim.flower.apps.past import Past
from fedsim.flower.apps.project import Project, importable, load_client, load_server, read_project
from fedsim.flower.apps.replies import remark
from fedsim.flower.apps.servertime import ServerTime
from fedsim.flower.apps.threads import Ended
from fedsim.flower.apps.worker import import_seeded
from fedsim.flower.apps.workers import workers_of
from fedsim.flower.apps.worldfile import CHECKPOINT, node_config_of, read_world
from fedsim.record import store, weights
from fedsim.record.reports import try_report
from fedsim.record.result import Result
from fedsim.record.store import Record
from fedsim.record.tape import Tape
from fedsim.running.described import describe_world
from fedsim.running.ending import Ending, clock
from fedsim.running.folder import make_folder
from fedsim.running.lock import locked
from fedsim.running.progress import Progress
from fedsim.running.servers import warn
from fedsim.running.sinks import Sinks, make_sinks
from fedsim.running.threads import limited
from fedsim.running.topology import make_graph
from fedsim.spec.experiment import Experiment
from fedsim.world import world as worlds
from fedsim.world.world import World

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
    overrides = {**(overrides or {}), **node_config_of(node_config)}
    experiment, settings = read_world(project, nodes, world, overrides)
    source = Source.of(
        replace(project, settings=settings), _command(path, nodes, world, run_config, overrides, out)
    )
    with importable(project.root), explained(source):
        return simulated(source, experiment, Path(out), began, progress, verbose)


@contextmanager
def explained(source: Source) -> Iterator[None]:
    """Let what ends a run early say what to type to run the app again, or to let it go on."""
    try:
        yield
    except (RunError, KeyboardInterrupt) as error:
        path: Path | None = getattr(error, "run_path", None)
        if path is not None:
            error.again = source.command  # type: ignore[union-attr]
            own = isinstance(error, RunError) and error.phase == "server"  # would happen again
            if (path / REPLIES).exists() and not own:
                error.go_on = f"fedsim resume {shlex.quote(str(path))}"  # type: ignore[union-attr]
        raise


@dataclass(frozen=True)
class Source:
    """A Flower app, and where its halves come from.

    Args:
        project: what is known of it.
        server: returns its ServerApp, at the run's start.
        client: returns its ClientApp, before anything else.
        command: what to type to run it again, if that is known.
    """

    project: Project
    server: Callable[[], ServerApp]
    client: Callable[[], ClientApp]
    command: str = ""

    @classmethod
    def of(cls, project: Project, command: str) -> Source:
        """Return an app on disk; see :func:`fedsim.flower.apps.project.importable`."""
        return cls(project, lambda: load_server(project), lambda: load_client(project), command)


@dataclass(frozen=True)
class Begun:
    """A run that goes on.

    Args:
        folder: the run's.
        tape: what was kept, read as far as what the run is known by.
        start_s: the date at which its simulated time began.
    """

    folder: Path
    tape: Tape
    start_s: int


def simulated(
    source: Source,
    experiment: Experiment,
    out: Path | Begun,
    began: float,
    progress: Callable[[Progress], None] | None = None,
    verbose: bool = False,
) -> Result:
    """Run a Flower app in the world of an experiment; see :func:`run_app`.

    Args:
        source: the app.
        experiment: its world.
        out: the folder in which the run gets a folder of its own; or a run that goes on.
        began: when whoever waits for the run began to wait.
        progress: called after every round.
        verbose: show ``INFO`` lines, too.

    Raises:
        RunError: if the app breaks.
    """
    times = ServerTime(source.project.root, out.start_s if isinstance(out, Begun) else None)
    with ExitStack() as stack:
        stack.enter_context(limited(experiment.compute.threads))
        stack.enter_context(times.kept())
        with import_seeded(experiment.seed):
            client = source.client()
        place, sinks = build(experiment), make_sinks(experiment)
        folder, tape = _opened(source, experiment, out, times, stack)
        ending = Ending(folder, experiment, began)
        told = sinks.running(folder, experiment)
        stack.enter_context(ending.early(noted=True))
        stack.enter_context(applog.kept(folder, place.clock, verbose))
        stack.enter_context(told)
        return _run(source, ending, place, client, progress, times, tape, sinks)


def _opened(
    source: Source, experiment: Experiment, out: Path | Begun, times: ServerTime, stack: ExitStack
) -> tuple[Path, Tape | None]:
    """Return a run's folder, and what keeps the replies, if they are kept; others stay out of it."""
    if isinstance(out, Begun):
        return out.folder, out.tape
    folder = make_folder(out, experiment, False)
    stack.enter_context(locked(folder))
    if experiment.record.checkpoint is None:
        return folder, None
    try:
        tape = stack.enter_context(Tape(folder / REPLIES, lasting_s(experiment)))
        origin = Origin.of(folder, source.project, experiment, times.start_s, source.command)
        tape.append(origin.packed())
    except OSError as error:
        raise ConfigError([Problem("out", str(out), f"cannot be written ({error.strerror})")]) from error
    return folder, tape


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
    >>> _command("app", 3, None, "", {"record.checkpoint": {}}, "runs")
    'fedsim flower run app --nodes 3 --checkpoint'
    """
    words = ["fedsim", "flower", "run", str(path), "--nodes", str(nodes)]
    words += [] if world is None else ["--config", str(world)]
    words += ["--run-config", run_config] if run_config else []
    for key, value in overrides.items():
        if (key, value) == (CHECKPOINT, {}):
            words.append("--checkpoint")
            continue
        words += ["--set", f"{key}={value if isinstance(value, str) else json.dumps(value)}"]
    words += ["--out", str(out)] if Path(out) != Path("runs") else []
    return shlex.join(words)


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
    tape: Tape | None,
    sinks: Sinks,
) -> Result:
    experiment, folder, project = ending.experiment, ending.folder, source.project
    nodes, seed = len(world.members), experiment.seed
    past = None if tape is None else Past(tape, world, experiment.record.checkpoint is not None)
    with Record(folder, sinks) as record, workers_of(project, nodes, seed) as workers:
        journal = Journal(experiment, world, record, progress, sinks)
        journal.start(describe_world(world), {"app": project.name, "notes": world.notes})
        clients = AppClients(client, project, nodes, seed, world.clock, workers, past)
        watches = [clients, journal]
        limits = experiment.network.detect_s, experiment.stop.sim_time_s
        journal.grid = times.grid = grid = AppGrid(world, clients, *limits, watches=watches)
        try:
            if past is not None:
                past.round = lambda: journal.round
            _drive(source, experiment, grid, journal)
            if past is not None and grid.ended is None:
                past.check_end()
            weights_hash = save_weights(journal.arrays, ending)
        finally:
            times.grid = None
            if past is not None:
                past.close()
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
