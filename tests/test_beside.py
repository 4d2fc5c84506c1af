"""Modules beside an experiment file: found from everywhere, after what is installed, and by nobody else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import fedsim
from fedsim import parts
from fedsim.beside import own_name, place
from fedsim.errors import BadValue, ConfigError

NET = """
from torch import nn
from helpers import WIDTH
import helpers

def Net(*, shape: tuple[int, ...], classes: int) -> nn.Module:
    'A small net.'
    import helpers as again  # when it is called, and not when it is imported
    assert again is helpers
    return nn.Sequential(nn.Flatten(), nn.Linear(64, WIDTH), nn.ReLU(), nn.Linear(WIDTH, classes))
"""
FILE = """
data: {clients: 2}
model: mymodel:Net
strategy: {name: dpsgd, local: {steps: 1}}
topology: ring
stop: {rounds: 1}
record: {report: false}
"""
SHADOWS = ("queue", "statistics", "torch", "typer", "numpy", "random", "tensorboard", "simpy", "socketserver")


def lab(folder: Path, width: int = 3, text: str = FILE) -> Path:
    """Make a folder with an experiment, a model and its sibling, and return the experiment."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mymodel.py").write_text(NET)
    (folder / "helpers.py").write_text(f"WIDTH = {width}\n")
    (folder / "e.yaml").write_text(text)
    return folder / "e.yaml"


def weights(width: int) -> int:
    """Return how many weights the model of :data:`NET` has: 64 inputs, 10 classes, biases."""
    return 64 * width + width + width * 10 + 10


def size(experiment: Path, out: Path) -> int:
    return sum(array.size for array in fedsim.run(experiment, out=out).weights().values())


def fedsim_in(folder: Path, *words: str, program: tuple[str, ...] = (sys.executable, "-m", "fedsim")):
    return subprocess.run([*program, *words], cwd=folder, capture_output=True, text=True, check=False)


def test_a_model_beside_the_file_is_found_with_its_sibling_from_everywhere(tmp_path, monkeypatch):
    experiment = lab(tmp_path / "lab")
    before = list(sys.path)
    for start in (tmp_path, tmp_path / "lab", Path("/")):
        monkeypatch.chdir(start)
        relative = Path(os.path.relpath(experiment, start))
        assert size(relative, tmp_path / "runs") == weights(3)
    assert sys.path == before
    assert not {"mymodel", "helpers"} & set(sys.modules)


def test_equally_named_modules_of_two_folders_are_two(tmp_path, monkeypatch):
    one, two = lab(tmp_path / "one", 3), lab(tmp_path / "two", 5)
    monkeypatch.chdir(tmp_path / "one")
    monkeypatch.syspath_prepend("")  # as in a notebook, which imports from the current folder
    assert [size(file, tmp_path / "runs") for file in (one, two, one)] == [weights(3), weights(5), weights(3)]
    build = [fedsim.load(file).find("models", "mymodel:Net") for file in (one, two)]
    found = [sum(p.numel() for p in net(shape=(1, 8, 8), classes=10).parameters()) for net in build]
    assert found == [weights(3), weights(5)]


def test_a_module_that_the_user_has_imported_is_shared_but_not_with_another_folder(tmp_path, monkeypatch):
    one, two = lab(tmp_path / "one", 3), lab(tmp_path / "two", 5)
    monkeypatch.chdir(tmp_path / "one")
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    import mymodel

    try:
        assert fedsim.load(one).find("models", "mymodel:Net") is mymodel.Net
        monkeypatch.chdir(tmp_path / "two")
        net = fedsim.load(two).find("models", "mymodel:Net")(shape=(1, 8, 8), classes=10)
        assert sum(p.numel() for p in net.parameters()) == weights(5)
    finally:
        for name in ("mymodel", "helpers"):
            sys.modules.pop(name, None)


def test_the_current_folder_comes_after_that_of_the_file(tmp_path, monkeypatch):
    experiment = lab(tmp_path / "lab", 3)
    (tmp_path / "helpers.py").write_text("WIDTH = 7\n")
    (tmp_path / "others.py").write_text(
        "from helpers import WIDTH\nimport mymodel\ndef ring(n): return WIDTH\n"
    )
    monkeypatch.chdir(tmp_path)
    found = fedsim.load(experiment)
    assert found.find("topologies", "others:ring")(4) == 3
    assert parts.find("topologies", "others:ring", tmp_path / "lab")(4) == 3
    with pytest.raises(BadValue, match=r"No module named 'mymodel', others\.py:2"):
        parts.find("topologies", "others:ring")


def test_packages_work_with_absolute_and_relative_imports(tmp_path):
    package = tmp_path / "my_lab" / "nets"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").write_text("")
    (package / "__init__.py").write_text("")
    (package / "sizes.py").write_text("WIDTH = 4\n")
    (package / "wide.py").write_text(
        "from . import sizes\nfrom .sizes import WIDTH\nimport my_lab.nets.sizes as same\n"
        "from my_lab.nets import sizes as too\nimport my_lab.nets.sizes\n"
        "assert same is sizes is too is my_lab.nets.sizes\n"
        "def ring(n): return WIDTH * n\n"
    )
    assert parts.find("topologies", "my_lab.nets.wide:ring", tmp_path)(2) == 8
    assert parts.find("topologies", "my_lab.nets.wide.ring", tmp_path)(2) == 8
    assert "my_lab" not in sys.modules


@pytest.mark.parametrize(
    "program", [(sys.executable, "-m", "fedsim"), (str(Path(sys.executable).parent / "fedsim"),)]
)
def test_no_library_is_shadowed(tmp_path, program):
    if not Path(program[0]).exists():
        pytest.skip("the console script is not installed")
    experiment = lab(tmp_path)
    for name in SHADOWS:
        (tmp_path / f"{name}.py").write_text(f"raise RuntimeError('{name} was imported')\n")
    done = fedsim_in(tmp_path, "run", experiment.name, "--quiet", "--timing-only", program=program)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_is_installed_comes_first_and_says_so(tmp_path, caplog):
    (tmp_path / "queue.py").write_text("def Net(): ...\n")
    with pytest.raises(BadValue) as caught:
        parts.find("models", "queue:Net", tmp_path)
    assert caught.value.hint == (
        f"queue is installed, which comes before {tmp_path / 'queue.py'}; rename that file"
    )
    (tmp_path / "json.py").write_text("def loads(): ...\n")
    import json

    assert parts.find("models", "json:loads", tmp_path) is json.loads
    assert f"json:loads: the installed json is used, and not {tmp_path / 'json.py'}" in caplog.text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import nothing_of_that_name\n", "No module named 'nothing_of_that_name', broken.py:1"),
        ("\n\nraise SystemExit(0)\n", "SystemExit: 0, broken.py:3"),
        ("x = 1 / 0\n", "ZeroDivisionError: division by zero, broken.py:1"),
        ("def f(:\n", "SyntaxError: invalid syntax (broken.py, line 1)"),
        ("y = 1\n", "module 'broken' has no attribute 'f'"),
        ("import broken.inner\n", "No module named 'broken.inner'; 'broken' is not a package, broken.py:1"),
    ],
)
def test_a_module_that_breaks_is_one_line_with_its_place(tmp_path, text, reason):
    experiment = lab(tmp_path, text=FILE.replace("mymodel:Net", "broken:f"))
    (tmp_path / "broken.py").write_text(text)
    with pytest.raises(ConfigError) as caught:
        fedsim.check(experiment)
    line = str(caught.value)
    assert line.startswith(f"{experiment}:3: model: broken:f: cannot be imported ({reason})"), line
    assert "\n" not in line


def test_a_module_that_is_nowhere_names_the_places(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadValue) as caught:
        parts.find("models", "no_such_module:f", tmp_path / "lab")
    assert caught.value.hint.startswith(f"it was looked up in {tmp_path / 'lab'} and {tmp_path};")


def test_a_module_that_is_mended_is_found(tmp_path):
    with pytest.raises(BadValue):
        parts.find("models", "late_module:f", tmp_path)
    (tmp_path / "late_module.py").write_text("def f(): return 3\n")
    assert parts.find("models", "late_module:f", tmp_path)() == 3


def test_a_dataset_around_one_that_lies_beside_finds_it(tmp_path):
    (tmp_path / "mydata.py").write_text(
        "from fedsim.learn.data.datasets import digits\ndef load(*, seed: int): return digits(seed=3)\n"
    )
    text = FILE.replace("{clients: 2}", "{name: noisy, of: 'mydata:load', levels: [0.1], clients: 2}")
    assert fedsim.check(lab(tmp_path, text=text)).data.name == "noisy"


def test_a_kept_experiment_starts_again_from_its_own_folder(tmp_path, monkeypatch):
    first = fedsim.run(lab(tmp_path / "lab"), out=tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    again = fedsim.run(first.path / "experiment.yaml", out=tmp_path / "runs")
    assert again.summary["run_hash"] == first.summary["run_hash"]
    assert again.path.name == f"{first.path.name}-2"  # the same experiment, wherever its parts lie
    assert fedsim.load(first.path / "experiment.yaml").beside == str(tmp_path / "lab")


def test_another_folder_can_be_named(tmp_path):
    lab(tmp_path / "lab")
    (tmp_path / "e.yaml").write_text(FILE + "beside: lab\n")
    fedsim.check(tmp_path / "e.yaml")
    (tmp_path / "e.yaml").write_text(FILE + "beside: lba\n")
    with pytest.raises(ConfigError, match=r"e.yaml:8: beside: lba: there is no such folder"):
        fedsim.load(tmp_path / "e.yaml")
    experiment = {"data": {"clients": 2}, "model": "mymodel:Net", "strategy": "dpsgd", "topology": "ring"}
    fedsim.check({**experiment, "stop": {"rounds": 1}, "beside": str(tmp_path / "lab")})


def test_places_are_of_folders_and_their_names_are_hidden(tmp_path):
    assert place(tmp_path) is place(str(tmp_path) + "/.")
    assert place(tmp_path) is not place()
    assert own_name(f"{place(tmp_path).name}.a.b is {place().name}.c") == "a.b is c"
