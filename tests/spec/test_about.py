"""What the command line says of one part."""

from __future__ import annotations

import pytest
import yaml
from typer.testing import CliRunner

from fedsim import parts
from fedsim.cli.app import app
from fedsim.errors import BadValue
from fedsim.ranges import Count, Positive, Share
from fedsim.spec import about
from fedsim.spec.reference import made

EVERY = [(kind, name) for kind in about.BLOCKS for name in parts.names(kind)]


def said(*words):
    result = CliRunner().invoke(app, ["list", *words])
    return result.exit_code, result.output


def test_every_kind_has_its_place():
    assert set(about.BLOCKS) == set(parts.KINDS)


@pytest.mark.parametrize("kind", parts.KINDS)
def test_every_part_is_printed(kind):
    for name in parts.names(kind):
        code, text = said(kind, name)
        assert (code, text.partition(":")[0]) == (0, name)


@pytest.mark.parametrize("kind", about.BLOCKS)
def test_every_parameter_of_ours_has_a_meaning_and_a_kind(kind):
    for name in parts.names(kind):
        if parts.find(kind, name).__module__.startswith("flwr."):
            continue  # Flower documents its strategies in a form of its own
        for one in about.parameters(kind, name):
            assert one.meaning, (kind, name, one.name)
            assert one.what, (kind, name, one.name)


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_every_example_is_what_the_part_takes(kind, name):
    block = yaml.safe_load(about.example(kind, name))
    for step in about.BLOCKS[kind]:
        block = block[0 if step is None else step]
    block = {"name": block} if isinstance(block, str) else block
    assert block.pop("name") == name
    block.pop("clients", None)
    part = made(kind, name)
    supplied = {key: None for key in parts.parameters(part) if key not in block}
    parts.check(part, block, supplied)


def test_a_part_as_it_is_printed():
    code, text = said("topologies", "topohub")
    assert code == 0
    assert "topohub: Return a real network from the package topohub with clients at its sites" in text
    assert "  key: text; required\n      family and name, such as topozoo/Abilene" in text
    assert "  spread: even or random or links or population; default even\n" in text
    assert "  access_ms: a number of at least 0, in milliseconds; default 0.0\n" in text
    assert "topology:\n    name: topohub\n    key: KEY" in text


def test_ranges_are_said():
    assert about.kind_of(Share) == "a number from 0 to 1"
    assert about.kind_of(Positive) == "a number above 0"
    assert about.kind_of(list[Count] | int) == "a list, each a whole number of at least 1 or a whole number"
    assert about.parameters("partitions", "natural")[0].what == "merge or choose or largest or null"
    assert said("partitions", "iid")[1].count("no parameters") == 1


def test_a_part_that_is_not_there_is_one_line():
    code, text = said("topologies", "rign")
    assert (code, text) == (2, "list topologies: rign: no such topology; did you mean ring?\n")
    assert said("topology", "ring")[0] == 2
    with pytest.raises(BadValue):
        about.parameters("models", "nothing")
