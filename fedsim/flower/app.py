"""Runs a user's unmodified Flower app in simulated time."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from fedsim import api
from fedsim.config import Experiment, load
from fedsim.errors import MISSING, ConfigError, Problem, RunError
from fedsim.flower import compat
from fedsim.flower.appclient import EXAMPLES, AppClients, examples, worker_pool
from fedsim.flower.grid import SimGrid, TimeUp
from fedsim.flower.instruction import Watch, round_of
from fedsim.flower.project import Project, importable, load_client, load_server, read_project
from fedsim.progress import Progress
from fedsim.record.store import WIDE, Record
from fedsim.world import world as worlds
from fedsim.world.world import World
from fedsim.yamlfile import read

FOREIGN = ("data", "model", "strategy", "evaluate", "compute.engine", "stop.rounds", "stop.target")
"""What an app brings itself, so that a world cannot choose it."""
ENDLESS = 10**9


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

    project = read_project(path, run_config)
    experiment = read_world(project, nodes, world, overrides or {})
    with limited(experiment.compute.threads), importable(project.root):
        client, place = load_client(project), build(experiment)
        folder = api.make_folder(Path(out), experiment, False)
        try:
            return _run(project, experiment, place, client, folder, progress)
        except RunError as error:
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
        "name": _plain(project.name),
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
    return "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in name)


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
    experiment: Experiment,
    world: World,
    client: ClientApp,
    folder: Path,
    progress: Callable[[Progress], None] | None,
) -> api.Result:
    from fedsim.setup import describe_world

    with Record(folder) as record, worker_pool(project) as pool:
        for table, rows in describe_world(world).items():
            record.write(table, rows)
        api.record_events(world, record, experiment.record.events)
        journal = Journal(experiment, world, record, progress)
        clients = AppClients(client, project, len(world.members), experiment.seed, world.clock, pool)
        watches = [clients, journal]
        limits = experiment.network.detect_s, experiment.stop.sim_time_s
        journal.grid = grid = SimGrid(world, clients, *limits, watches=watches)
        try:
            _drive(project, experiment, grid, journal)
        finally:
            journal.end_round()
            api.record_totals(world, record)
    summary = {**journal.summary(), **api.costs(world), "engine": "flower"}
    summary["event_hash"] = world.log.hexdigest()
    summary["weights_hash"] = save_weights(journal.arrays, folder)
    marks = f"{summary['event_hash']}{summary['weights_hash']}"
    summary["run_hash"] = hashlib.sha256(marks.encode()).hexdigest()
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    if experiment.record.report:
        api.report(folder)
    return api.Result(folder, summary)


def _drive(project: Project, experiment: Experiment, grid: SimGrid, journal: Journal) -> None:
    """Let the ServerApp run until it returns, or until the simulated time is over."""
    try:
        with (
            compat.session(experiment.seed, grid.server.id, grid.sleep),
            compat.slow_time(grid.pause),
            compat.observed(journal.take, journal.measure),
            compat.together(grid, grid.sleep),
        ):
            server: ServerApp = load_server(project)
            server(grid, compat.make_context(grid.server.id, {}, dict(project.run_config)))
    except TimeUp:
        pass
    except (RunError, ConfigError):
        raise
    except Exception as error:
        reason = f"the ServerApp raised {type(error).__name__}: {error}{odd_reply(journal.replies)}"
        raise RunError(reason, grid.server.id, journal.round, grid.world.clock.now_s, "server") from error


class Journal(Watch):
    """Writes down an app's rounds and metrics as they show in its messages.

    A round is what the messages' configuration calls ``server-round`` (or, with Flower's former API, their group);
    messages that name no round open one whenever the server trains again.

    Args:
        experiment: whose run it is.
        world: counts bytes and work.
        record: where everything is written.
        progress: called after every round, or None.
    """

    grid: SimGrid

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
        self._last: dict[str, float] = {}
        self._best: float | None = None
        self._began = time.perf_counter()

    def sent(self, messages: Sequence[Message]) -> None:
        """Open the round that the messages belong to."""
        number = _round(messages[0])
        if number < 0 and messages[0].metadata.message_type.startswith(MessageType.TRAIN):
            number = self.round + 1
        if number > self.round:
            if self.round:
                self.end_round()
            self.round = number

    def pulled(self, replies: Sequence[Message]) -> None:
        """Write down the means of what the clients report."""
        self.replies = replies
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
            "metrics": self._last,
        }

    def _metric(self, name: str, value: float, round: int | None = None) -> None:
        name = f"app_{name}" if name in WIDE else name  # an app may call its numbers as it likes
        self._last[name] = value
        if name == "accuracy":
            self._best = max(value, self._best or 0.0)
        self._record.metric(self.round if round is None else round, self._world.clock.now, name, value)


def _round(message: Message) -> int:
    named, group = round_of(message.content), message.metadata.group_id
    return int(group) if named < 0 and group.isdecimal() else named


def means(contents: Sequence[RecordDict]) -> dict[str, float]:
    """Return the mean of every number that clients report, weighted by their examples.

    Args:
        contents: the replies; clients that do not say how many examples they have used count alike.

    >>> one, two = ({"num-examples": 10, "loss": 1.0}, {"num-examples": 30, "loss": 2.0})
    >>> means([RecordDict({"metrics": MetricRecord(numbers)}) for numbers in (one, two)])
    {'loss': 1.75}
    """
    weights = [examples(content) for content in contents]
    if not all(weights):
        weights = [1] * len(contents)
    found: dict[str, list[tuple[float, int]]] = {}
    for content, weight in zip(contents, weights, strict=True):
        for name, value in _numbers(content).items():
            found.setdefault(name, []).append((value, weight))
    return {
        name: math.fsum(value * weight for value, weight in pairs) / sum(weight for _, weight in pairs)
        for name, pairs in found.items()
    }


def _numbers(content: RecordDict) -> dict[str, float]:
    """Return the numbers that a reply reports; Flower's former API sends metrics as a configuration."""
    return {
        key: float(value)
        for name, record in content.items()
        if isinstance(record, MetricRecord)
        or (isinstance(record, ConfigRecord) and name.endswith(".metrics"))
        for key, value in record.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and key not in EXAMPLES
    }


def odd_reply(replies: Sequence[Message]) -> str:
    """Return a remark on the first reply whose arrays differ in name or shape from the others', or nothing."""
    shapes = {
        reply.metadata.src_node_id: {
            f"{name}.{key}": tuple(array.shape)
            for name, record in reply.content.array_records.items()
            for key, array in record.items()
        }
        for reply in replies
        if reply.has_content()
    }
    usual = max(shapes.values(), key=lambda one: (len(one), list(shapes.values()).count(one)), default={})
    odd = next((node for node in sorted(shapes) if shapes[node] != usual), None)
    if odd is None:
        return ""
    return f"; client {odd} has replied with the arrays {shapes[odd]}, others with {usual}"


def save_weights(arrays: ArrayRecord | None, folder: Path) -> str | None:
    """Write a server's model as ``weights.safetensors``, if there is one, and return its SHA-256."""
    from safetensors.numpy import save_file

    if arrays is None:
        return None
    tensors = {name: array.numpy() for name, array in arrays.items()}
    order = json.dumps(list(tensors))
    save_file(tensors, folder / "weights.safetensors", metadata={"parameters": order})
    return hashlib.sha256(b"".join(array.tobytes() for array in tensors.values())).hexdigest()
