"""Who may know whom: the plan of the house, as rules that a change cannot break unnoticed."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import networkx as nx
import pytest

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "simpy", "flwr", "networkx", "matplotlib", "sklearn", "pandas"}

GROUND = {
    "errors",
    "scalars",
    "rng",
    "parts",
    "version",
    "rules",
    "ranges",
    "signatures",
    "places",
    "machine",
    "beside",
    "logs",
    "pulse",
    "start",
    "chosen",
}
LOWER = {"ground": set[str]()}
LOWER["spec"] = {"ground"}
LOWER["world"] = LOWER["learn"] = {"ground", "spec"}
LOWER["record"] = {"ground", "spec"}
LOWER["methods"] = {"ground", "spec", "world", "learn"}
LOWER["running"] = LOWER["methods"] | {"methods", "record"}
LOWER["flower"] = LOWER["running"] | {"running"}
LOWER["study"] = {"ground", "spec", "record"}
LOWER["trackers"] = LOWER["running"] | {"running"}
LOWER["inspection"] = LOWER["running"] | {"running"}
LOWER["api"] = LOWER["inspection"] | {"inspection", "study"}
LOWER["studies"] = LOWER["api"] | {"api"}
LOWER["cli"] = LOWER["flower"] | {"flower", "study", "api", "studies"}
LOWER["testing"] = LOWER["flower"] | {"flower"}
LOWER["topologies"] = {"ground", "spec", "world"}
LOWER["strategies"] = {"ground", "spec", "world", "learn", "methods", "topologies", "flower.face"}
"""Which rooms each room may import besides itself."""

NEVER = {
    "ground": HEAVY,
    "spec": HEAVY,
    "world": {"torch", "flwr"},
    "learn": {"simpy", "flwr"},
    "methods": {"flwr"},
    "record": {"torch", "simpy", "flwr"},
    "running": {"flwr"},
    "study": {"torch", "simpy", "flwr", "networkx"},
    "trackers": {"simpy", "flwr", "networkx"},
    "inspection": HEAVY,
    "api": HEAVY,
    "studies": HEAVY,
    "cli": {"flwr"},
    "topologies": {"torch", "simpy", "flwr"},
    "strategies": {"flwr"},
}
"""Which libraries each room never imports: flwr is imported in ``flower/`` alone."""

INSIDE = 10
"""How many imports may stand inside functions; each says in a comment what it keeps out of start-up."""


def room(module: str) -> str | None:
    """Return the room that a module of ours belongs to; None for the package's own face."""
    first, _, rest = module.partition(".")
    if first in ("strategies", "topologies"):
        return first
    name = rest.partition(".")[0]
    if first != "fedsim" or name in ("", "__main__"):
        return None
    return "ground" if name in GROUND else name


def imports(tree: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    """Yield every import of a file with the modules that it names, also inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from ((node, f"{node.module}.{alias.name}") for alias in node.names)


def broken(module: str, source: str) -> list[str]:
    """Return the imports of a module that the plan forbids."""
    own, wrong = room(module), []
    for _, name in imports(ast.parse(source)):
        library, other = name.partition(".")[0], room(name)
        if own is None or own not in LOWER:
            continue
        if (
            library in NEVER.get(own, ())
            or library in ("tests", "experiments")
            or (library == "fedsim" and other is None and name != "fedsim.version")
        ):
            wrong.append(name)
        elif other is not None and other != own and other not in LOWER[own]:
            face = other == "flower" and "flower.face" in LOWER[own] and name.startswith("fedsim.flower.face")
            wrong += [] if face else [name]
    return wrong


def modules() -> Iterator[tuple[str, str]]:
    """Yield name and source of every module of ours."""
    for package in ("fedsim", "strategies", "topologies"):
        for file in sorted((ROOT / package).rglob("*.py")):
            parts = file.relative_to(ROOT).with_suffix("").parts
            yield ".".join(parts).removesuffix(".__init__"), file.read_text(encoding="utf-8")


def test_every_module_has_a_room() -> None:
    known = {*LOWER, None}
    assert {name: room(name) for name, _ in modules() if room(name) not in known} == {}


def test_imports_go_one_way() -> None:
    found = {name: broken(name, source) for name, source in modules()}
    assert {name: wrong for name, wrong in found.items() if wrong} == {}


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("fedsim.errors", "from fedsim.spec.blocks import Block"),
        ("fedsim.rng", "import torch"),
        ("fedsim.spec.experiment", "from fedsim.learn.local import LocalSGD"),
        ("fedsim.spec.local", "import networkx as nx"),
        ("fedsim.world.node", "from torch import Tensor"),
        ("fedsim.world.net.network", "from fedsim.learn.deferred import Deferred"),
        ("fedsim.learn.task", "import simpy"),
        ("fedsim.learn.engines.base", "from fedsim.world.clock import Clock"),
        ("fedsim.record.store", "from fedsim.running.observer import Observer"),
        ("fedsim.record.report", "import torch"),
        ("fedsim.methods.rounds", "from flwr.app import Message"),
        ("fedsim.methods.peer", "from fedsim.running.peers import PeerRun"),
        ("fedsim.running.build", "from fedsim.flower.simulate.build import maker"),
        ("fedsim.running.run", "import flwr"),
        ("fedsim.study.sweep", "from fedsim.api import run"),
        ("fedsim.study.results", "import torch"),
        ("fedsim.flower.face", "from fedsim.api import run"),
        ("fedsim.flower.compat", "import fedsim.cli.app"),
        ("fedsim.api", "import torch"),
        ("fedsim.api", "from fedsim.cli import show"),
        ("fedsim.cli.app", "import flwr"),
        ("topologies.graphs", "from fedsim.learn.data import datasets"),
        ("topologies.graphs", "from strategies.peer.dpsgd import DPSGD"),
        ("strategies.server.fedavg", "from fedsim.running.run import run_setup"),
        ("strategies.server.fedavg", "from fedsim.flower.simulate.grid import SimGrid"),
        ("strategies.server.fedavg", "import flwr"),
        ("fedsim.world.world", "from topologies.graphs import ring"),
        ("fedsim.learn.local", "import tests"),
        ("fedsim.methods.rounds", "from fedsim import run"),
    ],
)
@pytest.mark.parametrize("inside", [False, True])
def test_each_rule_would_notice(module: str, line: str, inside: bool) -> None:
    source = f"def hidden():\n    {line}\n" if inside else f"{line}\n"
    assert broken(module, source)


def test_what_the_plan_allows_is_allowed() -> None:
    assert not broken("strategies.fedamd.fedamd", "from fedsim.flower.face import FlowerFace")
    assert not broken("fedsim.running.run", "from fedsim.world.world import World\nimport torch")
    assert not broken("fedsim.world.clock", "import simpy")


def test_no_module_needs_itself() -> None:
    sources = dict(modules())
    graph: nx.DiGraph[str] = nx.DiGraph()
    for name, source in sources.items():
        for _, other in imports(ast.parse(source)):
            found = other if other in sources else other.rpartition(".")[0]
            if found in sources and found != name:
                graph.add_edge(name, found)
    assert [sorted(circle) for circle in nx.strongly_connected_components(graph) if len(circle) > 1] == []


def test_imports_inside_functions_are_few_and_say_why() -> None:
    found = []
    for name, source in modules():
        lines = source.splitlines()
        for function in ast.walk(ast.parse(source)):
            if isinstance(function, ast.FunctionDef):
                inner = {node.lineno for node, _ in imports(function)}
                found += [(name, lines[line - 1]) for line in sorted(inner)]
    assert len(found) <= INSIDE
    assert [(name, line) for name, line in found if "#" not in line] == []


def loads(code: str) -> set[str]:
    """Return the top-level modules that a fresh interpreter has loaded after some code."""
    show = f"{code}\nimport sys\nprint(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", show], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.split())


def test_peer_strategies_run_without_flower() -> None:
    run = (
        "import fedsim, tempfile\n"
        "experiment = {'data': {'clients': 3}, 'model': 'softmax', 'strategy': 'dpsgd', 'topology': 'ring',\n"
        "              'stop': {'rounds': 1}, 'record': {'report': False}}\n"
        "with tempfile.TemporaryDirectory() as out: fedsim.run(experiment, out=out)"
    )
    found = loads(run)
    assert "torch" in found
    assert "simpy" in found
    assert "flwr" not in found


def test_the_event_plane_loads_no_torch() -> None:
    found = loads("import fedsim.world.world, fedsim.world.faults.nodes, fedsim.world.churn")
    assert "simpy" in found
    assert not found & {"torch", "flwr"}


def test_importing_fedsim_is_cheap() -> None:
    heavy = {"torch", "flwr", "simpy", "matplotlib", "sklearn", "jinja2"}
    assert not loads("import fedsim, fedsim.cli.app") & heavy
