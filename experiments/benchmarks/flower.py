"""How fast one and the same Flower app runs: in fedsim, in Flower's own engine, and as plain loops beside them.

The app is ``flower_app``: FedAvg with plain PyTorch training. ``plain`` does the same arithmetic in a loop without
Flower, ``pool`` in a pool of two processes; ``fedsim`` runs the app as it does by default, ``fedsim-1`` in one
process, ``fedsim-2`` with two worker processes, and ``flwr`` in Flower's simulation engine on two cores, where
``flwr[simulation]`` is installed. Every repeat is a process of its own: ``startup_s`` is from its start to the first
round, imports included, and ``cpu_s`` the processor time of all its processes, from the start to the end. ``others``
says how many cores other programs took meanwhile: where they take one of two, two processes are no faster than one.
``overhead_us`` is the processor time that a message and its reply take in SimGrid when a ClientApp does nothing,
ClientApp included; ``overhead_single_us`` is the same where the server takes the replies one at a time, as an
asynchronous one does.

Images are random unless ``--mnist`` takes those in the data folder, of which each client has as many as there are.
What is printed is Markdown, as in ``experiments/README.md``; ``--json`` prints one JSON object as the last line.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

APP = Path(__file__).parent / "flower_app"
SETTING = "FEDSIM_FLOWER_BENCH"
TICKS = os.sysconf("SC_CLK_TCK")
CASES = {
    "lenet5": {"model": "lenet5", "clients": 100, "per_round": 10, "samples": 600},
    "mlp": {"model": "mlp", "clients": 1000, "per_round": 100, "samples": 60},
}


def main() -> None:
    given = arguments()
    if given.only:
        ENGINES[given.only]()
        return
    found: dict[str, Any] = {}
    for key, take in (("overhead_us", together), ("overhead_single_us", singly)):
        found[key] = spread([overhead_us(take) for _ in range(given.repeats)])
    both = show(found["overhead_us"]), show(found["overhead_single_us"])
    print(f"A message and its reply take {both[0]} µs of processor time in SimGrid when the server waits")
    print(f"for all of them, and {both[1]} µs when it takes them one at a time.")
    for name in given.cases:
        found[name] = {}
        # in turn, because a shared machine is busier now than then
        turns = [
            {one: measure(one, CASES[name], given) for one in engines(given)} for _ in range(given.repeats)
        ]
        for engine in engines(given):
            runs = [turn[engine] for turn in turns]
            found[name][engine] = {key: spread([run[key] for run in runs]) for key in runs[0]}
        print_table(name, found[name])
    if given.json:
        print(json.dumps({"rounds": given.rounds, "repeats": given.repeats, "mnist": given.mnist, **found}))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--samples", type=int, help="images of each client, where a case has another number")
    parser.add_argument("--mnist", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", choices=ENGINES, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.rounds < 2:
        parser.error("--rounds must be at least 2: the first one is measured apart")
    return given


def print_table(case: str, found: dict[str, dict[str, Any]]) -> None:
    """Print the seconds of a case's engines as a table."""
    print(f"\n{case}, seconds:\n")
    print("|", " | ".join(["engine", *COLUMNS.values()]), "|")
    print("|", " | ".join(["---"] * (1 + len(COLUMNS))), "|")
    for engine, measured in found.items():
        print("|", " | ".join([TITLES[engine], *(show(measured[key]) for key in COLUMNS)]), "|")


def engines(given: argparse.Namespace) -> list[str]:
    """Return what can be measured here; without Ray, Flower's own engine cannot."""
    return [name for name in given.engines if name != "flwr" or importlib.util.find_spec("ray")]


def measure(engine: str, case: dict[str, Any], given: argparse.Namespace) -> dict[str, float]:
    """Run a case once in a process of its own, and return its seconds."""
    with tempfile.TemporaryDirectory() as folder:
        case = {**case, "rounds": given.rounds, "folder": folder}
        case["samples"] = given.samples or case["samples"]
        write_images(case, given.mnist)
        env = {**os.environ, SETTING: json.dumps(case), "OMP_NUM_THREADS": "1", "FLWR_TELEMETRY_ENABLED": "0"}
        env["RAY_ADDRESS"] = "local"  # not a cluster that somebody else has here
        env["PYTHONPATH"] = os.pathsep.join(filter(None, (str(APP), env.get("PYTHONPATH"))))
        began = time.clock_gettime(time.CLOCK_REALTIME)
        command = [sys.executable, __file__, "--only", engine]
        with Used(folder) as used:
            done = subprocess.run(command, env=env, capture_output=True, text=True)
        marks = [float(line.split()[1]) for line in (Path(folder) / "marks").read_text().splitlines()]
        if done.returncode or len(marks) != given.rounds + 1:
            raise SystemExit(f"{engine}: {done.stderr}")
    rounds = [after - before for before, after in pairwise(marks)]
    return {
        "startup_s": marks[0] - began,
        "first_round_s": rounds[0],
        "round_s": statistics.median(rounds[1:]),
        "total_s": marks[-1] - began,
        "cpu_s": used.seconds,
        "others": used.others,
    }


class Used:
    """Adds up the processor time of all processes that have a text in their environment, whoever started them.

    It looks four times a second, on Linux alone; what a process does after the last look is missed. ``others`` is how
    many cores all other processes took meanwhile.
    """

    def __init__(self, text: str) -> None:
        self._text, self._own, self._ticks = text.encode(), {}, {}
        self._over, self._thread = threading.Event(), threading.Thread(target=self._watch)

    def __enter__(self) -> Used:
        self._began_s, self._busy = time.monotonic(), busy_ticks()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        taken = busy_ticks() - self._busy - sum(self._ticks.values())
        self.others = max(0.0, taken / TICKS / (time.monotonic() - self._began_s))

    @property
    def seconds(self) -> float:
        return sum(self._ticks.values()) / TICKS

    def _watch(self) -> None:
        while not self._over.wait(0.25):
            for place in Path("/proc").glob("[0-9]*"):
                with suppress(OSError):  # it has ended meanwhile
                    self._look(place)

    def _look(self, place: Path) -> None:
        if not self._own.get(place.name):  # its environment is its own only once it runs a program of its own
            self._own[place.name] = self._text in (place / "environ").read_bytes()
        if self._own[place.name]:
            fields = (place / "stat").read_text().rpartition(")")[2].split()
            self._ticks[place.name] = int(fields[11]) + int(fields[12])


def busy_ticks() -> int:
    """Return how long all cores of the machine have been at work since it started."""
    user, nice, system, _, _, *interrupts = Path("/proc/stat").read_text().splitlines()[0].split()[1:9]
    return sum(map(int, (user, nice, system, *interrupts)))


def write_images(case: dict[str, Any], mnist: bool) -> None:
    from fedsim.learn.data.datasets import mnist as read
    from fedsim.rng import stream

    if mnist:
        data = read(seed=0, test_share=0.01)
        case["samples"] = min(case["samples"], len(data.x) // case["clients"])
        x, y = data.x.numpy(), data.y.numpy()
    else:
        rng, count = stream(0, "bench images"), case["clients"] * case["samples"]
        x, y = rng.standard_normal((count, 1, 28, 28), np.float32), rng.integers(0, 10, count)
    np.save(Path(case["folder"]) / "x.npy", x)
    np.save(Path(case["folder"]) / "y.npy", y)


def plain() -> None:
    run_loop(map)


def pool() -> None:
    from bench_app import task

    _visit((task.make().state_dict(), 0, 0))  # what PyTorch imports then, the processes need not import each
    with multiprocessing.get_context("fork").Pool(2) as workers:
        run_loop(workers.imap)


def run_loop(each: Any) -> None:
    """FedAvg without Flower; clients hold equally many images."""
    from bench_app import task

    from fedsim.rng import stream

    case, state = task.case(), task.make().state_dict()
    task.mark("start")
    for round in range(1, case["rounds"] + 1):
        cohort = stream(0, "bench cohort", round=round).choice(
            case["clients"], case["per_round"], replace=False
        )
        trained = [result[0] for result in each(_visit, [(state, int(client), round) for client in cohort])]
        state = {name: sum(one[name] for one in trained) / len(trained) for name in state}
        task.mark("round")


def _visit(given: tuple[Any, int, int]) -> Any:
    from bench_app import task

    return task.train(*given)


def fedsim(workers: int | None = None) -> None:
    from fedsim.flower import run_app

    case = json.loads(os.environ[SETTING])
    with tempfile.TemporaryDirectory() as folder:
        app = Path(folder) / "app"
        shutil.copytree(APP, app)
        with (app / "pyproject.toml").open("a") as file:
            file.write("" if workers is None else f"\n[tool.fedsim]\nworkers = {workers}\n")
        run_app(app, nodes=case["clients"], overrides={"record.report": False}, out=folder)


def fedsim_1() -> None:
    fedsim(0)


def fedsim_2() -> None:
    fedsim(2)


def flwr() -> None:
    from bench_app import client_app, server_app
    from flwr.simulation import run_simulation

    case = json.loads(os.environ[SETTING])
    resources = {"client_resources": {"num_cpus": 1}, "init_args": {"num_cpus": 2}}
    run_simulation(server_app.app, client_app.app, case["clients"], backend_config=resources)


def overhead_us(take: Any, nodes: int = 100, rounds: int = 30) -> float:
    """Return the processor time of a message and its reply, when all that a client does is to answer."""
    from flwr.app import Context, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp

    from fedsim.flower import compat
    from fedsim.flower.apps.app import build
    from fedsim.flower.apps.client import AppClients
    from fedsim.flower.apps.project import Project
    from fedsim.flower.simulate.grid import SimGrid
    from fedsim.spec.app import App
    from fedsim.spec.experiment import load

    app = ClientApp()

    @app.train()
    def answer(message: Message, _: Context) -> Message:
        return Message(RecordDict({"metrics": MetricRecord({"num-examples": 1})}), reply_to=message)

    pace = {"distribution": "lognormal", "median": 1.0, "sigma": 0.5}  # so replies come one after another
    given = {"data": {"clients": nodes}, "devices": {"seconds_per_sample": pace}}
    world = build(load({**given, "strategy": "fedavg", "stop": {"rounds": 1}}))
    project = Project(Path(), "idle", "none:app", "none:app", {}, App())
    grid = SimGrid(world, AppClients(app, project, nodes, 0, world.clock))
    with compat.session(0, grid.server.id, grid.sleep):
        take(grid, nodes, 1)  # warms up
        began = time.process_time()
        take(grid, nodes, rounds)
        return (time.process_time() - began) / (rounds * nodes) * 1e6


def together(grid: Any, nodes: int, rounds: int) -> None:
    """Ask all nodes, and wait for all of them."""
    for round in range(rounds):
        asked = idle(round)
        replies = grid.send_and_receive([asked(node) for node in range(nodes)])
        assert len(replies) == nodes


def singly(grid: Any, nodes: int, rounds: int, at_work: int = 10) -> None:
    """Keep a few nodes at work, and take each reply when it comes."""
    waiting: set[str] = set()
    for sent in range(nodes * rounds):
        waiting.update(grid.push_messages([idle(sent)(sent % nodes)]))
        while len(waiting) == at_work:
            waiting -= {reply.metadata.reply_to_message_id for reply in grid.pull_messages(waiting)}


def idle(round: int) -> Any:
    """Return what makes messages of a round that share their content."""
    from flwr.app import ConfigRecord, Message, RecordDict

    content = RecordDict({"config": ConfigRecord({"server-round": round})})
    return lambda node: Message(content, node, "train")


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def show(value: dict[str, float]) -> str:
    digits = max(0, 2 - math.floor(math.log10(value["median"]))) if value["median"] else 0
    return "{median:.{0}f} [{min:.{0}f}-{max:.{0}f}]".format(digits, **value)


COLUMNS = {
    "startup_s": "start-up",
    "first_round_s": "first round",
    "round_s": "a later round",
    "total_s": "in all",
    "cpu_s": "of processor time",
    "others": "cores taken by others",
}
TITLES = {
    "plain": "plain loop",
    "pool": "pool of two processes",
    "fedsim": "fedsim",
    "fedsim-1": "fedsim, one process",
    "fedsim-2": "fedsim, two worker processes",
    "flwr": "Flower's simulation engine",
}
ENGINES = {
    "plain": plain,
    "pool": pool,
    "fedsim": fedsim,
    "fedsim-1": fedsim_1,
    "fedsim-2": fedsim_2,
    "flwr": flwr,
}

if __name__ == "__main__":
    main()
