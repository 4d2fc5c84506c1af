"""Topologies: who is linked to whom, and how much neighbours weigh.

A topology is a function ``name(n, …, *, seed)`` that returns an undirected, connected graph over the nodes
0 … n-1. Any installed package, or a dotted path to a user's own file, adds more.
"""

from __future__ import annotations

from topologies.files import file
from topologies.graphs import (
    complete,
    erdos_renyi,
    exponential,
    random_regular,
    require_connected,
    ring,
    small_world,
    star,
    torus,
)
from topologies.mixing import metropolis_hastings, neighbour_weights, spectral_gap

__all__ = [
    "complete",
    "erdos_renyi",
    "exponential",
    "file",
    "metropolis_hastings",
    "neighbour_weights",
    "random_regular",
    "require_connected",
    "ring",
    "small_world",
    "spectral_gap",
    "star",
    "torus",
]
