"""Runs a user's unmodified Flower app in simulated time."""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Message, MessageType, MetricRecord
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from fedsim import api
from fedsim.config import Experiment, load
from fedsim.ending import Ending, clock
from fedsim.errors import MISSING, ConfigError, Problem, RunError
from fedsim.flower import compat
from fedsim.flower.appclient import AppClients, import_seeded, worker_pool
from fedsim.flower.appgrid import AppGrid, Ended
from fedsim.flower.failures import Dropped, errors, warn
from fedsim.flower.instruction import Watch, named_round
from fedsim.flower.project import Project, importable, load_client, load_server, read_project
from fedsim.flower.replies import means, remark
from fedsim.flower.servertime import ServerTime
from fedsim.progress import Progress
from fedsim.record import weights
from fedsim.record.store import FILE, WIDE, Record
from fedsim.world import world as worlds
from fedsim.world.world import World
from fedsim.yamlfile import read

FOREIGN = ("data", "model", "strategy", "evaluate", "compute.engine", "stop.rounds", "stop.target")
"""What an app brings itself, so that a world cannot choose it."""
ENDLESS = 10**9

log = logging.getLogger("fedsim")


def run_app(
    path: str | Path,
    *,
    nodes: int,
    world: str | Path | None = None,
    run_config: str = "",
    overrides: Mapping[str, Any] | None = None,
    out: str | Path = "runs",
    progress: Callable[[Progress], None] | None = None,
) -> api.Result:
    """Run a Flower app in simulated time and leave a folder with its record and a report.

    The app is run as it is: its ServerApp on a simulated grid, its ClientApp in this process (or in worker
    processes, if ``[tool.fedsim] workers`` in its pyproject.toml says that it is safe there), once for each of the
    simulated clients.

    Args:
        path: the app's folder, with a pyproject.toml.
        nodes: how many clients there are.
        world: an experiment file with nothing but the world: seed, topology, network, devices, churn, faults and
            ``stop.sim_time_s``; None is a world without delays.
        run_config: values that replace those of the app, such as ``"num-server-rounds=5 lr=0.1"``.
        overrides: values of the world by dotted key.
        out: the folder in which the run gets a folder of its own.
        progress: called after every round.

    Returns:
        The result. Its metrics are those of the strategy's own evaluation by their names, and means over the
        clients' replies (weighted by num-examples) as ``train_…`` and ``eval_…``.

    Raises:
        ConfigError: for a mistake in the app's pyproject.toml, in the world or in ``run_config``.
        RunError: if the app breaks; it names node, round and simulated time, and the cause has the traceback.
    """
    from fedsim.threads import limited

    began = clock()
    project = read_project(path, run_config)
    experiment = read_world(project, nodes, world, overrides or {})
    times = ServerTime(project.root)
    with limited(experiment.compute.threads), importable(project.root), times.kept():
        with import_seeded(experiment.seed):
            client = load_client(project)
        place = build(experiment)
        folder = api.make_folder(Path(out), experiment, False)
        ending = Ending(folder, experiment, began)
        try:
            return _run(project, ending, place, client, progress, times)
        except (RunError, KeyboardInterrupt) as error:
            ending.add_to(error)
            error.add_note(f"what was recorded is kept in {folder}")
            raise


def read_world(
    project: Project, nodes: int, file: str | Path | None, overrides: Mapping[str, Any]
) -> Experiment:
    """Return the experiment that an app makes of a world.

    Raises:
        ConfigError: if the world is wrong, or chooses what the app brings itself.
    """
    if nodes < 1:
        raise ConfigError([Problem("--nodes", nodes, "must be at least 1")])
    document = read(file) if file is not None else None
    data = document.data if document is not None else {}
    given = {key for key in FOREIGN if _there(data, key)} | {
        key for key in overrides if any(key == one or key.startswith(f"{one}.") for one in FOREIGN)
    }
    if given:
        rule = "an app brings this itself; a file for it describes the world alone"
        sources = {key: document.source(tuple(key.split("."))) if document else "" for key in given}
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
    return load(file if file is not None else {}, {**own, **overrides})


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
    from fedsim.setup import make_graph

    world = worlds.build(experiment, make_graph(experiment, True), True)
    worlds.start(world, experiment)
    return world


def _run(
    project: Project,
    ending: Ending,
    world: World,
    client: ClientApp,
    progress: Callable[[Progress], None] | None,
    times: ServerTime,
) -> api.Result:
    from fedsim.setup import describe_world

    experiment, folder = ending.experiment, ending.folder
    with Record(folder) as record, worker_pool(project) as pool:
        for table, rows in describe_world(world).items():
            record.write(table, rows)
        api.record_events(world, record, experiment.record.events)
        journal = Journal(experiment, world, record, progress)
        clients = AppClients(client, project, len(world.members), experiment.seed, world.clock, pool)
        watches = [clients, journal]
        limits = experiment.network.detect_s, experiment.stop.sim_time_s
        journal.grid = times.grid = grid = AppGrid(world, clients, *limits, watches=watches)
        try:
            _drive(project, experiment, grid, journal)
            weights_hash = save_weights(journal.arrays, ending)
        finally:
            times.grid = None
            with ending.tried(FILE):
                journal.end_round()
                api.record_totals(world, record)
                record.fact("error_replies", [asdict(one) for one in journal.failed])
                record.close()
            warn(journal.failed, "replies were errors")
    summary = {**journal.summary(), **api.costs(world), "engine": "flower"}
    summary["event_hash"] = world.log.hexdigest()
    summary["weights_hash"] = weights_hash
    marks = f"{summary['event_hash']}{summary['weights_hash']}"
    summary["run_hash"] = hashlib.sha256(marks.encode()).hexdigest()
    return api.Result(folder, ending.finish(summary, api.try_report))


def _drive(project: Project, experiment: Experiment, grid: AppGrid, journal: Journal) -> None:
    """Let the ServerApp run until it returns, or until the simulated time is over."""
    try:
        with (
            compat.session(experiment.seed, grid.server.id, grid.sleep, logging.WARNING),
            compat.observed(journal.take, journal.measure),
            compat.together(grid, grid.sleep, journal.take),
        ):
            server: ServerApp = load_server(project)
            server(grid, compat.make_context(grid.server.id, {}, dict(project.run_config)))
    except Ended:
        pass
    except (RunError, ConfigError):
        raise
    except (Exception, SystemExit) as error:
        if grid.ended is None and not (isinstance(error, SystemExit) and error.code in (0, None)):
            reason = f"the ServerApp raised {type(error).__name__}: {error}{remark(journal.replies)}"
            place = grid.server.id, journal.round, grid.world.clock.now_s, "server"
            raise RunError(reason, *place) from error
    if isinstance(grid.ended, RunError):
        raise grid.ended


class Journal(Watch):
    """Writes down an app's rounds and metrics as they show in its messages.

    A round is what the messages' configuration calls ``server-round`` (or, with Flower's former API, their group);
    messages that name no round open one whenever the server trains again. Those that it sends one by one, at one
    moment or as one group, belong together until it has had a reply.

    Args:
        experiment: whose run it is.
        world: counts bytes and work.
        record: where everything is written.
        progress: called after every round, or None.
    """

    grid: AppGrid

    def __init__(
        self,
        experiment: Experiment,
        world: World,
        record: Record,
        progress: Callable[[Progress], None] | None = None,
    ) -> None:
        self._experiment, self._world, self._record, self._progress = experiment, world, record, progress
        self.round = 0
        self.arrays: ArrayRecord | None = None
        self.replies: Sequence[Message] = ()
        self.failed: list[Dropped] = []
        self._last: dict[str, float] = {}
        self._best: float | None = None
        self._group: str | None = None
        self._began = time.perf_counter()

    def sent(self, messages: Sequence[Message]) -> None:
        """Open the round that the messages belong to."""
        first = messages[0].metadata
        number = named_round(messages[0])
        if number < 0 and first.message_type.startswith(MessageType.TRAIN):
            group = first.group_id or str(self._world.clock.now)
            number = self.round + (group != self._group)
            self._group = group
        if number > self.round:
            if self.round:
                self.end_round()
            self.round = number

    def pulled(self, replies: Sequence[Message]) -> None:
        """Write down the means of what the clients report."""
        self.replies, self._group = replies, None
        self.failed += errors(replies, self.round, self._world.clock.now_s)
        for kind, prefix in ((MessageType.TRAIN, "train_"), (MessageType.EVALUATE, "eval_")):
            contents = [
                reply.content
                for reply in sorted(replies, key=lambda reply: reply.metadata.src_node_id)
                if reply.has_content() and reply.metadata.message_type.partition(".")[0] == kind
            ]
            for name, value in means(contents).items():
                self._metric(name if name.startswith(prefix) else prefix + name, value)

    def take(self, arrays: ArrayRecord) -> None:
        """Keep the server's model."""
        self.arrays = arrays

    def measure(self, server_round: int, metrics: MetricRecord) -> None:
        """Write down what the server's own evaluation gives."""
        for name, value in metrics.items():
            if isinstance(value, int | float):
                self._metric(name, float(value), server_round)

    def end_round(self) -> None:
        """Close the round that is open."""
        world, totals = self._world, self._world.totals()
        if self.round:
            world.log.add("round", -1, round=self.round)
        self._record.round(self.round, world.clock.now, clients=self.grid.updates, **totals)
        if self._progress is not None:
            self._progress(
                Progress(
                    self.round,
                    None,
                    world.clock.now_s,
                    self._experiment.stop.sim_time_s,
                    self._last.get("accuracy"),
                    self._last.get("loss"),
                    totals["bytes_up"],
                    totals["bytes_down"],
                    self.grid.updates,
                    time.perf_counter() - self._began,
                )
            )

    def summary(self) -> dict[str, Any]:
        """Return the run's final numbers by name, except for its costs."""
        return {
            "name": self._experiment.name,
            "strategy": self._experiment.strategy.name,
            "seed": self._experiment.seed,
            "rounds": self.round,
            "sim_time_s": self._world.clock.now_s,
            "wall_time_s": round(time.perf_counter() - self._began, 3),
            "accuracy": self._last.get("accuracy"),
            "best_accuracy": self._best,
            "loss": self._last.get("loss"),
            "time_to_target_s": None,
            "error_replies": len(self.failed),
            "metrics": self._last,
        }

    def _metric(self, name: str, value: float, round: int | None = None) -> None:
        name = f"app_{name}" if name in WIDE else name  # an app may call its numbers as it likes
        self._last[name] = value
        if name == "accuracy" and math.isfinite(value):
            self._best = max(value, self._best or 0.0)
        self._record.metric(self.round if round is None else round, self._world.clock.now, name, value)


def save_weights(arrays: ArrayRecord | None, ending: Ending) -> str | None:
    """Write a server's model as ``weights.safetensors``, if there is one that can be, and return its SHA-256."""
    from safetensors import SafetensorError

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
