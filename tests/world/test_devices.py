from __future__ import annotations

import networkx as nx
import numpy as np
import pytest

from fedsim import rng
from fedsim.spec.blocks import Constant, Lognormal, Uniform
from fedsim.world.devices import speeds


@pytest.mark.parametrize(
    ("seconds", "picos"),
    [(0.001, 10**9), (1, 10**12), (0.1, 10**11), (1e-12, 1), (2.5e-7, 250_000), (3e-6, 3_000_000)],
)
def test_a_constant_pace_in_picoseconds(seconds, picos):
    assert speeds(Constant(value=seconds), 3, rng.stream(0, "devices")) == [picos] * 3


def test_paces_are_plain_integers_within_the_distribution():
    draw = Uniform(distribution="uniform", low=0.001, high=0.002)
    paces = speeds(draw, 200, rng.stream(3, "devices"))
    assert {type(pace) for pace in paces} == {int}
    assert 10**9 <= min(paces) < max(paces) <= 2 * 10**9
    assert len(set(paces)) == 200


def test_paces_depend_on_the_stream_alone():
    draw = Lognormal(distribution="lognormal", median=0.01, sigma=1.0)
    first = speeds(draw, 50, rng.stream(3, "devices"))
    assert first == speeds(draw, 50, rng.stream(3, "devices"))
    assert first != speeds(draw, 50, rng.stream(4, "devices"))
    # The median of 50 lognormal numbers: standard error about 1.25 / sqrt(50) = 0.18 of the logarithm.
    assert abs(np.log(np.median(first) / 1e10)) < 4 * 0.18


def test_nobody_has_no_pace():
    assert speeds(Constant(value=1), 0, rng.stream(0, "devices")) == []


def test_every_node_of_a_world_has_its_own_pace(make):
    pace = {"distribution": "uniform", "low": 0.001, "high": 0.01}
    world = make(nx.star_graph(4), server=True, seed=9, devices={"seconds_per_sample": pace})
    paces = [node.ps_per_sample for node in world.nodes]
    draw = Uniform(distribution="uniform", low=0.001, high=0.01)
    assert paces == [*speeds(draw, 4, rng.stream(9, "devices")), 0]  # the server does not compute


def test_one_more_node_does_not_change_the_others_pace(make):
    pace = {"seconds_per_sample": {"distribution": "lognormal", "median": 0.01, "sigma": 0.5}}
    few, more = (make(nx.path_graph(n), seed=2, devices=pace) for n in (4, 6))
    assert [n.ps_per_sample for n in few.nodes] == [n.ps_per_sample for n in more.nodes][:4]
