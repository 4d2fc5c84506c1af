"""A data file that is not there or cannot be read is one line with its place, whoever reads it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

import fedsim
from fedsim.errors import ConfigError

# The key that names the file, the blocks around it, and how the file's name must end.
READERS = {
    "data.root": ({"data": {"name": "mnist", "clients": 3}}, ""),
    "data.root, emnist": ({"data": {"name": "emnist", "clients": 3}}, ""),
    "data.root, fashion": ({"data": {"name": "fashion-mnist", "clients": 3}}, ""),
    "data.root, cifar10": ({"data": {"name": "cifar10", "clients": 3}}, ""),
    "data.root, cifar100": ({"data": {"name": "cifar100", "clients": 3}}, ""),
    "data.root, noisy": ({"data": {"name": "noisy", "of": "mnist", "levels": [0.1], "clients": 3}}, ""),
    "data.path": ({"data": {"name": "arrays", "clients": 3}}, ".npz"),
    "data.path, csv": ({"data": {"name": "table", "label": "y", "clients": 3}}, ".csv"),
    "data.path, parquet": ({"data": {"name": "table", "label": "y", "clients": 3}}, ".parquet"),
    "data.path, folder": ({"data": {"name": "folder", "clients": 3}}, ""),
    "data.path, leaf": ({"data": {"name": "leaf", "of": "femnist", "clients": 3}}, ".json"),
    "data.path, tff": ({"data": {"name": "tff", "x": "x", "y": "y", "clients": 3}}, ".h5"),
    "data.path, ratings": ({"data": {"name": "ratings", "clients": 3}}, ".csv"),
    "data.path, plays": ({"data": {"name": "plays", "clients": 3}}, ".txt"),
    "topology.path": ({"topology": {"name": "file"}}, ".graphml"),
    "topology.path, backbone": ({"topology": {"name": "backbone"}}, ".gml"),
    "topology.path, edges": ({"topology": {"name": "file"}}, ".edges"),
    "network.latency_matrix": ({"network": {"latency_unit": "one_way"}}, ".csv"),
    "devices.trace": ({"devices": {}}, ".csv"),
    "devices.trace, json": ({"devices": {}}, ".json"),
    "churn.path": ({"churn": {"name": "trace"}}, ".csv"),
}
WRONG = ["absent", "folder", "link", "loop", "below", "long", "nul", "bytes", "empty"]


def wrong(kind: str, folder: Path, ending: str) -> str:
    """Return the path of something that is no such file."""
    path = folder / f"{kind}{ending}"
    if kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to(folder / "nothing")
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "below":  # a file where a folder should be
        (folder / "file").write_text("")
        path = folder / "file" / f"x{ending}"
    elif kind == "long":
        path = folder / ("n" * 300 + ending)
    elif kind == "nul":
        return f"{folder}/nul\0{ending}"
    elif kind in ("bytes", "empty"):
        path.write_bytes(b"\xff\xfe\x00," * (kind == "bytes"))
    return str(path)


@pytest.mark.parametrize("reader", READERS)
def test_no_traceback_and_no_long_story(reader, tmp_path, monkeypatch):
    monkeypatch.delenv("FEDSIM_DATA", raising=False)
    blocks, ending = READERS[reader]
    block, key = reader.partition(",")[0].split(".")
    for kind in WRONG:
        (tmp_path / kind).mkdir()
        file = tmp_path / kind / "e.yaml"
        given = {
            "data": {"clients": 3},
            "model": "softmax",
            "strategy": "dpsgd",
            "topology": "ring",
            **blocks,
        }
        given = {
            **given,
            "stop": {"rounds": 1},
            block: {**given.get(block, {}), key: wrong(kind, file.parent, ending)},
        }
        file.write_text(yaml.safe_dump(given))
        with pytest.raises(ConfigError) as caught:
            fedsim.check(file)
        (problem,) = caught.value.problems
        line = str(problem)
        assert line.startswith(f"{file}:"), line
        assert problem.key.startswith(block), line
        assert len(line) < 1200
        assert "\n" not in line


def test_a_message_is_never_a_whole_file(tmp_path):
    file = tmp_path / "e.yaml"
    long = "9" * 100_000
    for text in (
        f"a: {long}",
        f"{long}: 1",
        f"name: [{long}",
        f"data: {{clients: {'x' * 100_000}}}",
        f"topology: {'y' * 100_000}",
        "data: {" + ", ".join(f"k{n}: {n}" for n in range(3)) + f", clients: 1}}\nseed: {'z' * 100_000}",
    ):
        file.write_text(text)
        with pytest.raises(ConfigError) as caught:
            fedsim.check(file)
        assert all(len(line) < 3000 for line in str(caught.value).splitlines())


@pytest.mark.parametrize("block", ["data", "model", "topology", "strategy"])
def test_a_part_of_the_users_own_that_misses_a_file_is_one_line(tmp_path, block):
    (tmp_path / "mine.py").write_text("def part(*, path: str = 'absent.bin'):\n    return open(path)\n")
    given = {
        "data": {"clients": 3},
        "model": "softmax",
        "strategy": "dpsgd",
        "topology": "ring",
        "stop": {"rounds": 1},
    }
    given[block] = {"name": "mine:part", **(given[block] if block == "data" else {})}
    (tmp_path / "e.yaml").write_text(yaml.safe_dump(given))
    with pytest.raises(ConfigError) as caught:
        fedsim.check(tmp_path / "e.yaml")
    (problem,) = caught.value.problems
    where = f"{tmp_path / 'mine.py'}:2"
    why = "[Errno 2] No such file or directory: 'absent.bin'"
    assert str(problem).endswith(f"mine:part: cannot read or write a file at {where} ({why})")
    assert str(problem).startswith(f"{tmp_path / 'e.yaml'}:")


def test_every_part_that_reads_files_is_here():
    """Parts with a path or a root are those above; a new one belongs there, too."""
    from fedsim import parts

    reads = {
        f"{kind}.{name}"
        for kind in parts.KINDS
        for name in parts.names(kind)
        if {"path", "root", "file"} & set(parts.parameters(parts.find(kind, name)))
    }
    datasets = {"mnist", "fashion-mnist", "emnist", "cifar10", "cifar100", "noisy"}
    datasets |= {"arrays", "table", "folder", "leaf", "tff", "ratings", "plays"}
    datasets |= {"huggingface", "torchvision"}  # whose libraries need not be there; see test_libraries.py
    assert reads == {f"datasets.{name}" for name in datasets} | {
        "topologies.file",
        "topologies.backbone",
        "churn.trace",
    }
