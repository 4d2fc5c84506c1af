"""Who may know whom: the rules that keep the two planes apart."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

NEVER = [
    ("fedsim/world", {"torch", "flwr", "fedsim.learn", "fedsim.flower", "fedsim.record"}),
    ("fedsim/learn", {"simpy", "flwr", "fedsim.world", "fedsim.flower", "fedsim.record"}),
    ("fedsim/record", {"torch", "simpy", "flwr", "fedsim.world", "fedsim.learn"}),
    ("fedsim", {"strategies", "topologies", "tests", "experiments"}),
    ("strategies", {"tests", "experiments"}),
    ("topologies", {"tests", "experiments", "strategies", "torch", "flwr", "simpy"}),
]


def imported(file: Path) -> set[str]:
    """Return the modules that a file imports anywhere, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def breaks(module: str, banned: set[str]) -> bool:
    return any(module == name or module.startswith(name + ".") for name in banned)


@pytest.mark.parametrize(("folder", "banned"), NEVER, ids=[folder for folder, _ in NEVER])
def test_a_room_never_imports(folder: str, banned: set[str]) -> None:
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files, folder
    wrong = {
        str(file.relative_to(ROOT)): name for file in files for name in imported(file) if breaks(name, banned)
    }
    assert not wrong


def test_the_command_line_knows_only_the_api() -> None:
    own = {name for name in imported(ROOT / "fedsim" / "cli" / "app.py") if name.startswith("fedsim")}
    allowed = {"fedsim", "fedsim.api", "fedsim.cli", "fedsim.errors", "fedsim.version"}
    assert {name for name in own if name not in allowed and name.rpartition(".")[0] not in allowed} == set()


def test_the_rules_would_notice() -> None:
    assert breaks("torch.nn", {"torch"})
    assert not breaks("torchvision", {"torch"})
    assert "fedsim.world.clock.Clock" in imported(ROOT / "fedsim" / "world" / "log.py")


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
    modules = loads(run)
    assert "torch" in modules
    assert "simpy" in modules
    assert "flwr" not in modules


def test_the_event_plane_loads_no_torch() -> None:
    modules = loads("import fedsim.world.world, fedsim.world.faults.nodes, fedsim.world.churn")
    assert "simpy" in modules
    assert not modules & {"torch", "flwr"}


def test_importing_fedsim_is_cheap() -> None:
    assert not loads("import fedsim, fedsim.cli.app") & {"torch", "flwr", "simpy", "matplotlib", "sklearn"}
